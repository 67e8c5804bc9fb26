"""An engine with tasks in it, without store or threads, and the eager reference of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from masks_store import (
    Artifact,
    Backbone,
    Claim,
    bind,
    claimed_values,
    decode_claim,
    lineage_claims,
    normalise,
    probe_faults,
    read_artifact,
    to_batch,
    view_of,
    weights_key,
)
from service.engine import DeviceOverlay, Engine, Kernels, Logits, Pictures, Sight
from service.engine.ways import Ways
from service.lineages import load_pooled, load_units

from .. import zoo


def pictures(backbone: Backbone, n: int, seed: int) -> Pictures:
    """uint8 [n, size, size, 3] of noise."""
    size = backbone.manifest.image_size
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def reference(backbone: Backbone, lineage: Sequence[Artifact], images: Pictures) -> torch.Tensor:
    """Logits [N, classes] of the eager reference."""
    view = view_of(backbone, lineage)
    return bind(backbone, view)(normalise(to_batch(images), view.preprocess))


def check(expected: torch.Tensor, got: Logits, task: str = "") -> None:
    """Raise unless logits are the reference's within the probe's fp32 bound."""
    faults = probe_faults(expected, torch.from_numpy(got))
    assert not faults, f"{task}: {faults}"


PICK = 0.7
KINDS: tuple[tuple[str, str, str | None, bool], ...] = (
    ("clr-a", "clr", None, False),
    ("packnet-norm", "packnet", None, True),
    ("packnet-norm-child", "packnet", "packnet-norm", False),
    ("clr-on-child", "clr", "packnet-norm-child", False),
    ("linear-on-child", "linear", "packnet-norm-child", False),
    ("clr-b", "clr", None, False),
    ("bn", "bn", None, False),
    ("linear", "linear", None, False),
    ("packnet", "packnet", None, False),
    ("packnet-child", "packnet", "packnet", False),
    ("clr-on-packnet", "clr", "packnet", False),
    ("bn-on-packnet", "bn", "packnet", False),
    ("piggyback", "piggyback", None, True),
    ("clr-on-piggyback", "clr", "piggyback", False),
    ("linear-on-piggyback", "linear", "piggyback", False),
    ("piggyback-on-child", "piggyback", "packnet-norm-child", False),
    ("picked", "packnet --pick", "packnet-norm", False),
    ("clr-on-picked", "clr", "picked", False),
    ("linear-on-picked", "linear", "picked", False),
    ("packnet-on-picked", "packnet", "picked", True),
    ("packnet-on-piggyback", "packnet", "piggyback-on-child", False),
    ("packnet-on-clr", "packnet", "clr-a", True),
    ("piggyback-on-clr", "piggyback", "clr-a", False),
)
"""Name, method, base, own norm: every method on every kind of base."""
BRIEF = KINDS[:4]
"""Enough of them for a network whose artifacts take seconds to make."""


def lineages(
    backbone: Backbone, kinds: Sequence[tuple[str, str, str | None, bool]] = KINDS
) -> dict[str, list[Artifact]]:
    """Name -> lineage of one task of each kind; on a backbone without free weights those without packnet.

    Made once for each backbone file and kinds: no artifact ever changes.
    """
    key = backbone.digest, tuple(kinds)
    if backbone.digest == zoo.UNFILED or key not in _made:
        _made[key] = _lineages(backbone, kinds)
    return {name: list(lineage) for name, lineage in _made[key].items()}


_made: dict[object, dict[str, list[Artifact]]] = {}


def _lineages(backbone: Backbone, kinds: Sequence[tuple[str, str, str | None, bool]]) -> dict[str, list[Artifact]]:
    tasks: dict[str, list[Artifact]] = {}
    taken: list[Claim] = []
    for name, method, on, own_norm in kinds:
        method, _, picks = method.partition(" --")
        if backbone.manifest.keep == 1.0 and (method == "packnet" or (on and on not in tasks)):
            continue
        ancestors = tasks[on] if on else []
        data = zoo.task(
            backbone,
            name,
            method,
            ancestors=ancestors,
            taken=taken,
            seed=len(tasks),
            classes=2 + len(tasks),
            own_norm=own_norm,
            pick=PICK if picks else None,
            hashed=backbone.digest != zoo.UNFILED,
        )
        tasks[name] = [*ancestors, read_artifact(data)]
        if method in ("packnet", "clnp"):
            taken.append(lineage_claims(backbone, tasks[name])[-1])
    return tasks


@dataclass
class Rig:
    """An engine that holds tasks.

    Attributes:
        backbone: the shared network.
        engine: on the CPU unless told otherwise.
        tasks: name -> lineage.
        loaded: name -> the task on the device.
    """

    backbone: Backbone
    engine: Engine
    dtype: str = "fp32"
    tasks: dict[str, list[Artifact]] = field(default_factory=dict[str, list[Artifact]])
    loaded: dict[str, DeviceOverlay] = field(default_factory=dict[str, DeviceOverlay])

    def add(self, name: str, lineage: list[Artifact]) -> None:
        if any(artifact.manifest.method == "clnp" for artifact in lineage):
            self.tasks[name] = lineage
            self.loaded[name] = load_units(self.engine, self.backbone, lineage, self.dtype)
            return
        held = self.engine.shared.claims()
        for depth, artifact in enumerate(lineage):
            if artifact.manifest.claims and artifact.version not in held:
                ancestors = [self.engine.shared.claim_of(a.version) for a in lineage[:depth] if a.manifest.claims]
                claim = decode_claim(artifact, self.backbone, ancestors)
                self.engine.claim(artifact.version, claim, claimed_values(artifact, self.backbone))
        self.tasks[name] = lineage
        self.loaded[name] = load_pooled(self.engine, self.backbone, lineage, self.dtype)

    def sight(self, name: str) -> Sight:
        lineage = self.tasks[name]
        if any(artifact.manifest.method == "clnp" for artifact in lineage):
            return Sight(weights_key(self.backbone, lineage), ())
        return Sight(weights_key(self.backbone, lineage), tuple(a.version for a in lineage if a.manifest.claims))

    def run(self, names: Sequence[str], images: Sequence[Pictures]) -> list[Logits]:
        sights = {self.sight(name) for name in names}
        assert len(sights) == 1, "requests of one forward must see the same weights"
        return self.engine.run(sights.pop(), self.dtype, images, [self.loaded[name] for name in names])


def rig(
    backbone: Backbone,
    kinds: Sequence[tuple[str, str, str | None, bool]] = KINDS,
    *,
    slot_bytes: int = 1 << 28,
    kernels: Kernels | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    onednn: bool = True,
    native: bool = True,
    ways: Ways | None = None,
    graph_bytes: int | None = None,
) -> Rig:
    """A rig with one task of each kind."""
    engine = Engine(
        backbone,
        device=device,
        slot_bytes=slot_bytes,
        kernels=kernels,
        onednn=onednn,
        native=native,
        ways=ways,
        graph_bytes=graph_bytes,
    )
    made = Rig(backbone, engine, dtype)
    for name, lineage in lineages(backbone, kinds).items():
        made.add(name, lineage)
    return made
