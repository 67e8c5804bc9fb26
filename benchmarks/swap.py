"""Writing a PackNet task's view where its weights are not loaded, beside a forward and beside copying as many numbers.

    python -m benchmarks.swap [--networks resnet50:224 resnet18:224 resnet18:96] [--dtype fp32 bf16] [--rounds 9]

One worker of one thread, the engine alone, CPU milliseconds of this process, the four taking turns within each round:

forward    one picture, pixels to logits, its task's view in a slot
swap       a slot is filled with the task's view: every weight of the shared pool is shown or hidden by its bit and
           multiplied with its channel's scale. Two slots are filled in turn, so that none is in the caches
copy       every weight of the pool is copied to another place of the same kind, two of them in turn
hot        the view is asked for while it is in a slot

A ratio is the median of the rounds' ratios. Targets: at 224 pixels a ResNet-50's swap takes at most a tenth of its
forward in the same arithmetic; elsewhere, where a forward is short beside the weights, a swap takes at most 1.2 x the
copy; what is in a slot costs at most a thousandth of the forward. bf16 is left out, unless it is asked for, where the
processor has no instructions for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import cycle
from typing import Any

import numpy as np
import torch

from benchmarks.serve_engine import Taken, beside, claim_some, in_turn, medians, overlay
from benchmarks.targets import Target, judged, verdict
from masks_store import create, lacks_instructions, read_backbone
from service.engine import DTYPES, DeviceOverlay, Engine, Sight
from service.engine.compiled import describe

NETWORKS = ("resnet50:224", "resnet18:224", "resnet18:96")
OF_A_FORWARD, OF_A_COPY, HOT = Target(0.10, at_most=True), Target(1.2, at_most=True), Target(0.001, at_most=True)
TIMES = {"forward": 2, "swap": 4, "copy": 4, "hot": 1000}
"""Calls in a row, which are timed as one: the processes' clock is too coarse for a hot slot."""
Call = Callable[[], object]


def packed(arch: str, size: int, dtype: str) -> tuple[Engine, DeviceOverlay, Sight]:
    """An engine that holds one PackNet task's claim, a quarter of what is free; with room for two views."""
    backbone = read_backbone(create(arch, image_size=size, keep=0.5, seed=0).data)
    engine = Engine(backbone, readers=2)
    claim, sight = claim_some(backbone), Sight("packnet", ("packnet",))
    engine.claim("packnet", claim, {name: torch.randn(int(mask.sum())) * 0.01 for name, mask in claim.items()})
    shown = engine.shared.shown(dtype, sight.claims)
    return engine, engine.load("packnet", overlay(backbone, "linear", 1), dtype, folds=True, shown=shown), sight


def contestants(engine: Engine, task: DeviceOverlay, sight: Sight, dtype: str) -> dict[str, Call]:
    """Name -> one call of each."""
    size, layers = engine.backbone.manifest.image_size, task.layers
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    pool, layout = engine.shared.pool(dtype), engine.shared.layout(dtype)
    slots, places = cycle([layout.new(), layout.new()]), cycle([layout.new(), layout.new()])

    def forward() -> object:
        return engine.run(sight, dtype, [picture], [task])

    def swap() -> None:
        with torch.inference_mode():
            engine.shared.fill(next(slots), dtype, task.shown, layers.scales, scale_table=layers.scale_table)

    def copy() -> None:
        out = next(places)
        with torch.inference_mode():
            for name, memory in pool.memory.items():
                out.memory[name].copy_(memory)

    def never(_: object) -> None:
        raise AssertionError("the view is in a slot")

    def hot() -> None:
        with engine.slots.view((sight.key, f"norm {layers.key}"), dtype, never):
            pass

    forward()  # from here on its view is in a slot
    return {"forward": forward, "swap": swap, "copy": copy, "hot": hot}


def repeated(call: Call, times: int) -> Call:
    """So many calls as one."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def measured(arch: str, size: int, dtype: str, rounds: int) -> dict[str, list[float]]:
    """Name -> milliseconds of one call in every round."""
    works = contestants(*packed(arch, size, dtype), dtype)
    taken = in_turn({name: repeated(work, TIMES[name]) for name, work in works.items()}, rounds)
    return {name: [ms / TIMES[name] for ms in times] for name, times in taken.items()}


def ratios(taken: Taken, *, of_a_forward: bool) -> Mapping[str, tuple[float, Target | None]]:
    """Name -> ratio and its target; `of_a_forward`: whether the swap's is a share of the forward, or of the copy."""
    return {
        "swap / forward": (beside(taken, "swap", "forward"), OF_A_FORWARD if of_a_forward else None),
        "swap / copy": (beside(taken, "swap", "copy"), None if of_a_forward else OF_A_COPY),
        "hot / forward": (beside(taken, "hot", "forward"), HOT),
    }


def row(arch: str, size: int, dtype: str, rounds: int) -> dict[str, Any]:
    """One network in one arithmetic; printed."""
    taken = measured(arch, size, dtype, rounds)
    found = ratios(taken, of_a_forward=(arch, size) == ("resnet50", 224))
    times = "  ".join(f"{name} {ms:.4g}" for name, ms in medians(taken).items())
    print(f"{arch} {size} px {dtype}: {times} ms")
    for name, (value, target) in found.items():
        print(f"  {name:16} {value:8.3g}  {verdict(value, target)}", flush=True)
    return {
        "arch": arch,
        "size": size,
        "dtype": dtype,
        "cpu_ms": {name: [float(f"{ms:.4g}") for ms in times] for name, times in taken.items()},
        "ratios": {name: judged(value, target) for name, (value, target) in found.items()},
    }


def main(given: Sequence[str] | None = None) -> None:
    """Print a row for each network and arithmetic, then one line of JSON."""
    has = [name for name, dtype in DTYPES.items() if not lacks_instructions(dtype, torch.device("cpu"))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="ARCH:PIXELS")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=has)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    print("CPU ms of a call; one worker of one thread")
    asked = [(*network.split(":"), dtype) for network in arguments.networks for dtype in arguments.dtype]
    rows = [row(arch, int(size), dtype, arguments.rounds) for arch, size, dtype in asked]
    summary = {
        "benchmark": "swap",
        "workers": 1,
        "threads": 1,
        "rounds": arguments.rounds,
        "rows": rows,
        "computes": describe(),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
