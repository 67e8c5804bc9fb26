"""How long the packed tasks of an experiment take beside a plain network, eager on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from masks_store import Store
from trainer.measure import served_network
from trainer.network import Network
from trainer.timing import per_image

BATCH = 32
PLAIN, PLAIN_CLASSES = "a plain network", 100
"""Its name beside the variants', and the classes of its head, whose time does not show."""


def time_all(variants: Mapping[str, Mapping[str, Any]], seed: int, folders: Mapping[str, Path]) -> None:
    """Note each task's CPU milliseconds per image: the tasks of a variant's run get `milliseconds`, `own` and `plain`.

    In batches of `BATCH`, the same task of all variants side by side with a plain network of the backbone, in
    interleaved rounds. What is in no store is timed as the plain network that it is. What a server saves and adds is
    not in it. Tasks of runs that were taken over from another machine keep what was noted there.

    Args:
        variants: of a result, see `contest.compete`.
        seed: of the runs.
        folders: by variant, that run's, with the store.
    """
    runs = {
        name: run["tasks"]
        for name in folders
        for run in variants[name]["seeds"]
        if run["seed"] == seed and (folders[name] / "store").exists()
    }
    for place in range(max(map(len, runs.values()), default=0)):
        tasks = {name: own[place] for name, own in runs.items() if place < len(own)}
        _time({name: task for name, task in tasks.items() if "milliseconds" not in task}, folders)


def _time(tasks: Mapping[str, dict[str, Any]], folders: Mapping[str, Path]) -> None:
    """Note the time of one task of each variant."""
    networks: dict[str, Network] = {}
    side = 0
    for name, task in tasks.items():
        with Store.open(folders[name] / "store") as store:
            backbone, side = store.backbone, store.backbone.manifest.preprocess.size
            networks[PLAIN] = Network(backbone.body(), backbone.features, PLAIN_CLASSES, trains_norm=False).eval()
            version = task["version"]
            networks[name] = served_network(backbone, store.view(version)) if version is not None else networks[PLAIN]
    if networks:
        taken = per_image(networks, torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0)))
        for name, task in tasks.items():
            task["milliseconds"] = {"own": taken[name], "plain": taken[PLAIN]}
