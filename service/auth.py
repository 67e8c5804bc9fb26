"""Who may call what: four roles, keys kept as hashes, one admin token, everything else refused.

A route's role stands in `routes.py`; what stands nowhere needs `admin`. An admin may call everything; `predict` and
`metrics` keys only their own routes. Without any key, predict and metrics routes are open where `open_to_all` says so.

The keys file is YAML or JSON, and holds no secret:

    keys:
      - name: shop
        role: predict                 # predict, metrics or admin
        sha256: 9f86d081884c7d65…     # of the key's text; a key is `tp_` and 32 random bytes, URL-safe base64
        tasks: [birds, plants]        # only these; all where it is left out
        rate: 20                      # requests a second, in the long run
        concurrency: 8                # requests at once
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import Headers

from masks_store import InvalidInput

from .errors import Problem
from .settings import Settings

Role = Literal["public", "predict", "metrics", "admin"]

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="taskpack"'}


class Key(BaseModel):
    """One line of the keys file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    role: Literal["predict", "metrics", "admin"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    tasks: tuple[str, ...] | None = None
    rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _tasks_fit_the_role(self) -> Key:
        if self.tasks is not None and self.role != "predict":
            raise ValueError(f"only predict keys may be limited to tasks, this one has the role {self.role}")
        return self


@dataclass(frozen=True)
class Caller:
    """Who is calling: a key, the admin's token (no key), or nobody (`role` public)."""

    name: str
    role: Role
    key: Key | None = None

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """The tasks that the caller's key is for; None for all."""
        return None if self.key is None else self.key.tasks

    def may_use(self, task: str) -> bool:
        """Whether the caller's key is for this task."""
        return self.tasks is None or task in self.tasks


NOBODY = Caller("anonymous", "public")


@dataclass(frozen=True)
class Keyring:
    """All that can be presented.

    Attributes:
        keys: of the keys file.
        admin_sha256: hash of the admin token; None where there is none, and then no call is the admin's.
        open_to_all: whether predict and metrics routes are open to callers without a key.
        compare: two hashes, in a time that tells nothing of where they differ.
    """

    keys: tuple[Key, ...] = ()
    admin_sha256: str | None = None
    open_to_all: bool = False
    compare: Callable[[str, str], bool] = hmac.compare_digest

    def authenticate(self, headers: Headers) -> Caller:
        """Name the caller; `NOBODY` when no key was presented.

        Raises:
            Problem: 401 for a key that is not known, 400 for two different ones.
        """
        presented = _presented(headers)
        if presented is None:
            return NOBODY
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        found: Caller | None = None
        if self.admin_sha256 is not None and self.compare(self.admin_sha256, digest):
            found = Caller("admin", "admin")
        for key in self.keys:  # never stops early: the time tells nothing of which key it was
            if self.compare(key.sha256, digest):
                found = found or Caller(key.name, key.role, key)
        if found is None:
            raise Problem(401, "the key is not known here", headers=CHALLENGE)
        return found

    def authorise(self, caller: Caller, role: Role) -> None:
        """Refuse a caller who may not call routes of `role`.

        Raises:
            Problem: 401 where no key was presented, 403 where it is not for this.
        """
        if role == "public" or caller.role in (role, "admin"):
            return
        if caller.role != "public":
            raise Problem(403, f"the key {caller.name!r} has the role {caller.role}; this needs {role}")
        if role != "admin" and self.open_to_all:
            return
        raise Problem(
            401, f"this needs a key with the role {role}: send `Authorization: Bearer KEY`", headers=CHALLENGE
        )


def _presented(headers: Headers) -> str | None:
    given: list[str] = []
    for value in headers.getlist("authorization"):
        scheme, _, key = value.strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Problem(401, "the Authorization header must be `Bearer KEY`", headers=CHALLENGE)
        given.append(key.strip())
    given.extend(value.strip() for value in headers.getlist("x-api-key"))
    if len(set(given)) > 1:
        raise Problem(400, "two different keys were sent: send one, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    return given[0] if given else None


def keyring(settings: Settings, token: str | None) -> Keyring:
    """The keyring that the settings describe.

    Args:
        settings: name the keys file, the address and `--open`.
        token: the admin token's text.

    Raises:
        InvalidInput: the keys file cannot be read or is wrong, with every fault.
    """
    keys = read_keys(settings.keys_file) if settings.keys_file else ()
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None
    if settings.keys_file:
        return Keyring(keys, digest, open_to_all=False)
    return Keyring((), digest, open_to_all=settings.on_loopback or settings.open)


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a keys file.

    Raises:
        InvalidInput: with every fault. Hashes are never repeated in a message.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"--keys-file {path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none; nested without end
        raise InvalidInput(f"--keys-file {path}: neither YAML nor JSON") from error
    lines: Any = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(lines, list):
        raise InvalidInput(f"--keys-file {path}: expected `keys:` and a list of keys under it")
    keys: list[Key] = []
    faults: list[str] = []
    for place, line in enumerate(lines):
        try:
            keys.append(Key.model_validate(line))
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            faults += [".".join(("keys", str(place), *map(str, fault["loc"]))) + f": {fault['msg']}" for fault in found]
    faults += _repeats("name", (key.name for key in keys)) + _repeats("key", (key.sha256 for key in keys), tell=False)
    if faults:
        raise InvalidInput(f"--keys-file {path}: {len(faults)} fault(s)", faults)
    return tuple(keys)


def _repeats(what: str, values: Iterable[str], tell: bool = True) -> list[str]:
    seen: set[str] = set()
    repeated: Sequence[str] = sorted({value for value in values if value in seen or seen.add(value)})
    return [f"the {what} {value!r} stands twice" if tell else f"one {what} stands twice" for value in repeated]
