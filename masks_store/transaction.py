"""The registry's queries, each within one transaction: what is read hangs together, what is written comes whole."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, delete, func, insert, select, update

from .artifact import Artifact
from .cache import Recent
from .errors import FormatError, StoreCorrupt
from .manifest import TaskManifest, dump_manifest, parse_manifest
from .records import Event, ProbeResult, Task, Version
from .tables import counters, events, labels, probes, tasks, versions

MANY = 2000
"""Names that a query lists one by one; of more tasks all rows are read."""
MANIFEST_BYTES = 64 << 20
"""Memory for manifests that were read, of all stores of a process together."""
MANIFEST_SHARE = 10
"""Bytes of a manifest and its text for each character of the text: 6 with thousands of classes, 10 of a small one."""

_manifests: Recent[TaskManifest] = Recent(MANIFEST_BYTES)


class Transaction:
    """Queries on one open transaction; made by `Registry.read` and `Registry.write`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    # ------------------------------------------------------------------ counters and events
    def counter(self, name: str) -> int:
        """The value of a counter: `events` or `generation`."""
        return int(self.connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one())

    def advance(self, name: str) -> int:
        """Raise a counter by one and return its new value; holds its row until the transaction ends."""
        statement = update(counters).where(counters.c.name == name).values(value=counters.c.value + 1)
        self.connection.execute(statement)
        return self.counter(name)

    def log(
        self, actor: str, kind: str, task: str | None, version: str | None, detail: Mapping[str, object] | None = None
    ) -> int:
        """Append an event and return its number."""
        seq = self.advance("events")
        text = json.dumps(dict(detail or {}), ensure_ascii=False, sort_keys=True)
        row = {"seq": seq, "time": time.time(), "actor": actor, "kind": kind, "task": task, "version": version}
        self.connection.execute(insert(events).values(**row, detail=text))
        return seq

    def events(self, after: int, limit: int) -> list[Event]:
        """The events that follow number `after`, in order."""
        statement = select(events).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
        return [_event(row) for row in self.connection.execute(statement).mappings()]

    def event_span(self) -> tuple[int, int, int]:
        """How many events there are, the first number and the last."""
        count, first, last = self.connection.execute(
            select(
                func.count(), func.coalesce(func.min(events.c.seq), 0), func.coalesce(func.max(events.c.seq), 0)
            ).select_from(events)
        ).one()
        return int(count), int(first), int(last)

    # ------------------------------------------------------------------ versions
    def version(self, digest: str) -> Version | None:
        """One version, in whatever state, or None."""
        return next(iter(self._versions(select(versions).where(versions.c.digest == digest))), None)

    def versions(self, task: str | None = None) -> list[Version]:
        """All versions (of a task) in the order of their registration."""
        statement = select(versions).order_by(versions.c.seq)
        return self._versions(statement if task is None else statement.where(versions.c.task == task))

    def with_prefix(self, task: str, prefix: str) -> list[Version]:
        """The versions of a task whose digest begins with `prefix` (`sha256:…`)."""
        statement = select(versions).where(versions.c.task == task, versions.c.digest.startswith(prefix))
        return self._versions(statement.order_by(versions.c.seq))

    def children(self, digests: Collection[str]) -> list[Version]:
        """The versions that are built directly on one of `digests`."""
        return self._versions(select(versions).where(versions.c.parent.in_(digests)).order_by(versions.c.seq))

    def parents(self) -> dict[str, str | None]:
        """Every version -> its parent, in the order of registration."""
        rows = self.connection.execute(select(versions.c.digest, versions.c.parent).order_by(versions.c.seq))
        return {row.digest: row.parent for row in rows}

    def claim_holders(self) -> list[str]:
        """The versions that hold a claim, retired ones too, in the order of registration (ancestors first)."""
        return list(
            self.connection.execute(
                select(versions.c.digest).where(versions.c.holds_claim).order_by(versions.c.seq)
            ).scalars()
        )

    def add_version(self, artifact: Artifact, holds_claim: bool, seq: int) -> None:
        """Insert the row of a version, and of its task if it is the first."""
        manifest, now = artifact.manifest, time.time()
        if not self.has_task(manifest.task):
            self.connection.execute(insert(tasks).values(name=manifest.task, created=now))
        row = {
            **version_columns(artifact, holds_claim),
            "digest": artifact.version,
            "seq": seq,
            "state": "ready",
            "created": now,
        }
        self.connection.execute(insert(versions).values(**row))

    def set_state(self, digest: str, state: str) -> None:
        """Make a version `ready` or `retired`."""
        self.connection.execute(update(versions).where(versions.c.digest == digest).values(state=state))

    def remove_version(self, version: Version) -> None:
        """Delete the row of a version that has no labels, and of its task if it was the last."""
        self.connection.execute(delete(probes).where(probes.c.version == version.version))
        self.connection.execute(delete(versions).where(versions.c.digest == version.version))
        others = select(versions.c.seq).where(versions.c.task == version.task).limit(1)
        if self.connection.execute(others).first() is None:
            self.connection.execute(delete(tasks).where(tasks.c.name == version.task))

    # ------------------------------------------------------------------ tasks and labels
    def has_task(self, name: str) -> bool:
        """Whether the task has a version, in whatever state."""
        return self.connection.execute(select(tasks.c.name).where(tasks.c.name == name)).first() is not None

    def task_count(self) -> int:
        """How many tasks there are."""
        return int(self.connection.execute(select(func.count()).select_from(tasks)).scalar_one())

    def tasks(self, name: str | None = None) -> list[Task]:
        """All tasks by name, or the one named."""
        wanted = select(tasks).order_by(tasks.c.name)
        listed = select(versions.c.task, versions.c.digest).order_by(versions.c.seq)
        if name is not None:
            wanted, listed = wanted.where(tasks.c.name == name), listed.where(versions.c.task == name)
        digests: dict[str, list[str]] = {}
        for row in self.connection.execute(listed):
            digests.setdefault(row.task, []).append(row.digest)
        pointing = self._labels() if name is None else {name: self.labels(name)}
        return [
            Task(row.name, pointing.get(row.name, {}), tuple(digests.get(row.name, ())), moment(row.created))
            for row in self.connection.execute(wanted)
        ]

    def task_page(
        self, after: str | None, limit: int, among: Collection[str] | None
    ) -> list[tuple[Task, list[Version]]]:
        """At most `limit` tasks by name (those after a name; among some) with their versions; four queries in all."""
        wanted = select(tasks).order_by(tasks.c.name).limit(limit)
        if after is not None:
            wanted = wanted.where(tasks.c.name > after)
        if among is not None:
            wanted = wanted.where(tasks.c.name.in_(among))
        rows = self.connection.execute(wanted).all()
        names = [row.name for row in rows]
        own: dict[str, list[Version]] = {}
        for version in self._versions(select(versions).where(versions.c.task.in_(names)).order_by(versions.c.seq)):
            own.setdefault(version.task, []).append(version)
        pointing = self._labels(names)
        found: list[tuple[Task, list[Version]]] = []
        for row in rows:
            mine = own.get(row.name, [])
            digests = tuple(version.version for version in mine)
            found.append((Task(row.name, pointing.get(row.name, {}), digests, moment(row.created)), mine))
        return found

    def labels(self, task: str) -> dict[str, str]:
        """Label -> version of one task."""
        rows = self.connection.execute(select(labels).where(labels.c.task == task).order_by(labels.c.label))
        return {row.label: row.version for row in rows}

    def set_label(self, task: str, label: str, digest: str) -> None:
        """Point a label at a version."""
        self.remove_label(task, label)
        self.connection.execute(insert(labels).values(task=task, label=label, version=digest))

    def remove_label(self, task: str, label: str) -> None:
        """Take a label away."""
        self.connection.execute(delete(labels).where(labels.c.task == task, labels.c.label == label))

    def _labels(self, names: Collection[str] | None = None) -> dict[str, dict[str, str]]:
        """Task -> label -> version; of all tasks, or of some."""
        found: dict[str, dict[str, str]] = {}
        statement = select(labels).order_by(labels.c.label)
        for row in self.connection.execute(statement if names is None else statement.where(labels.c.task.in_(names))):
            found.setdefault(row.task, {})[row.label] = row.version
        return found

    def _versions(self, statement: Select[tuple[object, ...]]) -> list[Version]:
        found = [_version(row) for row in self.connection.execute(statement).mappings()]
        tasks_found = {version.task for version in found}
        pointing = self._labels(tasks_found if len(tasks_found) <= MANY else None)
        return [_labelled(version, pointing.get(version.task, {})) for version in found]

    # ------------------------------------------------------------------ probes
    def probe(self, version: str, engine: str, device: str, dtype: str) -> ProbeResult | None:
        """The recorded result of a version's probe on an engine build, device and dtype."""
        row = self.connection.execute(select(probes).where(*_probe_key(version, engine, device, dtype))).first()
        return None if row is None else ProbeResult(row.ok, row.detail, moment(row.time))

    def probes(self, engine: str, device: str, dtype: str) -> dict[str, ProbeResult]:
        """Version -> the recorded result of its probe on an engine build, device and dtype; one query."""
        c = probes.c
        wanted = select(probes).where(c.engine == engine, c.device == device, c.dtype == dtype)
        rows = self.connection.execute(wanted)
        return {row.version: ProbeResult(row.ok, row.detail, moment(row.time)) for row in rows}

    def record_probe(self, version: str, engine: str, device: str, dtype: str, ok: bool, detail: str) -> None:
        """Record a probe's result in place of an earlier one."""
        self.connection.execute(delete(probes).where(*_probe_key(version, engine, device, dtype)))
        row = {"version": version, "engine": engine, "device": device, "dtype": dtype, "ok": ok, "detail": detail}
        self.connection.execute(insert(probes).values(**row, time=time.time()))


