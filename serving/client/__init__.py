"""Clients of the service, synchronous and asynchronous."""

from serving.client.async_client import AsyncClient
from serving.client.client import Client

__all__ = ["AsyncClient", "Client"]
