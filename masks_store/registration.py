"""Registering a version as a transaction: checked against the claims of one generation, committed only under the same.

The order: check what the bytes alone decide; put and fsync the blob; then, until it holds, check against the claims of
generation g and commit in one short transaction that does nothing unless the generation is still g. Of two that claim
the same weight, whoever commits second finds another generation, checks again, and is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .admission import check_backbone, check_capacity, check_content
from .artifact import Artifact, read_artifact
from .errors import ClaimOverlap, MissingParent
from .lookup import check_label
from .owners import Claim
from .probe import Prober, eager_prober
from .process import origin
from .records import Registered
from .transaction import Transaction

if TYPE_CHECKING:
    from .store import Store

EAGER = f"eager torch {torch.__version__}"
"""The engine build under which a probe by the eager reference is recorded."""


def register(store: Store, data: bytes, *, label: str, actor: str, prober: Prober) -> Registered:
    """See `Store.register`."""
    if label not in ("auto", "none"):
        check_label(label)
    artifact = read_artifact(data)
    known = _relabel(store, artifact, data, label, actor)
    if known is not None:
        return known
    check_backbone(artifact, store.backbone)
    check_capacity(artifact, store.capacity)
    _check_parent(store, artifact)
    ancestors = store.ancestors(artifact)
    claim = check_content(artifact, store.backbone, ancestors, prober, store.takers_of(ancestors))
    generation = _check_place(store, artifact, claim)
    store.blobs.put(data)
    while True:
        with store.registry.write() as transaction:
            if _is_ready(transaction, artifact):  # another process registered the same file meanwhile
                return _labelled(transaction, artifact, label, actor)
            if transaction.counter("generation") == generation:
                _insert(transaction, artifact, holds_claim=bool(claim), label=label, actor=actor)
                if prober is eager_prober:
                    transaction.record_probe(artifact.version, EAGER, "cpu", "fp32", True, "")
                registered = _registered(transaction, artifact, created=True)
                break
        generation = _check_place(store, artifact, claim)
    store.note_claim(artifact.version, claim)
    return registered


def _check_place(store: Store, artifact: Artifact, claim: Claim) -> int:
    """Check an artifact against the other versions; the generation under which the answer holds."""
    generation = store.generation()  # first: what changes after this line changes the generation too
    _check_parent(store, artifact)
    faults = store.overlap(artifact.version, claim)
    if faults:
        raise ClaimOverlap(
            f"task {artifact.manifest.task!r} claims weights that others own; train it on the store as it is now",
            faults,
        )
    return generation


def _check_parent(store: Store, artifact: Artifact) -> None:
    parent = artifact.manifest.parent
    if parent is None:
        return
    with store.registry.read() as transaction:
        if transaction.version(parent) is None:
            raise MissingParent(
                f"task {artifact.manifest.task!r} is built on version {parent}, which is not in this store; "
                "register that one first (`taskpack push STORE TASK` sends missing ancestors)"
            )


def _relabel(store: Store, artifact: Artifact, data: bytes, label: str, actor: str) -> Registered | None:
    """The answer for an artifact that answers already: its label moves, nothing else; None for any other.

    Where its blob was damaged or lost the bytes are put there again, and an event tells those who serve it.
    """
    with store.registry.read() as transaction:
        if not _is_ready(transaction, artifact):
            return None
    mended = store.blobs.fault(artifact.version) is not None
    if mended:
        store.blobs.put(data)
    with store.registry.write() as transaction:
        if not _is_ready(transaction, artifact):
            return None
        if mended:
            transaction.log(actor, "register", artifact.manifest.task, artifact.version, origin() | {"mended": True})
        return _labelled(transaction, artifact, label, actor)


def _labelled(transaction: Transaction, artifact: Artifact, label: str, actor: str) -> Registered:
    _label(transaction, artifact, label, actor)
    return _registered(transaction, artifact, created=False)


def _insert(transaction: Transaction, artifact: Artifact, *, holds_claim: bool, label: str, actor: str) -> None:
    transaction.advance("generation")
    detail = origin() | {"method": artifact.manifest.method, "parent": artifact.manifest.parent, "size": artifact.size}
    seq = transaction.log(actor, "register", artifact.manifest.task, artifact.version, detail)
    if transaction.version(artifact.version) is None:
        transaction.add_version(artifact, holds_claim, seq)
    else:
        transaction.set_state(artifact.version, "ready")
    _label(transaction, artifact, label, actor)


def _label(transaction: Transaction, artifact: Artifact, label: str, actor: str) -> None:
    """Point the label that `label` means at the version.

    `auto` leaves a version alone that has one already; it makes a task's only version `stable`, be it new or one that
    came before as another's ancestor, and any other `canary`.
    """
    task, labels = artifact.manifest.task, transaction.labels(artifact.manifest.task)
    if label == "auto":
        if artifact.version in labels.values():
            return
        others = [v for v in transaction.versions(task) if v.state == "ready" and v.version != artifact.version]
        label = "canary" if others else "stable"
    if label != "none" and labels.get(label) != artifact.version:
        detail = origin() | {"label": label, "before": labels.get(label)}
        transaction.set_label(task, label, artifact.version)
        transaction.log(actor, "label", task, artifact.version, detail)


def _is_ready(transaction: Transaction, artifact: Artifact) -> bool:
    known = transaction.version(artifact.version)
    return known is not None and known.state == "ready"


def _registered(transaction: Transaction, artifact: Artifact, *, created: bool) -> Registered:
    """What this transaction leaves: read in it, because others may change it as soon as it has ended."""
    (task,) = transaction.tasks(artifact.manifest.task)
    own = transaction.versions(task.name)
    row = next(version for version in own if version.version == artifact.version)
    return Registered(row, created, task, tuple(own))
