"""What a store holds, as plain data: what `ls` and `show` print, and their `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bitmask import entropy_bound
from .errors import StoreCorrupt
from .manifest import MaskInfo
from .methods.clnp import units_of
from .records import Task, Version
from .store import Store
from .unit_claims import CLNP


def list_tasks(store: Store) -> dict[str, Any]:
    """All tasks of a store with what stands in the registry alone; no blob is read."""
    versions = {version.version: version for version in store.versions()}
    return {
        "store": str(store.path),
        "backbone": store.backbone_digest,
        "tasks": [_summary(task, versions) for task in store.tasks()],
    }


def describe_task(store: Store, name: str) -> dict[str, Any]:
    """One task: labels, versions with their lineage, accuracy, bytes and mask sizes, and what is free in the store.

    `capacity` counts what the store's tasks take, which its `of` says: `weights` or `units`.

    Raises:
        NotFound: no such task.
    """
    task = store.task(name)
    versions = store.versions(name)
    shown = shown_version(task, versions)
    return {
        "task": task.name,
        "method": shown.method,
        "classes": list(shown.manifest.classes),
        "labels": dict(task.labels),
        "created": task.created.isoformat(),
        "versions": [_version(store, version) for version in versions],
        "capacity": _capacity(store),
    }


def free_unit_counts(store: Store) -> dict[str, int]:
    """Group -> units of which no version owns a weight, in the network's order."""
    graph = store.backbone.units
    taken = units_of(graph, {name: ~free for name, free in store.free_positions().items()})
    return {group: int((~mask).sum()) for group, mask in taken.items()}


def shown_version(task: Task, versions: Sequence[Version]) -> Version:
    """The version that stands for a task: `stable`, else the newest that answers, else the newest."""
    stable = [version for version in versions if "stable" in version.labels]
    ready = [version for version in versions if version.state == "ready"]
    if not versions:
        raise StoreCorrupt(f"task {task.name!r} has no version; `taskpack verify` tells more")
    return (stable or ready or versions)[-1]


def first_method(store: Store) -> str:
    """The method that a store's first task can be trained with, without further flags."""
    if store.capacity == "units":
        return "clnp"
    return "packnet" if any(free for free, _ in store.capacity_left().values()) else "clr"


def _summary(task: Task, versions: dict[str, Version]) -> dict[str, Any]:
    own = [versions[digest] for digest in task.versions if digest in versions]
    shown = shown_version(task, own)
    return {
        "task": task.name,
        "method": shown.method,
        "classes": len(shown.manifest.classes),
        "labels": dict(task.labels),
        "versions": len(own),
        "retired": sum(version.state == "retired" for version in own),
        "test_top1": shown.manifest.metrics.test_top1,
        "size": shown.size,
        "created": task.created.isoformat(),
    }


def _version(store: Store, version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "version": version.version,
        "state": version.state,
        "labels": list(version.labels),
        "method": version.method,
        "parent": version.parent,
        "lineage": _lineage(store, version),
        "created": version.created.isoformat(),
        "classes": list(manifest.classes),
        "metrics": manifest.metrics.model_dump(mode="json"),
        "size": version.size,
        "masks": _claim_sizes(store, version),
        "selection": _mask_bytes(store, version, manifest.selections),
    }


def _capacity(store: Store) -> dict[str, Any]:
    if store.capacity == "units":
        free, sizes = free_unit_counts(store), store.backbone.units.sizes
        return {"of": "units", "free": sum(free.values()), "total": sum(sizes.values())}
    counts = store.capacity_left().values()
    return {"of": "weights", "free": sum(free for free, _ in counts), "total": sum(total for _, total in counts)}


def _claim_sizes(store: Store, version: Version) -> dict[str, Any]:
    """Sizes of the masks that code a claim; `ones` counts weights or, of clnp, the units in use, each of them once."""
    claims = version.manifest.claims
    sizes = _mask_bytes(store, version, claims)
    if version.method != CLNP:
        return sizes
    ones = {
        kind: sum(info.ones for name, info in claims.items() if name.startswith(f"{kind}/"))
        for kind in ("units", "new_units")
    }
    return {**sizes, "of": "units", "ones": ones["units"], "new": ones["new_units"]}


def _lineage(store: Store, version: Version) -> list[dict[str, str]]:
    """Root first, the version itself last."""
    lineage = store.lineage(version.version)
    return [{"task": artifact.manifest.task, "version": artifact.version} for artifact in lineage]


def _mask_bytes(store: Store, version: Version, masks: Mapping[str, MaskInfo]) -> dict[str, Any]:
    """Sizes of some masks of a version together: one bit a position, as coded, and what no code can beat."""
    artifact = store.artifact(version.version)
    return {
        "of": "weights",
        "raw": sum((info.bits + 7) // 8 for info in masks.values()),
        "coded": sum(artifact.tensors[name].numel() for name in masks),
        "entropy_bound": round(sum(entropy_bound(info.bits, info.ones) for info in masks.values())),
        "ones": sum(info.ones for info in masks.values()),
    }
