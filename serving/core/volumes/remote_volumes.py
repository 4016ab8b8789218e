"""Allow-list of remote stores: hosts, and their addresses resolved at the start.

Off without `--allow-remote`. A name is looked up once, by the process that starts the workers; what it leads
to has to be public, unless the addresses were written out beside the name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from canvas_fm.data.store.files import looks_remote
from canvas_fm.data.store.remote.address import Address, split_origin
from canvas_fm.errors import CanvasError
from serving.protocol.serve_flags import ServedVolume
from serving.protocol.settings import ServiceSettings

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume

IP = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_FLAG = "--allow-remote"


def pin(
    volumes: Mapping[str, str | Path], allow: Sequence[str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """https addresses of the remote volumes by name, and the IP addresses of their hosts.

    `allow` names hosts as `HOST`, `HOST:PORT` or with the addresses to go to, `HOST=ADDRESS,ADDRESS`.
    CanvasError for a host that is not among them, and for one that leads to an address that is not public.
    """
    allowed = dict(map(_entry, allow))
    remote, pinned = {}, {}
    for name, location in volumes.items():
        if not looks_remote(str(location)):
            continue
        try:
            address = Address.parse(str(location))
        except CanvasError as problem:
            raise CanvasError(f"the volume {name}: {problem}") from problem
        origin = address.origin
        if origin not in allowed:
            reason = f"only {', '.join(sorted(allowed))} may be read" if allowed else "remote volumes are off"
            raise CanvasError(
                f"the volume {name} lies on {origin}, and {reason}; allow this host with {_FLAG} {origin}"
            )
        if origin not in pinned:
            pinned[origin] = allowed[origin] or _look_up(address)
        remote[name] = str(address)
    return remote, pinned


def open_volume(settings: ServiceSettings, served: ServedVolume) -> Volume:
    """Open a volume named at the start: local, or remote at its pinned addresses."""
    from canvas_fm.data.store.remote.remote_store import Remote
    from canvas_fm.data.volume.volume import Volume

    path = served.path
    if not looks_remote(path):
        return Volume.open(path, follow_links=False, **served.volume_keywords)
    addresses = settings.pinned.get(Address.parse(path).origin)
    if not addresses:
        raise CanvasError(f"{path} is on a host that was not allowed with {_FLAG}")
    return Volume.open(Remote(path, addresses), **served.volume_keywords)


def is_public(address: IP) -> bool:
    """Whether an IP address is public: not private, local, reserved or multicast."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:  # of a network without IPv4: the last 32 bits are where it really leads
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        # Other ways to write an IPv4 address, and tunnels to one.
        if address.ipv4_mapped or address.sixtofour or address.teredo or address.is_site_local:
            return False
    barred = (
        address.is_private,
        address.is_loopback,
        address.is_link_local,
        address.is_multicast,
        address.is_reserved,
        address.is_unspecified,
    )
    return address.is_global and not any(barred)


def _entry(entry: str) -> tuple[str, tuple[str, ...]]:
    """Origin and its addresses, empty if they are to be resolved; an IP address is its own."""
    name, equals, listed = entry.partition("=")
    if "/" in name:
        raise CanvasError(f"{_FLAG} {entry[:200]!r} was given; a host alone was expected, data.example.org")
    host, port = split_origin(name)
    origin = Address(host, port, "").origin
    if not equals:
        return origin, (host,) if _ip(host) is not None else ()
    addresses = [_ip(each) for each in listed.split(",")]
    if None in addresses:
        raise CanvasError(
            f"{_FLAG} {entry[:200]!r} was given; after '=' IP addresses were expected, minio.lab=10.0.0.5"
        )
    return origin, tuple(map(str, addresses))


def _look_up(address: Address) -> tuple[str, ...]:
    try:
        resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or "no valid name"
        raise CanvasError(f"the host {address.host} is unknown: {reason}") from problem
    addresses = dict.fromkeys(ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in resolved)
    for each in addresses:
        if not is_public(each):
            raise CanvasError(
                f"the host {address.host} leads to {each}, which is not a public address; where that is "
                f"meant, write it out: {_FLAG} {address.origin}={each}"
            )
    return tuple(map(str, addresses))


def _ip(text: str) -> IP | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
