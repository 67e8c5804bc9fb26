"""Train a baseline over a sequence of tasks with the trainer's own loop, and measure all tasks after each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, final

import torch

from masks_store import read_backbone
from trainer import Settings
from trainer.data import Source, load_source
from trainer.freeze import Trainable
from trainer.ground import Ground
from trainer.loop import Keeper, Loop
from trainer.measure import predict
from trainer.methods.finetune import FineTune
from trainer.methods.method import Method
from trainer.network import Network
from trainer.phase import Phase
from trainer.plan import Choices, Plan, make_fabric, make_plan, seeded
from trainer.progress import Silent

from .baselines import Baseline
from .permuted import Cut, grey_backbone, picture_side, write_tasks

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Learned:
    """What one task left.

    Attributes:
        accuracies: test accuracy of every task so far, the first one first.
        val_accuracies: the same on validation pictures: what strengths are chosen by.
        cpu_seconds: of its training, validation and what the baseline remembers included.
    """

    accuracies: tuple[float, ...]
    val_accuracies: tuple[float, ...]
    cpu_seconds: float


@final
class Onward(Method):
    """Fine-tuning that starts from a given network, and exports nothing."""

    in_store = False

    def __init__(self, network: Network) -> None:
        self.network = network

    def choose(self, ground: Ground, settings: Settings) -> Choices:
        """Fine-tuning's one phase."""
        return FineTune().choose(ground, settings)

    def start(self, ground: Ground, plan: Plan) -> Network:
        """The given one."""
        return self.network

    def enter(self, ground: Ground, plan: Plan, phase: Phase, network: Network, before: Trainable | None) -> Trainable:
        """Everything, each whole."""
        return FineTune().enter(ground, plan, phase, network, before)

    def export(self, ground: Ground, plan: Plan, network: Network, trained: Trainable) -> NoReturn:
        """Never: the network goes on to the next task."""
        raise AssertionError("a baseline adds nothing to a store")


def learn(
    baseline: Baseline,
    mnist: Path,
    arch: str,
    settings: Settings,
    seed: int,
    cut: Cut,
    done: Callable[[Learned], None] = lambda _: None,
) -> list[Learned]:
    """Train the tasks one after another.

    Args:
        baseline: new; holds the networks afterwards.
        mnist, arch, seed, cut: as for `packing.pack`: the same pictures, permutations and splits.
        settings: of every task; `method` only names it.
        done: told of each task.
    """
    with tempfile.TemporaryDirectory(prefix="taskpack-permuted-") as temporary:
        paths = write_tasks(mnist, Path(temporary), seed, cut)
        backbone = read_backbone(grey_backbone(arch, picture_side(mnist), keep=1.0, seed=seed))
        ground = Ground(backbone, (), {})
        sources: list[Source] = []
        results: list[Learned] = []
        for path in paths:
            sources.append(load_source(str(path), seed=seed, preprocess=backbone.manifest.preprocess, threads=1))
            seconds = train_one(baseline, ground, sources[-1], path.stem, settings)
            test = () if cut.test_images == 0 else tuple(accuracies_of(baseline, ground, sources, "test"))
            results.append(Learned(test, tuple(accuracies_of(baseline, ground, sources, "val")), seconds))
            done(results[-1])
    return results


def train_one(baseline: Baseline, ground: Ground, source: Source, task: str, settings: Settings) -> float:
    """Train the next task; returns the CPU seconds that it took."""
    plan = make_plan(task, settings, ground, FineTune().choose(ground, settings), source, CPU)
    keeper = Keeper(save=lambda _: None, results=lambda _: None, interval=float("inf"))
    with seeded(plan, CPU):
        network, regulariser = baseline.begin(ground, len(source.classes))
        fabric = make_fabric(plan.precision, CPU)
        trained = Loop(Onward(network), ground, plan, source, fabric, Silent(), keeper, regulariser=regulariser).run()
        started = time.process_time()
        baseline.learned(network, source, ground.backbone.manifest.preprocess)
    return trained.cpu_seconds + time.process_time() - started


def accuracies_of(baseline: Baseline, ground: Ground, sources: list[Source], split: str = "test") -> list[float]:
    """Accuracy of every task so far on a split, each under its own head."""
    preprocess = ground.backbone.manifest.preprocess
    return [
        predict(baseline.network_for(task), source.splits[split], preprocess, CPU, threads=0).top1
        for task, source in enumerate(sources)
    ]
