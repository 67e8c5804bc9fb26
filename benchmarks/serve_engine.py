"""The engine's forward against the plain eager network, side by side in one run.

    python -m benchmarks.serve_engine [--arch resnet18] [--size 224] [--batch 8 64] [--dtype fp32 bf16] [--rounds 5]
                                       [--only NAME …]

One worker of one thread, the engine alone, CPU time of this process, median of the rounds, the contestants taking turns
within each round. `eager`
is torchvision's network with one head, called as a user would; `base` a task that adds only a head; `clr` one CLR
task; `clr mixed` a batch in which every image is another CLR task's; `clr folded` one CLR task whose norms behind
convolutions without an adapter are in the weights, as only a task alone can have them; `torch clr`, `torch mixed` the
same without the C functions; `hot` a PackNet view in a slot; `cold` one that is materialised for the batch. Beside the
milliseconds stands how much faster than eager.

Below stands the price of mixing, by the median of the rounds' ratios: the speed of a mixed batch over that of the
fastest engine for one of its tasks alone. `mixed` is with the C functions (target 0.95; 0.90 from 64 images up), `torch
mixed` without them (target 0.85); `torch mixed / torch clr`, which has no target, is that beside one task without them.
`--only clr "clr folded" "clr mixed"` leaves the others out, so that more rounds fit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.targets import Target, judged, verdict
from masks_store import (
    Backbone,
    Claim,
    Overlay,
    adapter_sites,
    create,
    free_positions,
    identity_adapter,
    norm_modules,
    normalise,
    read_backbone,
)
from service.engine import DTYPES, DeviceOverlay, Engine, Sight
from service.engine.behind import Behind
from service.engine.compiled import describe

CLASSES = 10
BATCHES = {"resnet18": (1, 8, 64), "resnet50": (8,)}
"""What is measured unless something else is asked for."""
CONTESTANTS = ("eager", "base", "clr", "clr mixed", "clr folded", "torch clr", "torch mixed", "hot", "cold")
MANY = 64
"""Images from which on mixing may cost twice as much."""
Taken = Mapping[str, Sequence[float]]
"""Name -> milliseconds, round by round."""


def overlay(backbone: Backbone, method: str, seed: int) -> Overlay:
    """A task with random values."""
    random = torch.Generator().manual_seed(seed)
    norm: dict[str, torch.Tensor] = {}
    adapter: dict[str, torch.Tensor] = {}
    if method == "clr":
        body = backbone.shape_only()
        for site, conv in adapter_sites(body).items():
            adapter[site] = identity_adapter(conv.out_channels)
        for module, layer in norm_modules(body).items():
            for field in ("weight", "bias", "running_mean", "running_var"):
                norm[f"{module}.{field}"] = 0.5 + torch.rand(layer.num_features, generator=random)
    head = torch.randn((CLASSES, backbone.features), generator=random)
    return Overlay(norm, {}, adapter, head, torch.zeros(CLASSES))


def folded(task: DeviceOverlay, dtype: str) -> DeviceOverlay:
    """As fast as a task whose norms are in the weights wherever it has no adapter: there a bias is left."""

    def left(own: Behind) -> Behind:
        if own.norm is not None:
            return Behind(own.norm.bias.to(DTYPES[dtype]), alone=True)
        return (
            Behind(own.table[1].to(DTYPES[dtype]), alone=True) if own.table is not None and len(own.table) == 2 else own
        )

    return replace(
        task, layers=replace(task.layers, behind={name: left(own) for name, own in task.layers.behind.items()})
    )


def contestants(engine: Engine, plainly: Engine, batch: int, dtype: str) -> dict[str, Callable[[], object]]:
    """Name -> one forward of `batch` images; `plainly` is an engine without the C functions."""
    backbone = engine.backbone
    size = backbone.manifest.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    base = Sight(backbone.digest, ())
    packnet = Sight("packnet", ("packnet",))
    plain = engine.load("plain", overlay(backbone, "linear", 0), dtype, folds=True)
    packed = engine.load(
        "packnet", overlay(backbone, "linear", 1), dtype, folds=True, shown=engine.shared.shown(dtype, packnet.claims)
    )
    clr, slow = (
        [own.load(f"clr {i}", overlay(backbone, "clr", i), dtype, folds=False) for i in range(batch)]
        for own in (engine, plainly)
    )
    alone = folded(clr[0], dtype)
    body, head = backbone.body().to(DTYPES[dtype]), plain.head_weight

    def eager() -> object:
        with torch.inference_mode():
            batch = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), backbone.manifest.preprocess)
            return F.linear(body(batch.to(DTYPES[dtype]).contiguous()).float(), head)

    def run(sight: Sight, tasks: list[DeviceOverlay], by: Engine = engine) -> object:
        parts = [images] if len(tasks) == 1 else list(images[:, None])
        return by.run(sight, dtype, parts, tasks)

    def cold() -> object:
        engine.slots.drop(packnet.key)
        return run(packnet, [packed])

    return {
        "eager": eager,
        "base": lambda: run(base, [plain]),
        "clr": lambda: run(base, [clr[0]]),
        "clr mixed": lambda: run(base, clr),
        "clr folded": lambda: run(base, [alone]),
        "torch clr": lambda: run(base, [slow[0]], plainly),
        "torch mixed": lambda: run(base, slow, plainly),
        "hot": lambda: run(packnet, [packed]),
        "cold": cold,
    }


def milliseconds(
    works: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median milliseconds of each by a clock, this process's CPU time unless told otherwise, taking turns."""
    return medians(in_turn(works, rounds, clock))


