"""Bring a lineage of artifacts to the engine: pooled weights and what the task lays over them, or a network cut out."""

from __future__ import annotations

from collections.abc import Sequence

from masks_store import Artifact, Backbone, View, cut_view, overlay_of, selection_of, view_of

from .engine import DeviceOverlay, Engine


def load_units(
    engine: Engine, backbone: Backbone, lineage: Sequence[Artifact], dtype: str, view: View | None = None
) -> DeviceOverlay:
    """Bring a task with units to the device: the smaller dense network of its units, cut out of the shared one.

    Args:
        engine, backbone: see the module.
        lineage: root first, the task itself last.
        dtype: to compute in.
        view: the task's, where it is at hand.
    """
    small = cut_view(backbone, view or view_of(backbone, lineage))
    return engine.load(small.version, small.overlay, dtype, folds=folds(lineage), weights=small.weights)


def load_pooled(engine: Engine, backbone: Backbone, lineage: Sequence[Artifact], dtype: str) -> DeviceOverlay:
    """Bring a task to the device whose lineage's claims are all in the engine's pool."""
    shown = None
    if any(artifact.manifest.masks for artifact in lineage):
        claims = [artifact.version for artifact in lineage if artifact.manifest.claims]
        shown = engine.shared.shown(dtype, claims, selection_of(backbone, lineage))
    return engine.load(lineage[-1].version, overlay_of(lineage), dtype, folds=folds(lineage), shown=shown)


def folds(lineage: Sequence[Artifact]) -> bool:
    """Whether a task's norm goes into its view: not where it brings one to weights that others chose.

    Many such tasks share those weights, and so one forward. Where an adapter stands between, its own or an
    ancestor's, the norm goes into that.
    """
    if any(artifact.of_kind("adapter") for artifact in lineage):
        return False
    for artifact in reversed(lineage):
        if artifact.manifest.masks:
            return True
        if any(name.startswith("norm/") for name in artifact.tensors):
            return False
    return True


def in_pool(engine: Engine, lineage: Sequence[Artifact]) -> bool:
    """Whether all claims of a lineage are in the engine's pool."""
    return {artifact.version for artifact in lineage if artifact.manifest.claims} <= engine.shared.claims()
