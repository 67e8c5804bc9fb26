"""Small stores for tests, and artifacts that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from masks_store import Artifact, Backbone, BackboneFile, Claim, Store, View, create
from tests import zoo


@cache
def backbone_file(keep: float = 0.5) -> BackboneFile:
    """The backbone of every store here: tinyresnet, 16 pixels."""
    return create("tinyresnet", image_size=16, keep=keep, arch_args={"width": 4})


def new_store(path: Path, keep: float = 0.5) -> Store:
    """An empty store."""
    return Store.create(path, backbone_file(keep))


def same_logits(_: Backbone, lineage: Sequence[Artifact], _view: View) -> Tensor:
    """A `Prober` for tests that are not about probes: says at once what the artifact says."""
    return lineage[-1].tensors["probe.logits"]


def artifact(
    store: Store,
    name: str,
    method: str = "packnet",
    *,
    on: str | None = None,
    seed: int = 0,
    avoid: bool = True,
    share: float = 0.2,
    pick: float | None = None,
) -> bytes:
    """A valid artifact for a store.

    Args:
        store: gives the backbone, and the lineage of `on`.
        name: the task's name.
        method: packnet, piggyback, clr, clnp, bn or linear.
        on: version it is built on.
        seed: of its values.
        avoid: leave the claims alone that are in the store.
        share: part of the free weights that a packnet task claims, or of the free units that a clnp task adds.
        pick: part of its lineage's weights that a packnet task goes on seeing; None: all.
    """
    taken: list[Claim] = list(store.claims().values()) if avoid else []
    ancestors = store.lineage(on) if on else ()
    return zoo.task(store.backbone, name, method, ancestors=ancestors, taken=taken, seed=seed, share=share, pick=pick)


def state(store: Store) -> object:
    """All that a refused change must leave alone."""
    return store.tasks(), store.versions(), store.last_event(), store.generation(), sorted(store.blobs)