def medians(taken: Taken) -> dict[str, float]:
    """Of each one's rounds."""
    return {name: statistics.median(times) for name, times in taken.items()}


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Milliseconds of each in every round, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):  # the first is for warming up
        for name, work in works.items():
            start = clock()
            work()
            if turn:
                taken[name].append((clock() - start) * 1e3)
    return taken


def claim_some(backbone: Backbone) -> Claim:
    """A quarter of what is free."""
    random = torch.Generator().manual_seed(1)
    free = free_positions(backbone, [])
    return {name: room & (torch.rand(room.shape, generator=random) < 0.25) for name, room in free.items()}


def measured(arch: str, dtype: str, batch: int, size: int, rounds: int, only: Sequence[str]) -> Taken:
    """Name -> CPU milliseconds of a batch in every round; one row of the table is printed."""
    backbone = read_backbone(create(arch, image_size=size, keep=0.5, seed=0).data)
    engine, plainly = Engine(backbone), Engine(backbone, native=False)
    claim = claim_some(backbone)
    engine.claim("packnet", claim, {name: torch.randn(int(mask.sum())) * 0.01 for name, mask in claim.items()})
    works = contestants(engine, plainly, batch, dtype)
    taken = in_turn({name: work for name, work in works.items() if name in only}, rounds)
    times = x_eager(taken)
    row = "   ".join(
        f"{name} {ms:.1f}" + (f" ({times[name]:.2f})" if times else "") for name, ms in medians(taken).items()
    )
    print(f"{arch} {dtype} batch {batch}:  {row}")
    for name, (ratio, target) in mixed(taken, batch).items():
        print(f"  {name:24} {ratio:.3f}  {verdict(ratio, target)}", flush=True)
    return taken


def x_eager(taken: Taken) -> dict[str, float]:
    """How much faster each is than eager; empty without it."""
    took = medians(taken)
    return {name: round(took["eager"] / ms, 3) for name, ms in took.items()} if "eager" in took else {}


def mixed(taken: Taken, batch: int) -> dict[str, tuple[float, Target | None]]:
    """Name -> speed of as many CLR tasks as images over that of one, and its target; of what was measured."""
    compiled = Target(0.95 if batch < MANY else 0.90)
    asked: list[tuple[str, str, set[str], Target | None]] = [
        ("mixed", "clr mixed", {"clr", "clr folded"}, compiled),
        ("torch mixed", "torch mixed", {"clr", "clr folded"}, Target(0.85)),
        ("torch mixed / torch clr", "torch mixed", {"torch clr"}, None),
    ]
    return {
        name: (min(beside(taken, way, together) for way in alone), target)
        for name, together, alone, target in asked
        if {together, *alone} <= taken.keys()
    }


def beside(taken: Taken, one: str, other: str) -> float:
    """How often `other` is done while `one` is: the median of the rounds' ratios of their times."""
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print a table, end in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(BATCHES))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", help="images, and tasks of a mixed batch")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    print("CPU ms of a batch (x eager: higher is faster); one worker of one thread")
    rows: list[dict[str, object]] = []
    for arch in args.arch:
        for dtype, batch in product(args.dtype, args.batch or BATCHES.get(arch, (8,))):
            taken = measured(arch, dtype, batch, args.size, args.rounds, args.only)
            rows.append(
                {
                    "arch": arch,
                    "dtype": dtype,
                    "batch": batch,
                    "cpu_ms": {name: float(f"{ms:.4g}") for name, ms in medians(taken).items()},
                    "x_eager": x_eager(taken),
                    "mixed": {name: judged(*found) for name, found in mixed(taken, batch).items()},
                }
            )
    summary = {
        "benchmark": "serve_engine",
        "size": args.size,
        "workers": 1,
        "threads": 1,
        "rounds": args.rounds,
        "rows": rows,
        "computes": describe(),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
