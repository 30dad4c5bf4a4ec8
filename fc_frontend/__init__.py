"""fc-frontend: HAProxy in front of a Kubernetes cluster, configured from a few lines a service."""

__version__ = "0.1.0"
