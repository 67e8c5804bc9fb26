"""Which versions this replica holds, kept in step with the store's events; who uses them; what they need loaded.

A version's claim lies in the engine's pool from the event that registered it to the moment, after the event that
deleted it, when nobody uses it any more: only then may a later claim take its positions. Events are applied strictly
in order, so a registration waits for the leases of what was deleted before it. What a task lays over the shared
weights is read from the store when it is first asked for, and kept within a number of bytes.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from masks_store import (
    Artifact,
    FormatError,
    NotFound,
    Recent,
    Selection,
    Store,
    TaskManifest,
    TaskpackError,
    claimed_values,
    decode_claim,
    decode_selection,
    overlay_of,
)

from .engine import DeviceOverlay, Engine, Sight, VersionFailed
from .host_artifacts import HostArtifacts
from .lineages import folds, load_units

log = logging.getLogger("taskpack.service")

Status = Literal["loading", "ready", "failed", "retired"]


@dataclass(eq=False)
class Record:
    """One version on this replica.

    Attributes:
        version: its digest.
        lineage: the records of what it is built on, root first, itself last.
        sight: the shared weights that it sees.
        claims: whether it holds a claim in the pool.
        selects: whether it hides some of what its lineage owns, from itself and from the order-free tasks on it.
        units: whether it runs a smaller network of its own: a clnp task, or what is built on one.
        retired: whether the store has retired it, whatever its status.
        placed: whether its claim is in the pool; where it holds none, whether its file could be read when it came.
        status: `loading` until its probe has passed here; `retired`: here for those that are built on it.
        reason: why it failed.
        dtype: what it is computed in, once ready.
        leases: requests that use it.
        readers: requests that use it or what is built on it.
        unused: who wants to know when the last lease ends.
        preparing: held by the thread that probes or loads it.
    """

    version: str
    lineage: tuple[Record, ...]
    sight: Sight
    claims: bool
    selects: bool = False
    units: bool = False
    retired: bool = False
    placed: bool = True
    status: Status = "loading"
    reason: str = ""
    dtype: str = "fp32"
    leases: int = 0
    readers: int = 0
    unused: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    preparing: threading.Lock = field(default_factory=threading.Lock)


class _InUse(Exception):
    """A claim's positions are still read by requests of a deleted version."""


