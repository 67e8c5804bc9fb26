"""What an artifact carries for `task=auto`: sums over the backbone's own features of its pictures (METHODS §5)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from masks_store import DIMENSIONS, Backbone, Sums, SumsBuilder, normalise, plain_arithmetic, projection

from .batches import eval_batches
from .data import Source, Split

BATCH = 64


def task_sums(backbone: Backbone, source: Source, device: torch.device, threads: int) -> Sums | None:
    """Gather the sums on the training split, as serving sees its pictures, and calibrate them on the validation split.

    Args:
        backbone: the shared network; what it keeps of its own computes the features, whatever tasks claim.
        source: has the splits `train` and `val`.
        device: where to compute.
        threads: that prepare pictures.

    Returns:
        None where the backbone cannot tell tasks apart: it keeps nothing of its own, or has fewer than 128 features.
    """
    if backbone.manifest.keep == 0.0 or backbone.features < DIMENSIONS:
        return None
    train, val = source.splits["train"], source.splits["val"]
    builder = SumsBuilder(len(source.classes))
    for z, labels in projected(backbone, train, device, threads):
        builder.add(z, labels)
    return builder.finish(torch.cat([z for z, _ in projected(backbone, val, device, threads)]))


def sums_tensors(sums: Sums) -> dict[str, Tensor]:
    """The artifact's `auto.…` tensors."""
    return {f"auto.{name}": getattr(sums, name) for name in ("mean", "scatter", "count", "scores")}


@torch.no_grad()
def projected(backbone: Backbone, split: Split, device: torch.device, threads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Projected features [B, 128] and labels [B] of a split, in fp32."""
    preprocess = backbone.manifest.preprocess
    body = backbone.body().eval().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    matrix = projection(backbone.digest, backbone.features).to(device)  # [128, F]
    for images, labels in eval_batches(split, preprocess, batch_size=BATCH, device=device, threads=threads):
        with plain_arithmetic():
            features = body(normalise(images, preprocess).contiguous(memory_format=torch.channels_last))
            yield features @ matrix.T, labels
