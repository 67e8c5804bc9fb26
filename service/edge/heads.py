"""What a request's head may be, before anything else looks at it: its size, and the host it is for.

The Host header is always checked: a page that a browser loaded from elsewhere can make a name of its own point at
127.0.0.1, but it cannot make the browser send another name than that one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

from starlette.types import Scope

from ..errors import Problem
from ..settings import Settings, network_of

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

ALWAYS = ("localhost", "127.0.0.1", "[::1]")


def check_head(scope: Scope, settings: Settings) -> None:
    """Refuse a head that is too large or for another host.

    Raises:
        Problem: 431 or 421.
    """
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > settings.max_headers:
        raise Problem(431, f"{len(headers)} header lines are more than the limit of {settings.max_headers}", close=True)
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    size += len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if size > settings.max_header_bytes:
        raise Problem(
            431,
            f"request line and headers of {size} bytes are more than the limit of {settings.max_header_bytes}",
            close=True,
        )
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not host_allowed(hosts[0], settings.allowed_hosts):
        raise Problem(
            421,
            "this server does not answer for the host that the Host header names; --allowed-hosts adds hosts",
        )


def host_allowed(header: str, allowed: Sequence[str]) -> bool:
    """Whether a Host header names this server.

    Args:
        header: `name`, `name:port` or `[ipv6]:port`.
        allowed: names and addresses in lower case besides the three that always are; `*.example.org` stands for all
            names under it, `10.0.0.0/8` for all addresses in it.
    """
    name = _without_port(header.strip().lower())
    if name is None:
        return False
    if name in ALWAYS or name in allowed:
        return True
    address = _address(name)
    if address is not None:
        return any(address in network for network in map(network_of, allowed) if network is not None)
    return any(pattern.startswith("*.") and name.endswith(pattern[1:]) and name != pattern[1:] for pattern in allowed)


def _address(host: str) -> Address | None:
    try:
        return ipaddress.IPv6Address(host[1:-1]) if host.startswith("[") else ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _without_port(host: str) -> str | None:
    name, separator, port = host.rpartition(":")
    if host.endswith("]") or not separator:
        name = host
    elif not port.isascii() or (port and not port.isdigit()):
        return None
    name = name.removesuffix(".") if name != "." else ""
    if not name or (":" in name and not (name.startswith("[") and name.endswith("]"))):
        return None
    return name
