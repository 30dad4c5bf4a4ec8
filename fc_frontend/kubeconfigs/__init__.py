"""Kubeconfigs for people and programs: made, listed and revoked with the caller's credentials."""
