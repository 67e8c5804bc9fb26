"""Training speed of our PackNet beside Avalanche 0.6.0's, on permuted MNIST with a 784-256-256-10 network.

    TASKPACK_DATA=DIR python -m benchmarks.avalanche_speed [--rounds 5] [--train-images 6000] [--batch 32]

Images per CPU-second, one thread, process CPU time, the contestants taking turns within each round, median over the
rounds; a round is a task of three epochs, the last of them after pruning half. `taskpack` is what `taskpack train
--method packnet` does: its training, with the validation after every epoch; `taskpack_whole_command` counts the rest
too (reading and checking the source, exporting, proving that nothing changed). `avalanche` is `PackNetPlugin` on
`Naive` over its own `PermutedMNIST`, without loggers, validating nothing. `plain` is a bare loop over tensors in memory
with the same network and optimiser, no pruning. Target: taskpack at least three times avalanche.

Avalanche lives in a virtual environment of its own, made with pip the first time (`--venv`), which borrows the torch
that runs here, so that both compute with the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import python_with
from benchmarks.turns import Contestant, answer

AVALANCHE = "avalanche-lib==0.6.0"
HIDDEN, CLASSES, EPOCHS, PRUNE, LR, MOMENTUM = 256, 10, 3, 0.5, 0.05, 0.9
TEST_IMAGES = 1000
TARGET = 3.0
Round = Callable[[], dict[str, float]]


# ---------------------------------------------------------------- the contestants: each returns images and CPU seconds


def taskpack_rounds(mnist: Path, folder: Path, images: int, batch: int, rounds: int) -> Round:
    """Train one more task into a store, each time it is called."""
    import torch

    from benchmarks.learning.permuted import Cut, grey_backbone, write_tasks
    from masks_store import BackboneFile, Store
    from trainer import Settings
    from trainer.pipeline import train

    torch.set_num_threads(1)
    sources = iter(write_tasks(mnist, folder, 0, Cut(rounds, images, TEST_IMAGES)))
    backbone = BackboneFile(grey_backbone(f"mlp-{HIDDEN}-{HIDDEN}", 28, keep=0.0, seed=0))
    store = Store.create(folder / "store", backbone)
    settings = Settings(
        prune=PRUNE, epochs=EPOCHS - 1, lr=LR, batch_size=batch, augment="none", threads=1, device="cpu"
    )

    def one() -> dict[str, float]:
        source, started = next(sources), time.process_time()
        report = train(store, source.stem, str(source), settings)
        whole = time.process_time() - started
        seconds = report.cpu_seconds
        return {"images": report.presentations, "seconds": seconds, "whole": whole, "top1": report.test_top1 or 0}

    return one


def plain_rounds(mnist: Path, images: int, batch: int) -> Round:
    """Train a new network with a bare loop, each time it is called."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(1)
    with np.load(mnist) as file:
        inputs = torch.from_numpy(file["train_images"][:images].reshape(images, -1)).float() / 255
        labels = torch.from_numpy(file["train_labels"][:images])

    def one() -> dict[str, float]:
        layers = [nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)]
        network = nn.Sequential(*layers)
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        started = time.process_time()
        for _ in range(EPOCHS):
            for chosen in torch.randperm(images).split(batch):
                optimizer.zero_grad()
                F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
                optimizer.step()
        return {"images": EPOCHS * images, "seconds": time.process_time() - started}

    return one


def avalanche_rounds(mnist: Path, folder: Path, images: int, batch: int, rounds: int) -> Round:
    """Train one more experience with Avalanche, each time it is called; runs in Avalanche's environment."""
    import torch
    from avalanche.benchmarks.classic import PermutedMNIST
    from avalanche.models import SimpleMLP
    from avalanche.models.packnet import PackNetModel, PackNetPlugin
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    torch.set_num_threads(1)
    write_idx(mnist, folder / "MNIST" / "raw", images)
    stream = iter(PermutedMNIST(rounds, return_task_id=True, seed=0, dataset_root=folder).train_stream)
    mlp = SimpleMLP(num_classes=CLASSES, input_size=784, hidden_size=HIDDEN, hidden_layers=2, drop_rate=0.0)
    model = PackNetModel(mlp)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=EPOCHS,
        plugins=[PackNetPlugin(post_prune_epochs=1, prune_proportion=PRUNE)],
        evaluator=EvaluationPlugin(),
    )

    def one() -> dict[str, float]:
        experience, started = next(stream), time.process_time()
        strategy.train(experience, num_workers=0)
        return {"images": EPOCHS * images, "seconds": time.process_time() - started}

    return one


