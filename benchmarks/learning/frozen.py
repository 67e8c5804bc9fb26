"""What the frozen backbone knows of a set by itself: the nearest class mean and a linear probe on its features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from masks_store import create, read_backbone
from trainer.data import load_source
from trainer.features import features_of_split, linear_probe, nearest_class_mean

from .ledger import Ledger
from .variants import Protocol

CPU = torch.device("cpu")
WAYS = {"nearest class mean": nearest_class_mean, "linear probe": linear_probe}


def frozen(sources: Mapping[str, Path], protocol: Protocol, seed: int, work: Path) -> dict[str, Any]:
    """Test accuracy of both on the dense backbone, after a look at each training picture, cropped at the centre.

    Args:
        sources: by the tasks' names.
        protocol: says which backbone, and its size of pictures.
        seed: splits validation off the training pictures, as for the methods.
        work: for the ledger.

    Returns:
        `setting`, and by way: by task, a fraction of 1.
    """
    setting = {"protocol": protocol.as_json(), "seed": seed}
    ledger = Ledger(work / "frozen", setting)
    file = create(protocol.arch, weights=protocol.weights, image_size=protocol.size, keep=1.0, seed=seed)
    backbone = read_backbone(file.data)
    body, preprocess = backbone.body(), backbone.manifest.preprocess

    def measured(path: Path) -> dict[str, float]:
        data = load_source(str(path), seed=seed, preprocess=preprocess, threads=1)
        train, test = (features_of_split(body, data.splits[split], preprocess, CPU, 0) for split in ("train", "test"))
        return {name: top1(train, test, len(data.classes)) for name, top1 in WAYS.items()}

    found = {task: ledger.once(task, lambda path=path: measured(path)) for task, path in sorted(sources.items())}
    return {"setting": setting, **{name: {task: found[task][name] for task in sources} for name in WAYS}}
