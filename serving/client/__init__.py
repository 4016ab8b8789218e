"""Clients of the service, synchronous and asynchronous."""

from serving.client.client.async_client import AsyncClient
from serving.client.client.client import Client

__all__ = ["AsyncClient", "Client"]
