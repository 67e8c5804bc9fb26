"""The store: a backbone, all versions of all tasks, and the registry that names them; one directory.

Nothing is ever overwritten, and a crash at any instruction leaves the old state or the new one. One `Store` may be
used from many threads, and one directory from many processes at once.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Self

from torch import Tensor

from . import registration, removal
from .artifact import Artifact, read_artifact
from .backbones import Backbone, BackboneFile, read_backbone
from .blobs import Blobs
from .cache import Recent
from .creation import create_store, read_settings
from .errors import FormatError, NotFound, PreconditionFailed, StoreCorrupt
from .files import Files, clean_temp, write_file
from .ledger import Ledger, StoredClaims
from .lookup import check_label, find_task, find_version
from .owners import Claim
from .probe import Prober, eager_prober
from .process import origin
from .records import Event, ProbeResult, Registered, Task, Version
from .registry import Registry
from .reservations import Reservation, reserve
from .takers import Takers
from .verify import store_faults
from .views import View, lineage_claims, view_of

CACHE_BYTES = 256 << 20


class Store:
    """An open store; made by `Store.create` or `Store.open`.

    Attributes:
        path: its directory.
        backbone_digest: the digest of its backbone file.
        capacity: what tasks take: `weights` or `units`.
        blobs, registry: its parts, for this package's own modules.
    """

    def __init__(self, path: Path, backbone_digest: str, capacity: str, files: Files | None = None) -> None:
        self.path = path
        self.backbone_digest = backbone_digest
        self.capacity = capacity
        self.blobs = Blobs(path / "blobs", files)
        self.registry = Registry(path / "registry.sqlite3")
        self._backbone: Backbone | None = None
        self._lock = threading.Lock()
        self._artifacts: Recent[Artifact] = Recent(CACHE_BYTES)
        self._ledger = Ledger(self.registry, lambda: self.backbone, self.artifact)

    @classmethod
    def create(
        cls, path: Path | str, backbone: BackboneFile, *, capacity: str = "weights", files: Files | None = None
    ) -> Self:
        """Make a new store; it is there whole or not at all.

        Args:
            path: a directory that does not exist, or is empty.
            backbone: its backbone file and, where it was pruned, the dense weights it came from.
            capacity: `weights`, or `units` (for clnp) of a backbone that keeps nothing.
            files: the steps by which files are written.

        Raises:
            InvalidInput: something is at `path` already, or it cannot be written.
            FormatError: not a backbone file.
            OutOfCapacity: the disk is full; nothing is left behind.
        """
        create_store(Path(path), backbone, capacity, files or Files())
        return cls.open(path, files=files)

    @classmethod
    def open(cls, path: Path | str, *, files: Files | None = None) -> Self:
        """Open a store, and remove what killed processes left unfinished in it.

        Raises:
            NotFound: there is no store.
            InvalidInput: it was made by a newer taskpack.
            StoreCorrupt: a part of it is missing or damaged.
        """
        path = Path(path)
        settings = read_settings(path)
        store = cls(path, settings.backbone, settings.capacity, files)
        store.registry.check()
        store.blobs.clean_temp()
        for run in store.runs.glob("*/"):
            clean_temp(store.blobs.files, run)
        return store

    def waiting(self, seconds: float) -> Self:
        """The same store through connections of its own, whose writers wait at most so long for others.

        Args:
            seconds: until `RegistryLocked`.
        """
        other = copy.copy(self)
        other.registry = self.registry.waiting(seconds)
        return other

    def close(self) -> None:
        """Close the registry's connections; a later call opens them again."""
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ what there is
    @property
    def runs(self) -> Path:
        """Directory of training runs: settings, results.csv, checkpoints."""
        return self.path / "runs"

    @property
    def backbone(self) -> Backbone:
        """The backbone, read and verified once."""
        with self._lock:
            if self._backbone is None:
                self._backbone = self._read_backbone(self.backbone_digest)
            return self._backbone

    def _read_backbone(self, digest: str) -> Backbone:
        data = self.blobs.get(digest)
        try:
            return read_backbone(data)
        except FormatError as error:
            raise StoreCorrupt(f"the backbone of this store cannot be read: {error}", error.faults) from error

    def dense(self) -> Backbone:
        """The backbone before anything was pruned from it; the backbone itself where no such weights are kept.

        That is where nothing was pruned, and where all was (`keep` 0).
        """
        source = self.backbone.manifest.source
        return self.backbone if source is None else self._read_backbone(source)

    def tasks(self) -> list[Task]:
        """All tasks by name."""
        with self.registry.read() as transaction:
            return transaction.tasks()

    def task_count(self) -> int:
        """How many tasks there are: one query, however many."""
        with self.registry.read() as transaction:
            return transaction.task_count()

    def has_task(self, name: str) -> bool:
        """Whether the task has a version, in whatever state."""
        with self.registry.read() as transaction:
            return transaction.has_task(name)

    def task(self, name: str) -> Task:
        """One task, or `NotFound`."""
        with self.registry.read() as transaction:
            return find_task(transaction, name)

    def task_page(
        self, *, after: str | None = None, limit: int, among: Collection[str] | None = None
    ) -> list[tuple[Task, list[Version]]]:
        """The first tasks by name with all their versions; as many queries however many there are.

        Args:
            after: only tasks whose names follow this one, which need not be there.
            limit: most tasks.
            among: only these tasks; None for all.
        """
        with self.registry.read() as transaction:
            return transaction.task_page(after, limit, among)

    def versions(self, task: str | None = None) -> list[Version]:
        """All versions, retired ones too, in the order of their registration; of one task, or `NotFound`."""
        with self.registry.read() as transaction:
            if task is not None:
                find_task(transaction, task)
            return transaction.versions(task)

    def resolve(self, task: str, version: str = "stable") -> Version:
        """The version that a request means; it answers (is not retired).

        Args:
            task: the task's name.
            version: a label, a digest, or at least 12 of its hex digits, with or without `sha256:`.

        Raises:
            NotFound: no such task, label or version, or it is retired.
            InvalidInput: not a version at all, or a prefix of several.
        """
        with self.registry.read() as transaction:
            return find_version(transaction, task, version)

    # ------------------------------------------------------------------ artifacts
    def artifact_bytes(self, version: str) -> bytes:
        """A version's file, its digest verified; versions that are retired or just deleted too.

        Raises:
            NotFound: this store never had it.
            StoreCorrupt: its blob is missing or damaged.
        """
        with self._known(version):
            return self.blobs.get(version)

    def open_artifact(self, version: str) -> BinaryIO:
        """A version's file, open at its start, its digest verified, for who reads it piece by piece and closes it.

        Raises:
            NotFound: this store never had it.
            StoreCorrupt: its blob is missing or damaged.
        """
        with self._known(version):
            return self.blobs.open(version)

    @contextmanager
    def _known(self, version: str) -> Generator[None]:
        """Tell a version that this store never had from one whose blob is damaged."""
        try:
            yield
        except StoreCorrupt:
            with self.registry.read() as transaction:
                if transaction.version(version) is None:
                    raise NotFound(f"no version {version} in this store") from None
            raise

    def artifact(self, version: str) -> Artifact:
        """A version's artifact; the last ones read are remembered."""
        found = self._artifacts.get(version)
        if found is None:
            try:
                found = read_artifact(self.artifact_bytes(version), version)
            except FormatError as error:
                raise StoreCorrupt(f"version {version} cannot be read: {error}", error.faults) from error
            self._artifacts.put(version, found, found.size)
        return found

    def lineage(self, version: str) -> tuple[Artifact, ...]:
        """The artifacts that a version is built on, root first, itself last."""
        artifact = self.artifact(version)
        return (*self.ancestors(artifact), artifact)

    def ancestors(self, artifact: Artifact) -> tuple[Artifact, ...]:
        """The artifacts that one is built on, root first; it need not be in the store itself."""
        found: list[Artifact] = []
        parent = artifact.manifest.parent
        while parent is not None:
            found.append(self.artifact(parent))
            parent = found[-1].manifest.parent
        return tuple(reversed(found))

    def view(self, version: str) -> View:
        """How a version sees the shared network."""
        return view_of(self.backbone, self.lineage(version))

    def export(self, version: str, path: Path | str) -> None:
        """Write a version's file; whole or not at all.

        Raises:
            InvalidInput: it cannot be written there.
            OutOfCapacity: the disk is full.
        """
        write_file(Path(path), self.artifact_bytes(version))

    # ------------------------------------------------------------------ claims
    def claim(self, version: str) -> Claim:
        """The weights that a version took: parameter name -> bool of its shape."""
        held = self._ledger.claim(version)
        return held if held is not None else lineage_claims(self.backbone, self.lineage(version))[-1]

    def known_claim(self, version: str) -> Claim | None:
        """`claim` of a version whose claim was decoded in this process before, by a registration say; else None.

        Waits for nobody: None as well while other claims are being decoded.
        """
        return self._ledger.known(version)

    def takers_of(self, lineage: Sequence[Artifact]) -> Takers:
        """The claims of a lineage, root first; those of a lineage that the store holds are not decoded again."""
        held = self._ledger.takers(lineage)
        return Takers.of(lineage_claims(self.backbone, lineage)) if held is None else held

    def claims(self) -> Mapping[str, Claim]:
        """Version -> claim, of every version that holds one, retired ones too; made one by one as they are read."""
        with self.registry.read() as transaction:
            return StoredClaims(transaction.claim_holders(), self.claim)

    def read_claims(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Decode all claims that are not decoded yet, so that the next registration need not; until `stop` says so."""
        self._ledger.update(stop)

    def note_claim(self, version: str, claim: Claim) -> None:
        """Take in the claim of a version that has just been registered, as it was decoded then."""
        if claim:
            self._ledger.note(version, claim)

    def overlap(self, version: str, claim: Claim) -> list[str]:
        """What the claim of a version (in the store or not) takes that others own; one fault per owner and layer."""
        return self._ledger.overlap(version, claim) if claim else []

    def free_positions(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool of its shape: the weights that nobody owns."""
        return self._ledger.free()

    def capacity_left(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> how many of its weights are free, and how many it has."""
        return self._ledger.counts()

    def generation(self) -> int:
        """A number that changes whenever versions come or go, so whenever what is free may have changed."""
        with self.registry.read() as transaction:
            return transaction.counter("generation")

    def reserve(self, purpose: str) -> AbstractContextManager[Reservation]:
        """Hold the free weights for the length of a `with` block: for a run that will claim some.

        Raises:
            StoreReserved: another run holds them; the message names it.
        """
        return reserve(self.registry, purpose)

    # ------------------------------------------------------------------ changes
    def register(
        self,
        data: bytes,
        *,
        label: str = "auto",
        actor: str = "cli",
        prober: Prober = eager_prober,
    ) -> Registered:
        """Add a version, in one transaction: format, backbone, lineage, task digest, probe and claim are checked.

        Args:
            data: the artifact's bytes.
            label: `stable`, `canary`, `none`, or `auto`: a new task's version becomes `stable`, a new version of a task
                that answers already `canary`, and one that has a label keeps it.
            actor: who asks, for the event.
            prober: the engine that must reproduce the artifact's logits.

        Returns:
            The version, and whether it is new. A file that is registered already changes only its label, and takes the
            place of a blob that was damaged or lost; one that was retired answers again.

        Raises:
            FormatError, ProbeFailed: the artifact is unsound.
            BackboneMismatch, MissingParent, ClaimOverlap: it does not fit this store.
            OutOfCapacity: the disk is full.
            StoreUnwritable: no permission, a read-only file system or a failing disk.
        """
        return registration.register(self, data, label=label, actor=actor, prober=prober)

    def set_label(
        self,
        task: str,
        label: str,
        version: str,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        actor: str = "cli",
    ) -> Version:
        """Point a label at a version that answers.

        Args:
            task: the task's name.
            label: `stable` or `canary`.
            version: anything that `resolve` takes.
            if_match: the digest that the label must point at now.
            if_none_match: the label must not be there yet.
            actor: who asks, for the event.

        Raises:
            InvalidInput: not a label, or not a version.
            NotFound: no such task or version.
            PreconditionFailed: the label is elsewhere.
        """
        check_label(label)
        with self.registry.write() as transaction:
            found = find_version(transaction, task, version)
            before = transaction.labels(task).get(label)
            _check_label_is(task, label, before, if_match, if_none_match)
            if before != found.version:
                transaction.set_label(task, label, found.version)
                transaction.log(actor, "label", task, found.version, origin() | {"label": label, "before": before})
            return find_version(transaction, task, found.version)

    def drop_label(self, task: str, label: str, *, if_match: str | None = None, actor: str = "cli") -> None:
        """Take a label away.

        Raises:
            InvalidInput: not a label.
            NotFound: no such task, or it has no such label.
            PreconditionFailed: it does not point at `if_match`.
        """
        check_label(label)
        with self.registry.write() as transaction:
            before = find_task(transaction, task).labels.get(label)
            _check_label_is(task, label, before, if_match, False)
            if before is None:
                raise NotFound(f"task {task!r} has no label {label}")
            removal.drop_label(transaction, task, label, before, actor)

    def delete_version(
        self, task: str, version: str, *, retire: bool = False, actor: str = "cli"
    ) -> Literal["deleted", "retired"]:
        """Delete a version, which frees its claim at once; its blob stays until `gc`.

        Args:
            task: the task's name.
            version: anything that `resolve` takes; a retired one too.
            retire: where others are built on it, retire it: it answers no more and keeps its claim.
            actor: who asks, for the event.

        Raises:
            NotFound: no such task or version.
            VersionInUse: it has a label, or others are built on it and `retire` is not given; with their names.
        """
        with self.registry.write() as transaction:
            return removal.delete_version(transaction, task, version, retire=retire, actor=actor)

    def delete_task(self, task: str, *, retire: bool = False, actor: str = "cli") -> None:
        """Delete a task with all its labels and versions, or nothing.

        Args:
            task: the task's name.
            retire: keep, retired, those of its versions that other tasks are built on.
            actor: who asks, for the events.

        Raises:
            NotFound: no such task.
            VersionInUse: other tasks are built on it and `retire` is not given; with their names.
        """
        with self.registry.write() as transaction:
            removal.delete_task(transaction, task, retire=retire, actor=actor)

    # ------------------------------------------------------------------ events, probes, faults
    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """The changes that follow number `after`, in the order in which they took effect."""
        with self.registry.read() as transaction:
            return transaction.events(after, limit)

    def last_event(self) -> int:
        """The number of the last change.

        Raises:
            StoreReplaced: another store, or an older copy of it, lies where this one was opened.
        """
        return self.registry.last_event()

    def probe_result(self, version: str, engine: str, device: str, dtype: str) -> ProbeResult | None:
        """What is recorded of a version's probe on an engine build, device and dtype."""
        with self.registry.read() as transaction:
            return transaction.probe(version, engine, device, dtype)

    def probe_results(self, engine: str, device: str, dtype: str) -> dict[str, ProbeResult]:
        """Version -> what is recorded of its probe on an engine build, device and dtype, in one reading."""
        with self.registry.read() as transaction:
            return transaction.probes(engine, device, dtype)

    def record_probe(self, version: str, engine: str, device: str, dtype: str, ok: bool, detail: str = "") -> None:
        """Record a probe's result; of a version that is gone meanwhile, nothing."""
        with self.registry.write() as transaction:
            if transaction.version(version) is not None:
                transaction.record_probe(version, engine, device, dtype, ok, detail)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Every fault of the store: blobs, rows, lineages, claims, digests, probes; empty when it is sound.

        Args:
            progress: called with the number of versions checked and of all.
        """
        return store_faults(self, progress)


def _check_label_is(task: str, label: str, before: str | None, if_match: str | None, if_none_match: bool) -> None:
    if if_none_match and before is not None:
        raise PreconditionFailed(f"label {label} of task {task!r} is there already, at {before}")
    if if_match is not None and if_match != before:
        is_at = f"is at {before}" if before else "is not there"
        raise PreconditionFailed(f"label {label} of task {task!r} {is_at}, not at {if_match}; read it again")
