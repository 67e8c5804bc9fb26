"""No forgetting, proved: what every earlier task computes, before and after, bit for bit.

Before: as the store's files give it. After: from one pool in which every claim of the store stands, the new one
among them, as a server would hold it once the new version is registered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masks_store import (
    Artifact,
    Backbone,
    Claim,
    Pool,
    Store,
    TaskpackError,
    claimed_values,
    decode_claim,
    lineage_claims,
    reference_logits,
    seen_by,
    task_digest,
    unpack_images,
    view_of,
    view_with,
    weights_key,
)


class Forgotten(TaskpackError):
    """An earlier task would compute something else: nothing was registered."""


@dataclass(frozen=True)
class Witness:
    """What one version computes.

    Attributes:
        task: its name, for messages.
        digest: its task digest, recomputed.
        logits: of its probe, float32 [N, classes].
    """

    task: str
    digest: str
    logits: Tensor


def witnesses(store: Store) -> dict[str, Witness]:
    """Every version that answers -> what it computes now.

    Raises:
        Forgotten: a task already computes something else than its manifest says.
    """
    backbone = store.backbone
    found = _testify(store, lambda lineage: view_of(backbone, lineage).weights)
    faults = [
        f"{version.task} ({version.version[:19]}): not the task digest of its manifest"
        for version in store.versions()
        if version.version in found and found[version.version].digest != version.manifest.task_digest
    ]
    if faults:
        raise Forgotten("tasks here do not compute what they did when they were made; run taskpack verify", faults)
    return found


def check_unchanged(store: Store, before: Mapping[str, Witness], new: Artifact, ancestors: Sequence[Claim]) -> int:
    """Prove that no earlier task changes by a bit when `new` is in the pool.

    Args:
        store: without `new`.
        before: what `witnesses` found before the training.
        new: the finished artifact.
        ancestors: the claims of its lineage without itself.

    Returns:
        How many versions were compared.

    Raises:
        Forgotten: naming every version that would change.
    """
    backbone = store.backbone
    pool = Pool(backbone)
    for version, claim in store.claims().items():
        pool.write(claim, claimed_values(store.artifact(version), backbone))
    pool.write(decode_claim(new, backbone, ancestors), claimed_values(new, backbone))

    def after_registration(lineage: Sequence[Artifact]) -> Mapping[str, Tensor]:
        return pool.masked(seen_by(backbone, lineage, lineage_claims(backbone, lineage)))

    after = _testify(store, after_registration, before)
    faults: list[str] = []
    for version, now in after.items():
        if now.digest != before[version].digest:
            faults.append(f"{now.task} ({version[:19]}): its task digest would change")
        elif not torch.equal(now.logits.view(torch.int32), before[version].logits.view(torch.int32)):
            faults.append(f"{now.task} ({version[:19]}): its logits would change")
    if faults:
        raise Forgotten("earlier tasks would change, so nothing was registered", faults)
    return len(after)


def _testify(
    store: Store, weights_of: Callable[[Sequence[Artifact]], Mapping[str, Tensor]], only: Container[str] | None = None
) -> dict[str, Witness]:
    """What every version that answers computes, given where its shared weights come from.

    Versions that see the same shared weights come one after another, so that these are made once for all of them.
    """
    backbone = store.backbone
    asked = [v.version for v in store.versions() if v.state == "ready" and (only is None or v.version in only)]
    lineages = {version: store.lineage(version) for version in asked}
    keys = {version: weights_key(backbone, lineage) for version, lineage in lineages.items()}
    found: dict[str, Witness] = {}
    for _, group in itertools.groupby(
        sorted(asked, key=lambda version: keys[version]), key=lambda version: keys[version]
    ):
        weights: Mapping[str, Tensor] | None = None
        for version in group:
            lineage = lineages[version]
            weights = weights_of(lineage) if weights is None else weights
            found[version] = _witness(backbone, lineage, weights)
    return found


def _witness(backbone: Backbone, lineage: Sequence[Artifact], weights: Mapping[str, Tensor]) -> Witness:
    leaf = lineage[-1]
    view = view_with(backbone, lineage, weights)
    pictures = unpack_images(leaf.tensors["probe.images"], backbone.manifest.image_size)
    return Witness(leaf.manifest.task, task_digest(backbone, view), reference_logits(backbone, view, pictures))
