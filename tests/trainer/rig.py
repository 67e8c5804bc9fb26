"""Small real stores, sources and runs for the tests of training."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from masks_store import Store, create, read_backbone
from trainer.checkpoint import Checkpoint
from trainer.config import Settings
from trainer.data import Source, load_source
from trainer.export import Exported, export
from trainer.ground import Ground, ground_for
from trainer.loop import Keeper, Loop, Trained
from trainer.methods import METHODS, Hits, Method
from trainer.network import Network
from trainer.phase import Phase
from trainer.plan import Plan, make_fabric, make_plan, seeded
from trainer.progress import Silent
from trainer.prune import Trial, judge_trial

SIZE = 8
CPU = torch.device("cpu")


def shapes(path: Path, *, seed: int = 0, classes: int = 3, train: int = 60, val: int = 15, test: int = 15) -> str:
    """An .npz of noisy pictures, a tint per class: learnt in a few steps, seldom perfectly."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {"class_names": np.array([f"shape {n}" for n in range(classes)])}
    for split, count in (("train", train), ("val", val), ("test", test)):
        labels = np.arange(count) % classes
        images = random.integers(0, 200, (count, SIZE, SIZE, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            for channel in range(3):
                image[..., channel] += np.uint8(40 * ((int(label) + 1) >> channel & 1))
        arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.int64)}
    np.savez(path, **arrays)
    return str(path)


def new_store(path: Path, *, keep: float = 0.5, seed: int = 0) -> Store:
    """A store of a tinyresnet with two narrow stages; its random start stands for pretrained weights."""
    made = create("tinyresnet", image_size=SIZE, keep=keep, seed=seed, arch_args={"width": 4, "blocks": [1, 1]})
    return Store.create(path, made)


def bare_ground(*, keep: float = 0.5, seed: int = 0) -> Ground:
    """The same backbone without a store, all that it does not keep being free."""
    made = create("tinyresnet", image_size=SIZE, keep=keep, seed=seed, arch_args={"width": 4, "blocks": [1, 1]})
    backbone = read_backbone(made.data)
    return Ground(backbone, (), {name: ~kept for name, kept in backbone.kept.items()})


def quick(**changes: object) -> Settings:
    """Settings of a run of a second."""
    return Settings(**{"epochs": 2, "batch_size": 10, "threads": 1, "device": "cpu", **changes})


def plan_for(ground: Ground, source: Source, settings: Settings, task: str = "shapes") -> Plan:
    choices = METHODS[settings.method].choose(ground, settings)
    return make_plan(task, settings, ground, choices, source, CPU)


def read(source: str, ground: Ground) -> Source:
    return load_source(source, preprocess=ground.backbone.manifest.preprocess, threads=1)


def loop_for(
    ground: Ground,
    source: Source,
    settings: Settings,
    *,
    keeper: Keeper | None = None,
    layout: torch.memory_format | None = None,
    task: str = "shapes",
    folds: tuple[Source, ...] = (),
    fabric: Fabric | None = None,
) -> Loop:
    """A loop ready to run; call it within `seeded(loop.plan, CPU)` where the random start matters."""
    plan = plan_for(ground, source, settings, task)
    keeper = keeper or Keeper(save=lambda _: None, results=lambda _: None)
    method, fabric = METHODS[settings.method], fabric or make_fabric(plan.precision, CPU)
    with seeded(plan, CPU):
        return Loop(method, ground, plan, source, fabric, Silent(), keeper, layout, folds)


def run(loop: Loop, checkpoint: Checkpoint | None = None) -> Trained:
    """Run a loop under its plan's seed."""
    with seeded(loop.plan, CPU):
        return loop.run(checkpoint)


def trained_and_exported(
    ground: Ground, source: Source, settings: Settings, **options: Any
) -> tuple[Loop, Trained, Exported]:
    """Run a loop of these settings, and make its artifact; options of `loop_for`."""
    loop = loop_for(ground, source, settings, **options)
    trained = run(loop)
    return loop, trained, export(loop.method, ground, loop.plan, source, trained.network, trained.trainable, CPU)


def ground_in(store: Store, settings: Settings, task: str = "shapes") -> Ground:
    return ground_for(store, task, settings.method, settings.on)


def state_bits(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Name -> the tensor's bytes in its shape's order: equal only where every bit is."""
    return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


class Kept:
    """Keeps every checkpoint and row in memory, and stops after a given number of steps."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.checkpoints: list[Checkpoint] = []
        self.steps = 0
        self._stop_after = stop_after

    def keeper(self, interval: float = 1e9) -> Keeper:
        return Keeper(self._save, lambda _: None, self._stop, interval, rarity=20.0 if interval else 0.0)

    def _save(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(copy.deepcopy(checkpoint))  # what it holds goes on changing

    def _stop(self) -> bool:
        self.steps += 1
        return self.steps > self._stop_after


def refuse_above(monkeypatch: pytest.MonkeyPatch, accepted: float) -> None:
    """Let a trial be accepted only from a share on downwards: what the networks learn is not the point."""

    def judge(share: float, before: torch.Tensor, after: torch.Tensor, margin: float) -> Trial:
        return dataclasses.replace(judge_trial(share, before, after, margin), accepted=share <= accepted)

    monkeypatch.setattr("trainer.methods.packnet.judge_trial", judge)


def states_on_entry(loop: Loop) -> dict[str, dict[str, bytes]]:
    """Phase -> bits of the network as it enters it, filled while the loop runs, in that order."""
    entered: dict[str, dict[str, bytes]] = {}
    method = loop.method

    class Watched(Method):
        def settle(self, plan: Plan, phase: Phase, hits: Hits) -> Phase | None:
            return method.settle(plan, phase, hits)

        def set_up(self, phase: Phase, network: Network) -> None:
            method.set_up(phase, network)

        def enter(self, ground: Any, plan: Any, phase: Phase, network: Network, before: Any) -> Any:
            entered[phase.name] = state_bits(network.state_dict())
            return method.enter(ground, plan, phase, network, before)

        choose = start = export = None  # pyright: ignore[reportAssignmentType]

    loop.method = Watched()
    return entered
