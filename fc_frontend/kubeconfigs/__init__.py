"""Kubeconfigs for people and programs, managed with the caller's credentials."""
