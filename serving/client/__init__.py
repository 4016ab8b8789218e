"""Clients of the service, synchronous and asynchronous."""

from serving.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