def write_idx(mnist: Path, folder: Path, images: int) -> None:
    """Write the digits in the format of their first publication, as torchvision reads it."""
    folder.mkdir(parents=True)
    with np.load(mnist) as file:
        parts = {
            "train": (file["train_images"][:images], file["train_labels"][:images]),
            "t10k": (file["test_images"][:TEST_IMAGES], file["test_labels"][:TEST_IMAGES]),
        }
    for name, (pictures, labels) in parts.items():
        for kind, array in (("images-idx3", pictures[..., 0]), ("labels-idx1", labels.astype(np.uint8))):
            header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())


# ---------------------------------------------------------------- taking turns


def serve(name: str, arguments: argparse.Namespace) -> None:
    """A contestant's process."""
    mnist, images, batch = arguments.mnist, arguments.train_images, arguments.batch
    with tempfile.TemporaryDirectory(prefix="taskpack-speed-") as temporary:
        rounds: dict[str, Callable[[], Round]] = {
            "taskpack": lambda: taskpack_rounds(mnist, Path(temporary), images, batch, arguments.rounds + 1),
            "plain": lambda: plain_rounds(mnist, images, batch),
            "avalanche": lambda: avalanche_rounds(mnist, Path(temporary), images, batch, arguments.rounds + 1),
        }
        answer(rounds[name])


def contestant(name: str, python: str, arguments: argparse.Namespace) -> Contestant:
    """Start a contestant's process."""
    flags = {"--rounds": arguments.rounds, "--train-images": arguments.train_images, "--batch": arguments.batch}
    command = [python, __file__, "--serve", name, "--mnist", str(arguments.mnist)]
    return Contestant(name, [*command, *(str(part) for pair in flags.items() for part in pair)])


def summarise(taken: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, and the ratio of each round."""
    speeds = {name: [one["images"] / one["seconds"] for one in rounds] for name, rounds in taken.items()}
    ratios = [ours / theirs for ours, theirs in zip(speeds["taskpack"], speeds["avalanche"], strict=True)]
    whole = [one["images"] / one["whole"] for one in taken["taskpack"]]
    found: dict[str, Any] = {f"{name}_images_per_cpu_second": round(statistics.median(v)) for name, v in speeds.items()}
    found["taskpack_whole_command"] = round(statistics.median(whole))
    return found | {"ratio": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios]}


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-images", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--mnist", type=Path, default=Path(os.environ.get("TASKPACK_DATA", ".")) / "mnist.npz")
    parser.add_argument("--venv", type=Path, help="Avalanche's environment; by default in the cache")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.mnist.exists():
        parser.error(f"{arguments.mnist} is not there; set TASKPACK_DATA or give --mnist")
    if arguments.serve:
        serve(arguments.serve, arguments)
        return
    avalanche = python_with(AVALANCHE.replace("==", "-"), [AVALANCHE], arguments.venv)
    pythons = {"taskpack": sys.executable, "avalanche": avalanche, "plain": sys.executable}
    processes = {name: contestant(name, python, arguments) for name, python in pythons.items()}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for turn in range(arguments.rounds + 1):
        for name in sorted(processes, reverse=bool(turn % 2)):
            found = processes[name].round()
            if turn:  # the first pays for what is made once
                taken[name].append(found)
                speed = found["images"] / found["seconds"]
                print(f"round {turn}  {name:10s} {speed:9,.0f} images per CPU-second", flush=True)
    for process in processes.values():
        process.end()
    result = summarise(taken)
    print("  ".join(f"{name} {value}" for name, value in result.items()))
    print(f"target {TARGET:g}: {'reached' if result['ratio'] >= TARGET else 'missed'}")
    versions = {"avalanche": AVALANCHE} | {name: metadata.version(name) for name in ("taskpack", "torch")}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread each"
    setting = {
        "threads": 1,
        "rounds": arguments.rounds,
        "train_images": arguments.train_images,
        "batch": arguments.batch,
    }
    print(json.dumps(result | {"target": TARGET, "machine": machine, "versions": versions} | setting))


if __name__ == "__main__":
    main()
