"""Python clients of the service, blocking and asyncio, with retries.

Both have the methods of `serving.client.client_methods` and `serving.client.job_methods`, generators
without input and output; all that the clients add is how a request is sent and how a pause is waited for.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, overload

import httpx

from serving.client.client_methods import (
    Request,
    Steps,
    add_model,
    add_volume,
    detect,
    embed,
    embed_points,
    info,
    models,
    ready,
    reconstruct,
    refine,
    refine_crops,
    search,
    settings,
)
from serving.client.job_methods import cancel, fetch, get, list_jobs, retry, submit, wait, whole_file
from serving.client.retry import Attempts

P = ParamSpec("P")
T = TypeVar("T")
Outcome = httpx.Response | httpx.TransportError


class Method(Generic[P, T]):
    """A method of both clients from one generator function, with its signature and docstring."""

    def __init__(self, steps: Callable[P, Steps[T]]) -> None:
        @functools.wraps(steps)
        def method(client: Any, *arguments: P.args, **options: P.kwargs) -> Any:
            return client.do(steps(*arguments, **options))

        signature = inspect.signature(steps)
        result = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [itself, *signature.parameters.values()]
        method.__signature__ = signature.replace(parameters=parameters, return_annotation=result)  # type: ignore[attr-defined]
        self._method: Any = method

    def __set_name__(self, owner: type, name: str) -> None:
        self._method.__name__, self._method.__qualname__ = name, f"{owner.__qualname__}.{name}"

    @overload
    def __get__(self, client: Client | ClientJobs, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, client: AsyncClient | AsyncClientJobs, owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self._method if client is None else self._method.__get__(client, owner)


class _Methods:
    info = Method(info)
    models = Method(models)
    add_model = Method(add_model)
    add_volume = Method(add_volume)
    ready = Method(ready)
    embed = Method(embed)
    embed_points = Method(embed_points)
    detect = Method(detect)
    refine = Method(refine)
    refine_crops = Method(refine_crops)
    search = Method(search)
    reconstruct = Method(reconstruct)


class _JobMethods:
    submit = Method(submit)
    list = Method(list_jobs)
    get = Method(get)
    wait = Method(wait)
    cancel = Method(cancel)
    retry = Method(retry)
    fetch = Method(fetch)


class Client(_Methods):
    """A connection to one service; thread-safe, and a context manager.

    A busy service, and one that answered before and restarts, is asked again for up to `retry_s` seconds,
    after pauses that double and are spread, or as long as it says. Every failure is a CanvasError with the
    service's own sentence. `key` is the bearer key of a service that asks for one, `transport` what sends the
    requests in place of a connection.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        timeout_s: float = 150.0,
        retry_s: float = 60.0,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**settings(url, timeout_s, key), transport=transport)
        self.url, self.retry_s = url.rstrip("/"), retry_s
        self._attempts = Attempts(self.url, retry_s)
        self.jobs = ClientJobs(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def do(self, steps: Steps[T]) -> T:
        """Run a method's requests one by one, sleeping for its pauses; returns its result."""
        steps = self._attempts.of(steps)
        outcome: Outcome | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = self._send(step) if isinstance(step, Request) else None
            if not isinstance(step, Request):
                time.sleep(step)

    def _send(self, request: Request) -> Outcome:
        try:
            with self._http.stream(request.method, request.url, **request.options) as reply:
                if request.out is None or not reply.is_success:
                    reply.read()
                    return reply
                with whole_file(request.out) as file:
                    for piece in reply.iter_bytes():
                        file.write(piece)
                return reply
        except httpx.TransportError as problem:
            return problem


class ClientJobs(_JobMethods):
    """Background jobs of the service; see `Client`."""

    def __init__(self, client: Client) -> None:
        self.do = client.do


class AsyncClient(_Methods):
    """An asyncio connection to one service, with the methods of `Client`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        timeout_s: float = 150.0,
        retry_s: float = 60.0,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**settings(url, timeout_s, key), transport=transport)
        self.url, self.retry_s = url.rstrip("/"), retry_s
        self._attempts = Attempts(self.url, retry_s)
        self.jobs = AsyncClientJobs(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def do(self, steps: Steps[T]) -> T:
        """Run a method's requests one by one, awaiting its pauses; returns its result."""
        steps = self._attempts.of(steps)
        outcome: Outcome | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value
            outcome = await self._send(step) if isinstance(step, Request) else None
            if not isinstance(step, Request):
                await asyncio.sleep(step)

    async def _send(self, request: Request) -> Outcome:
        try:
            async with self._http.stream(request.method, request.url, **request.options) as reply:
                if request.out is None or not reply.is_success:
                    await reply.aread()
                    return reply
                with whole_file(request.out) as file:
                    async for piece in reply.aiter_bytes():
                        file.write(piece)
                return reply
        except httpx.TransportError as problem:
            return problem


class AsyncClientJobs(_JobMethods):
    """Background jobs of the service; see `AsyncClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self.do = client.do
