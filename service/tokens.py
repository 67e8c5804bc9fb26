"""The admin token: given by file or environment, else made at the first serve of an address and kept for its owner.

A made token lies in `$XDG_STATE_HOME/taskpack/<host>_<port>.token` (mode 0600), where the commands look for it by the
server's URL. It never lies in the store.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from masks_store import InvalidInput

from .client.keys import state_directory
from .settings import Settings

TOKEN_BYTES = 32
MIN_LENGTH = 16
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""How a file system says that it has no hard links."""


@dataclass(frozen=True)
class AdminToken:
    """The token, and where it lies: None when the environment gave it."""

    text: str
    path: Path | None
    made: bool = False


def admin_token(settings: Settings, port: int, environ: Mapping[str, str] | None = None) -> AdminToken:
    """The admin token of the server that listens on `settings.host` and `port`; made where none is given.

    Raises:
        InvalidInput: two are given, one is too short, or its file cannot be read or is damaged, or others can read it.
    """
    return given_token(settings) or _made(token_path(settings.host, port, environ))


def given_token(settings: Settings) -> AdminToken | None:
    """The admin token that the settings give; None where they give none.

    Raises:
        InvalidInput: two are given, one is too short, or its file cannot be read.
    """
    given = settings.admin_token.get_secret_value().strip() if settings.admin_token else None
    path = settings.admin_token_file
    if given and path:
        raise InvalidInput("both --admin-token-file and TASKPACK_ADMIN_TOKEN are given: keep one")
    if given:
        return AdminToken(_long_enough(given, "TASKPACK_ADMIN_TOKEN"), None)
    if path:
        return AdminToken(_long_enough(_read(path, "--admin-token-file"), f"--admin-token-file {path}"), path)
    return None


def token_path(host: str, port: int, environ: Mapping[str, str] | None = None) -> Path:
    """Where the made token of an address lies."""
    return state_directory(os.environ if environ is None else environ) / f"{host.strip('[]')}_{port}.token"


def _made(path: Path) -> AdminToken:
    """The token in a file, which is made where it is not there.

    It is written under another name and linked to its own: it is there whole or not at all, and where servers start
    at once the first one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        text = secrets.token_urlsafe(TOKEN_BYTES)
        if _linked(path, text):
            return AdminToken(text, path, made=True)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidInput(f"others may read the admin token in {path}: delete the file, and a new one is made")
    try:
        return AdminToken(_long_enough(_read(path, "the admin token"), f"the admin token in {path}"), path)
    except InvalidInput as error:
        if isinstance(error.__cause__, OSError):  # it may well be a token, of another user
            raise
        raise InvalidInput(
            f"the admin token in {path} is empty or damaged: delete it, and a new one is made"
        ) from error


def _linked(path: Path, text: str) -> bool:
    """Put a file in its place whole; whether there was none."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise InvalidInput(
            f"the admin token cannot be kept in {path.parent} ({error.strerror}); give one by --admin-token-file or "
            "TASKPACK_ADMIN_TOKEN, or another folder by XDG_STATE_HOME"
        ) from error
    finally:
        os.unlink(name)
    return True


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InvalidInput(f"{what} {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{what} {path}: not ASCII text") from error


def _long_enough(text: str, what: str) -> str:
    if len(text) < MIN_LENGTH or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidInput(
            f"{what}: expected at least {MIN_LENGTH} printable ASCII characters without spaces; "
            "`openssl rand -base64 32` makes a good one"
        )
    return text
