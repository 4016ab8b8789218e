"""Parsing of remote store addresses, https:// and s3://."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from canvas_fm.errors import CanvasError

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9])?)*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Address(NamedTuple):
    """An https address: host name in lower case (or IP address), port, path."""

    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"https://{self.origin}{self.path}"

    @property
    def origin(self) -> str:
        """Host and port as in an allow-list or `Host` header; port 443 is omitted."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `https://HOST[:PORT]/PATH`, or `s3://BUCKET/KEY` as the bucket's public https address.

        CanvasError for any other scheme, and for what could carry a secret (a user, a query), which no
        sentence repeats.
        """
        try:
            parts = urlsplit(text)
        except ValueError as problem:
            raise CanvasError(
                f"what was given is no address ({problem}); give https://HOST/PATH"
            ) from problem
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise CanvasError(
                "the address of a remote store holds a user, a query or a fragment; remote stores are read "
                "without credentials: give https://HOST/PATH"
            )
        if parts.scheme == "s3":
            return cls._of_bucket(parts.netloc, parts.path)
        if parts.scheme != "https":
            raise CanvasError(f"{text[:200]!r} is no https:// or s3:// address; no other can be read")
        host, port = split_origin(parts.netloc)
        return cls(host, port, _path(parts.path))

    @classmethod
    def _of_bucket(cls, bucket: str, key: str) -> Address:
        if not _BUCKET.fullmatch(bucket) or not key.strip("/"):
            raise CanvasError(
                f"s3://{bucket[:100]}{key[:100]} names no store; it looks like s3://bucket/key, for another "
                "object store than Amazon's give https://HOST/bucket/key"
            )
        if "." in bucket:  # the certificate holds for one level of names only
            return cls("s3.amazonaws.com", 443, f"/{bucket}{_path(key)}")
        return cls(f"{bucket}.s3.amazonaws.com", 443, _path(key))


def split_origin(text: str) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT` or `[IPv6]:PORT`; CanvasError if it is none of these."""
    wrong = CanvasError(f"{text[:200]!r} is no host; it looks like data.example.org or data.example.org:8443")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(\d{1,5}))?", text)
    if match is None:
        raise wrong
    host, port = match[1].lower().rstrip("."), int(match[2] or 443)
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError as problem:
            raise wrong from problem
    elif not _HOST.fullmatch(host):
        raise wrong
    if not 1 <= port <= 65535:
        raise wrong
    return host, port


def _path(path: str) -> str:
    return quote(path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
