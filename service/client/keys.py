"""Which key goes to which server, with which call.

A server that was given no admin token makes one and writes it to `$XDG_STATE_HOME/taskpack/<host>_<port>.token`; a
client on the same machine finds it there by the URL it calls. A found token goes with calls that change a server, and
with no other: whatever listens on that port now, a prediction does not hand it over. It is only ever sent to the host
and port in its file's name: it is looked up by them, redirects are not followed, and calls to this machine never pass
through a proxy.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  what a server that listens everywhere is named in its token file; nothing is bound here

API_VARIABLE, ADMIN_VARIABLE = "TASKPACK_API_KEY", "TASKPACK_ADMIN_TOKEN"

NO_KEY = (
    f"no key was sent: set {API_VARIABLE} or {ADMIN_VARIABLE}; a token that a server made is found on its own machine, "
    "by the user who serves, and sent only with calls that change the server"
)
"""What a caller without a key can do."""


@dataclass(frozen=True)
class Key:
    """A key, where it came from, and what to do where a server does not know it."""

    text: str = field(repr=False)
    source: str
    mend: str


@dataclass(frozen=True)
class Keys:
    """The keys known for one server.

    Attributes:
        api: given, to ask it.
        admin: given, to change it; each of the two stands in for the other.
        found: the token in a server's own file; only ever sent to change it.
    """

    api: Key | None = None
    admin: Key | None = None
    found: Key | None = None

    def for_call(self, admin: bool) -> Key | None:
        """The key to send with a call, None when none is known.

        Args:
            admin: whether the call needs the admin's key.
        """
        return (self.admin or self.found or self.api) if admin else (self.api or self.admin)


def find_keys(url: httpx.URL, environ: Mapping[str, str] | None = None) -> Keys:
    """Look for keys in TASKPACK_API_KEY and TASKPACK_ADMIN_TOKEN, and for the token file of the server at `url`."""
    environ = os.environ if environ is None else environ
    return Keys(_variable(environ, API_VARIABLE), _variable(environ, ADMIN_VARIABLE), _in_file(url, environ))


def given_key(text: str) -> Keys:
    """One key that the caller gave, for every call."""
    key = Key(text, "the `key` that the client was given", "give it another")
    return Keys(key, key)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def state_directory(environ: Mapping[str, str]) -> Path:
    """Where token files lie: `$XDG_STATE_HOME/taskpack`, by default `~/.local/state/taskpack`."""
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(home) / "taskpack"


def _variable(environ: Mapping[str, str], name: str) -> Key | None:
    text = environ.get(name)
    return Key(text, f"the environment variable {name}", f"set {name} anew, or unset it") if text else None


def _in_file(url: httpx.URL, environ: Mapping[str, str]) -> Key | None:
    port = url.port or (443 if url.scheme == "https" else 80)
    # This machine has several names; the one that is called goes first. A server on every address is reached by each.
    hosts = dict.fromkeys((url.host, *LOOPBACK, *ANY_ADDRESS)) if is_loopback(url.host) else (url.host,)
    for host in hosts:
        path = state_directory(environ) / f"{host}_{port}.token"
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if token:
            mend = f"if another server left it, delete it; for a server that was given a token: {ADMIN_VARIABLE}"
            return Key(token, f"the file {path}", mend)
    return None