def version_columns(artifact: Artifact, holds_claim: bool) -> dict[str, object]:
    """What a version's row repeats of its artifact, so that a list needs no blob."""
    manifest = artifact.manifest
    return {
        "task": manifest.task,
        "method": manifest.method,
        "parent": manifest.parent,
        "size": artifact.size,
        "holds_claim": holds_claim,
        "manifest": dump_manifest(manifest),
    }


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time, UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _manifest(text: str) -> TaskManifest:
    """What a row says, parsed; that of a row that is read again and again only once."""
    found = _manifests.get(text)
    if found is None:
        found = parse_manifest(text, TaskManifest, "registry")
        _manifests.put(text, found, MANIFEST_SHARE * len(text))
    return found


def _version(row: RowMapping) -> Version:
    try:
        manifest = _manifest(row["manifest"])
    except FormatError as error:
        raise StoreCorrupt(
            f"the registry's row of version {row['digest']} is damaged ({error}); restore it from a backup"
        ) from error
    return Version(
        version=row["digest"],
        task=row["task"],
        method=row["method"],
        parent=row["parent"],
        state=row["state"],
        size=row["size"],
        created=moment(row["created"]),
        manifest=manifest,
        holds_claim=row["holds_claim"],
        seq=row["seq"],
    )


def _labelled(version: Version, pointing: Mapping[str, str]) -> Version:
    return replace(version, labels=tuple(label for label, digest in pointing.items() if digest == version.version))


def _event(row: RowMapping) -> Event:
    known = {name: row[name] for name in ("seq", "actor", "kind", "task", "version")}
    return Event(**known, time=moment(row["time"]), detail=json.loads(row["detail"]))


def _probe_key(version: str, engine: str, device: str, dtype: str) -> tuple[ColumnElement[bool], ...]:
    c = probes.c
    return (c.version == version, c.engine == engine, c.device == device, c.dtype == dtype)
