"""The masked training step against plain fine-tuning, side by side in one run.

    python benchmarks/train_step.py [--arch resnet18] [--size 224 64] [--norm own shared] [--batch 32] [--rounds 9]

One thread, CPU time of this process, the two taking turns within each round, median over the rounds of each one's time
and of the ratio. `packnet` trains the free half of a network whose other half is frozen; `finetune` trains every
weight; both with a norm of their own or both with the base's as it is (`--norm`), with SGD, momentum and clipping,
through the loop's own step on the same batch. The target: the masked step at most 5 % slower at 224 pixels and 10 % at
64.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata

import torch
from torch.nn import functional as F

from masks_store import create, norm_modules, read_backbone
from trainer.freeze import Trainable
from trainer.ground import Ground
from trainer.phase import Phase
from trainer.plan import make_fabric
from trainer.step import make_gear, train_step

CLASSES = 10
Step = Callable[[], None]
PHASE = Phase("train", 1, 0.01, "constant", clip=5.0)


def step_of(ground: Ground, trainable: Callable[[list[str]], Trainable], norm: str, size: int, batch: int) -> Step:
    """One training step of a network of its own.

    Args:
        ground: the network's base.
        trainable: the names of the parameters that may train -> what of them does.
        norm: `own`, which trains, or `shared`, which stays.
        size: side of the pictures in pixels.
        batch: pictures a step.
    """
    torch.manual_seed(0)
    network = ground.network(CLASSES, trains_norm=norm == "own").to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    norms = {f"body.{name}" for name in norm_modules(network.body)} if norm == "shared" else set[str]()
    names = [name for name, _ in network.named_parameters() if name.rpartition(".")[0] not in norms]
    fabric = make_fabric("32-true", torch.device("cpu"))
    gear = make_gear(fabric, network, PHASE, trainable(names))
    gear.model.train()
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES

    def step() -> None:
        train_step(fabric, gear, PHASE, PHASE.lr, F.cross_entropy(gear.model(images), labels))

    return step


def in_turns(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each step in each round; they take turns, and who begins changes."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in sorted(steps, reverse=bool(turn % 2)):
            started = time.process_time()
            steps[name]()
            if turn:  # the first pays for allocations
                times[name].append((time.process_time() - started) * 1e3)
    return times


def measure(arch: str, size: int, norm: str, batch: int, rounds: int) -> dict[str, float | str]:
    """CPU milliseconds a step, and the ratio of the two."""
    backbone = read_backbone(create(arch, image_size=size, keep=0.5).data)
    ground = Ground(backbone, (), {name: ~kept for name, kept in backbone.kept.items()})

    def masked(names: list[str]) -> Trainable:
        free = {f"body.{name}": mask for name, mask in ground.free.items()}
        return {name: free.get(name) for name in names}

    steps = {
        "packnet": step_of(ground, masked, norm, size, batch),
        "finetune": step_of(ground, dict.fromkeys, norm, size, batch),
    }
    times = in_turns(steps, rounds)
    ratios = [a / b for a, b in zip(times["packnet"], times["finetune"], strict=True)]
    found = {f"{name}_ms": round(statistics.median(values), 1) for name, values in times.items()}
    return {"size": size, "norm": norm, **found, "ratio": round(statistics.median(ratios), 4)}


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, nargs="+", default=[224, 64])
    parser.add_argument("--norm", nargs="+", choices=("own", "shared"), default=["own", "shared"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size, norm in itertools.product(arguments.size, arguments.norm):
        rows.append(measure(arguments.arch, size, norm, arguments.batch, arguments.rounds))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    versions = {name: metadata.version(name) for name in ("taskpack", "torch")}
    setting = {"arch": arguments.arch, "batch": arguments.batch, "threads": 1, "rounds": arguments.rounds}
    print(json.dumps(setting | {"rows": rows, "machine": machine} | versions))


if __name__ == "__main__":
    main()
