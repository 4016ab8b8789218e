"""A zarr-python store over a remote store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from canvas_fm.data.store.remote.remote_store import Remote


class RemoteStore(Store):
    """Read-only zarr-python store over a `Remote`; all other operations are refused."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, files: Remote) -> None:
        super().__init__(read_only=True)
        self._files = files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and other._files is self._files

    __hash__ = None  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        start, stop = _span(byte_range)
        work = self._files.read if byte_range is None else lambda name: self._files.part(name, start, stop)
        content = await asyncio.to_thread(work, key)
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        requests = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return list(await asyncio.gather(*requests))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._files.stamp, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        raise self._read_only_error()

    async def delete(self, key: str) -> None:
        raise self._read_only_error()

    def list(self) -> AsyncIterator[str]:
        raise self._read_only_error()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise self._read_only_error()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise self._read_only_error()

    def _read_only_error(self) -> NotImplementedError:
        return NotImplementedError(f"{self._files} is remote: single files are read, nothing else")


def _span(byte_range: Any) -> tuple[int | None, int | None]:
    if byte_range is None:
        return None, None
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    return (
        (byte_range.offset, None) if isinstance(byte_range, OffsetByteRequest) else (-byte_range.suffix, None)
    )
