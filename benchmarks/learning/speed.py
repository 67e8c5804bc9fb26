"""How long the packed tasks of an experiment take beside a plain network, eager on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from masks_store import Store
from trainer.measure import network_of
from trainer.network import Network
from trainer.timing import per_image

BATCH = 32
PLAIN_CLASSES = 100
"""Of the head of a plain network: its time does not show."""


def milliseconds(variants: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> dict[str, float]:
    """Variant -> CPU milliseconds per image of its last task in batches of `BATCH`, side by side in interleaved rounds.

    What is in no store is timed as the plain network that it is. What a server saves and adds is not in it.

    Args:
        variants: of a result, see `contest.compete`.
        folders: by variant, its first seed's, with the store.
    """
    networks: dict[str, Network] = {}
    side = 0
    for name, folder in folders.items():
        last = variants[name]["seeds"][0]["tasks"][-1]
        with Store.open(folder / "store") as store:
            backbone, side = store.backbone, store.backbone.manifest.preprocess.size
            if last["version"] is None:
                body = backbone.body()
                networks[name] = Network(body, backbone.features, PLAIN_CLASSES, trains_norm=False).eval()
            else:
                networks[name] = network_of(backbone, store.view(last["version"]))
    return per_image(networks, torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0)))
