"""What the store tells of itself: tasks, versions, events. Plain facts, read from the registry at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from .manifest import TaskManifest

LABELS = ("stable", "canary")


@dataclass(frozen=True)
class Version:
    """One immutable artifact of a task.

    Attributes:
        version: `sha256:<64 hex>` of the artifact.
        task: the task's name.
        method: packnet, clr, ….
        parent: the version it is built on; None for the backbone alone.
        state: `ready` answers; `retired` keeps its claim for those built on it, and answers no more.
        size: bytes of the artifact.
        created: when it was registered, UTC.
        manifest: what the artifact says of itself.
        labels: the labels that point at it, sorted.
        holds_claim: whether it took free weights.
        seq: the number of the event that registered it; later versions have higher ones, whatever the clock says.
    """

    version: str
    task: str
    method: str
    parent: str | None
    state: Literal["ready", "retired"]
    size: int
    created: datetime
    manifest: TaskManifest
    labels: tuple[str, ...] = ()
    holds_claim: bool = False
    seq: int = 0


@dataclass(frozen=True)
class Task:
    """A named classifier.

    Attributes:
        name: its name.
        labels: label -> version.
        versions: all versions in the order of their registration, retired ones too.
        created: when its first version was registered, UTC.
    """

    name: str
    labels: Mapping[str, str]
    versions: tuple[str, ...]
    created: datetime


@dataclass(frozen=True)
class Event:
    """One change of the store: who did what when.

    Attributes:
        seq: 1, 2, 3, … without a gap, in the order in which the changes took effect.
        time: when, UTC.
        actor: who asked for it: `cli`, a key's name, ….
        kind: create, register, label, unlabel, retire, delete.
        task, version: what it concerns.
        detail: host, pid and command; the label; what else there is to know.
    """

    seq: int
    time: datetime
    actor: str
    kind: str
    task: str | None
    version: str | None
    detail: Mapping[str, object]


@dataclass(frozen=True)
class Registered:
    """The answer to a registration, as the store was when it took effect: others may have changed it since.

    Attributes:
        version: the version.
        created: whether it is new (or was retired and answers again).
        task: its task.
        versions: all versions of the task, in the order of their registration.
    """

    version: Version
    created: bool
    task: Task
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class ProbeResult:
    """Whether a version computes on a device what it computed when it was made."""

    ok: bool
    detail: str
    time: datetime