class Residency:
    """The replica's versions. Every method may be called from any thread; those that read files say so.

    Args:
        store: the truth.
        engine: holds the pool.
        host_bytes: memory for coded artifacts.
        overlay_bytes: memory for tasks on the device, beyond those that requests are using.

    Attributes:
        artifacts: what it reads.
    """

    def __init__(self, store: Store, engine: Engine, *, host_bytes: int, overlay_bytes: int) -> None:
        self._store = store
        self._engine = engine
        self.artifacts = HostArtifacts(store, host_bytes)
        self._overlays: Recent[DeviceOverlay] = Recent(overlay_bytes)
        # alive in overlays:
        self._shown: weakref.WeakValueDictionary[tuple[str, str], Tensor] = weakref.WeakValueDictionary()
        self._records: dict[str, Record] = {}
        self._leaving: dict[str, Record] = {}  # deleted, and still in the pool
        self._seen = 0
        self._lock = threading.Lock()
        self._applying = threading.Lock()

    # ------------------------------------------------------------ following the store

    def start(self) -> None:
        """Take in all versions that the store has now. Reads files."""
        with self._applying:
            self._seen = self._store.last_event()  # first: what happens after this line comes again as an event
            for row in self._store.versions():
                if row.version not in self._records:
                    self._add(row.version, row.manifest, retired=row.state == "retired")

    def refresh(self) -> bool:
        """Apply the store's new events in order, as far as leases allow. Reads files.

        Returns:
            False where a registration has to wait for requests of a version that was deleted before it.
        """
        with self._applying:
            self._let_go()
            while events := self._store.events(self._seen):
                for event in events:
                    try:
                        if event.version is not None:
                            self._apply(event.kind, event.version)
                    except _InUse:
                        return False  # this event and what follows come again
                    self._seen = event.seq
            return True

    def _apply(self, kind: str, version: str) -> None:
        if kind == "register":
            self._register(version)
        elif kind == "retire":
            with self._lock:
                if version in self._records:
                    self._records[version].retired = True
                    self._records[version].status = "retired"
            self._forget_tensors(version)
        elif kind == "delete":
            with self._lock:
                record = self._records.pop(version, None)
                if record is not None:
                    self._leaving[version] = record
            self._let_go()

    def _register(self, version: str) -> None:
        with self._lock:
            known = self._records.get(version)
            if known is None and version in self._leaving:
                known = self._records[version] = self._leaving.pop(version)
        if known is not None:
            self._again(known)
            return
        try:
            manifest = self.artifacts.read(version).manifest
        except NotFound:
            return  # deleted since, and its blob is gone: nothing can ask for it
        except TaskpackError as error:
            log.error("version %s cannot be read: %s", version, error)
            row = next((row for row in self._store.versions() if row.version == version), None)
            if row is not None:
                self._add(version, row.manifest, retired=False, damaged=True)
            return
        self._add(version, manifest, retired=False)

    def _again(self, known: Record) -> None:
        """A version that is here was registered again: it was retired, or its damaged file was put in its place anew.

        What is built on it may have failed for its file's sake, and is tried again with it.
        """
        with self._lock:
            known.retired = False
            if known.status == "retired" and known.placed:
                known.status = "loading"
            concerned = [record for record in self._records.values() if known in record.lineage]
        for record in concerned:
            with record.preparing:  # a probe that read the old file says first what it found
                if record.status == "failed" or not record.placed:
                    self._take_in(record)

    def _add(self, version: str, manifest: TaskManifest, *, retired: bool, damaged: bool = False) -> None:
        with self._lock:
            parent = self._records.get(manifest.parent) if manifest.parent else None
        if manifest.parent and parent is None:
            log.error("version %s is built on %s, which is not in the store", version, manifest.parent)
            return
        ancestors = parent.lineage if parent else ()
        above = parent.sight if parent else Sight(self._store.backbone_digest, ())
        clnp = manifest.method == "clnp"  # its network is cut out of the shared one, and takes no room in the pool
        claims = bool(manifest.claims) and not clnp
        sight = Sight(version, (*above.claims, version) if claims else above.claims) if manifest.masks else above
        record = Record(
            version,
            ancestors,
            sight,
            claims,
            selects=bool(manifest.selections),
            units=clnp or (parent is not None and parent.units),
            retired=retired,
            placed=not claims and not damaged,
        )
        record.lineage = (*ancestors, record)
        self._take_in(record)
        with self._lock:
            self._records[version] = record

    def _take_in(self, record: Record) -> None:
        """Place a version's claim; what cannot be placed has failed, the rest is still to be probed.

        Raises:
            _InUse: as `_place`.
        """
        try:
            self._place(record)
        except TaskpackError as error:
            log.error("version %s cannot be loaded: %s", record.version, error)
            with self._lock:
                record.status, record.reason = "failed", "; ".join(error.faults)
        else:
            with self._lock:
                record.status, record.reason = "retired" if record.retired else "loading", ""

    def _place(self, record: Record) -> None:
        """Write a version's claim, if it holds one, into the pool; once.

        Raises:
            _InUse: a deleted version's requests still read these positions.
            FormatError: the positions are another's.
            VersionFailed: the claim of an ancestor could not be placed.
        """
        missing = next((a.version for a in record.lineage[:-1] if not a.placed), None)
        if missing is not None:
            raise VersionFailed(record.version, f"it is built on {missing}, which cannot be loaded")
        if record.placed:
            return
        artifact = self.artifacts.read(record.version)
        if record.claims:
            self._claim(record, artifact)
        record.placed = True
        self.artifacts.keep(artifact)

    def _claim(self, record: Record, artifact: Artifact) -> None:
        claim = self._store.known_claim(record.version)  # of the registration that this is the outcome of
        if claim is None:
            ancestors = [self._engine.shared.claim_of(a.version) for a in record.lineage[:-1] if a.claims]
            claim = decode_claim(artifact, self._store.backbone, ancestors)
        owners = self._engine.shared.owners_of(claim)
        with self._lock:
            leaving = [version for version in owners if version in self._leaving]
        if leaving:
            raise _InUse
        if owners:
            raise FormatError(f"{record.version}: its claim overlaps that of {', '.join(owners)}")
        self._engine.claim(record.version, claim, claimed_values(artifact, self._store.backbone))

    def _let_go(self) -> None:
        """Free the claims of deleted versions that nobody reads any more."""
        with self._lock:
            free = [record for record in self._leaving.values() if record.readers == 0]
            for record in free:
                del self._leaving[record.version]
        for record in free:
            self._forget_tensors(record.version)
            self.artifacts.forget(record.version)
            if record.claims:
                self._engine.release(record.version)

    # ------------------------------------------------------------ leases

    def lease(self, version: str) -> Record:
        """Hold a version, and what it is built on, until `release`.

        Raises:
            NotFound: this replica does not know it, or it is retired.
            VersionFailed: its probe fails on this device.
        """
        with self._lock:
            record = self._find(version)
            if record.status == "failed":
                raise VersionFailed(version, record.reason)
            self._count(record, 1)
            return record

    def hold(self, version: str) -> Record | None:
        """`lease` for the server's own work: whatever its status, deleted too; None for one that is not here."""
        with self._lock:
            record = self._records.get(version) or self._leaving.get(version)
            if record is not None:
                self._count(record, 1)
            return record

    def extend(self, record: Record) -> None:
        """Hold a leased version once more."""
        with self._lock:
            self._count(record, 1)

    def release(self, record: Record) -> None:
        """End one lease."""
        with self._lock:
            self._count(record, -1)
            waiting = record.unused if record.leases == 0 else []
            if waiting:
                record.unused = []
        for tell in waiting:
            tell()

    def when_unused(self, version: str, tell: Callable[[], None]) -> None:
        """Call `tell` once no request uses the version, from any thread; at once if none does."""
        with self._lock:
            record = self._records.get(version) or self._leaving.get(version)
            if record is not None and record.leases:
                record.unused.append(tell)
                return
        tell()

    def unload(self, version: str) -> None:
        """Give the memory of an unused version back; what was deleted leaves the pool."""
        self._forget_tensors(version)
        with self._applying:
            self._let_go()

    def _count(self, record: Record, by: int) -> None:
        record.leases += by
        for held in record.lineage:
            held.readers += by

    def _find(self, version: str) -> Record:
        record = self._records.get(version)
        if record is None:
            raise NotFound(f"no version {version} is served here")
        if record.status == "retired":
            raise NotFound(f"version {version} is retired and answers no more")
        return record

    # ------------------------------------------------------------ status

    def status(self, version: str) -> Status:
        """Where a version stands.

        Raises:
            NotFound: this replica does not know it.
        """
        with self._lock:
            record = self._records.get(version)
            if record is None:
                raise NotFound(f"no version {version} is served here")
            return record.status

    def counts(self) -> dict[str, int]:
        """Status -> number of versions."""
        with self._lock:
            statuses = [record.status for record in self._records.values()]
        return {status: statuses.count(status) for status in ("loading", "ready", "failed", "retired")}

    def unchecked(self) -> list[str]:
        """Versions whose probe has not run here, in the order of their registration."""
        with self._lock:
            return [record.version for record in self._records.values() if record.status == "loading"]

    def settle(self, record: Record, dtype: str | None, reason: str = "") -> None:
        """Note what a version's probe found: the dtype that it is computed in, or None and why it failed."""
        with self._lock:
            if record.status != "loading":
                return
            if dtype is None:
                record.status, record.reason = "failed", reason
            else:
                record.status, record.dtype = "ready", dtype

    def require_ready(self, record: Record) -> None:
        """Raise `VersionFailed` where a version's probe has failed."""
        with self._lock:
            if record.status == "failed":
                raise VersionFailed(record.version, record.reason)

    # ------------------------------------------------------------ tensors

    def loaded(self, record: Record, dtype: str) -> DeviceOverlay | None:
        """A leased version's own tensors on the device, if they are there."""
        return self._overlays.get((record.version, dtype))

    def load(self, record: Record, dtype: str) -> DeviceOverlay:
        """Bring a leased version's own tensors to the device. Reads files.

        Raises:
            StoreCorrupt: a file of its lineage is missing or damaged.
        """
        found = self.loaded(record, dtype)
        if found is None:
            found = self._load(record, dtype)
            self._overlays.put((record.version, dtype), found, found.size, self._part(record, dtype, found))
            if self._engine.device.type == "cpu":
                self.artifacts.drop(record.version)  # it lies in the same memory now, ready for use
        return found

    def _part(self, record: Record, dtype: str, task: DeviceOverlay) -> tuple[Hashable, int] | None:
        """What a task has in common with others, which counts once: a smaller network, or the bits of its sight."""
        if task.weights is not None:
            return task.weights.key, task.weights.nbytes
        return None if task.shown is None else ((record.sight.key, dtype), task.shown.numel())

    def _load(self, record: Record, dtype: str) -> DeviceOverlay:
        if record.units:
            lineage = [self.artifacts.whole(held.version) for held in record.lineage]
            return load_units(self._engine, self._store.backbone, lineage, dtype)
        lineage = [self.artifacts.get(held.version) for held in record.lineage]
        shown = self._shown_to(record, dtype)
        return self._engine.load(record.version, overlay_of(lineage), dtype, folds=folds(lineage), shown=shown)

    def _shown_to(self, record: Record, dtype: str) -> Tensor | None:
        """What a leased version sees; tasks with the same sight share it."""
        chooser = next((held for held in record.lineage if held.version == record.sight.key), None)
        if chooser is None:
            return None
        found = self._shown.get((chooser.version, dtype))
        if found is None:
            selection: Selection = {}
            if chooser.selects:
                above = [self._engine.shared.claim_of(held.version) for held in chooser.lineage[:-1] if held.claims]
                selection = decode_selection(self.artifacts.get(chooser.version), self._store.backbone, above)
            made = self._engine.shared.shown(dtype, record.sight.claims, selection)
            found = self._shown.setdefault((chooser.version, dtype), made)  # another thread may have been faster
        return found

    def _forget_tensors(self, version: str) -> None:
        self.artifacts.drop(version)
        for dtype in ("fp32", "bf16"):
            self._overlays.drop((version, dtype))
        self._engine.slots.drop(version)
