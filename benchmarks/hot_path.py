"""Where each millisecond of a forward goes: the plain network in torch, and the engine for a task that can be swapped.

    python -m benchmarks.hot_path [--arch resnet50 resnet18] [--dtype fp32 bf16] [--batch 1] [--forwards 20]
                                  [--rounds 5]

One worker of one thread, the engine alone, wall milliseconds of a forward, the median of the rounds. `eager` is sorted
by torch's profiler into what computes: the convolutions, norms, activations and additions of their own, pooling, the
head, and what brings pixels into place; `rest` is what the call takes beside them: Python, the queue of operators,
allocation. A profiled call is slower than one that is not.
`by step` is the engine with a clock around each of its operators, which keeps it from doing its first steps in one
call; its convolutions have the norms, additions and activations in them. `taskpack` is the engine as it is, in whole.
The contestants are those of benchmarks.runtimes and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.runtimes import Forward, Setting, eager_forward, taskpack_forward
from service.engine import Kernels

KINDS = {
    "convolutions": ("mkldnn_convolution", "_convolution_pointwise", "_convolution_pointwise_", "_slow_conv2d_forward"),
    "norms": ("native_batch_norm", "batch_norm", "_native_batch_norm_legit_no_training"),
    "activations, additions": ("clamp_min_", "clamp_min", "relu_", "relu", "add_", "add"),
    "pooling": ("max_pool2d_with_indices", "mean", "sum", "adaptive_avg_pool2d"),
    "head": ("addmm", "mm"),
    "pixels": ("div_", "sub_", "copy_"),
}
"""What computes -> the operators' names, without their namespaces. `copy_` is nearly all of pixels."""

ROWS = (*KINDS, "rest")


def kind_of(name: str) -> str | None:
    """The row that an operator belongs to; None for the rest."""
    short = name.rpartition("::")[2]
    return next((kind for kind, names in KINDS.items() if short in names), None)


def taken(forward: Forward, forwards: int) -> dict[str, float]:
    """Row -> milliseconds a forward."""
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(forwards):
            forward()
        whole = (time.perf_counter() - started) * 1e3 / forwards
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        if kind is not None:
            found[kind] += event.self_cpu_time_total / 1e3 / forwards
    return found | {"rest": max(0.0, whole - sum(found.values()))}


class Clock:
    """Operators of the engine, and the time that they take."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(ROWS, 0.0)
        ours = Kernels()
        self.kernels = replace(
            ours,
            conv2d=self.timed("convolutions", ours.conv2d),
            max_pool=self.timed("pooling", ours.max_pool),
            pixels=self.timed("pixels", ours.pixels),
        )

    def timed(self, row: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A function that counts what it takes."""

        def call(*given: object, **named: object) -> torch.Tensor:
            started = time.perf_counter()
            found = function(*given, **named)
            self.seconds[row] += time.perf_counter() - started
            return found

        return call

    def taken(self, forward: Forward, forwards: int) -> dict[str, float]:
        """Row -> milliseconds a forward."""
        self.seconds = dict.fromkeys(ROWS, 0.0)
        whole = lasting(forward, forwards)
        found = {row: seconds * 1e3 / forwards for row, seconds in self.seconds.items()}
        return found | {"rest": whole - sum(found.values())}


def lasting(forward: Forward, forwards: int) -> float:
    """Milliseconds of a forward."""
    started = time.perf_counter()
    for _ in range(forwards):
        forward()
    return (time.perf_counter() - started) * 1e3 / forwards


def measure(setting: Setting, forwards: int, rounds: int) -> dict[str, dict[str, float]]:
    """Contestant -> row -> median milliseconds."""
    clock = Clock()
    eager, whole = eager_forward(setting, Path()), taskpack_forward(setting, Path())
    steps = taskpack_forward(setting, Path(), clock.kernels)
    ways = {
        "eager": lambda: taken(eager, forwards),
        "by step": lambda: clock.taken(steps, forwards),
        "taskpack": lambda: {"in one call": lasting(whole, forwards)},
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _, (name, way) in product(range(rounds + 1), ways.items()):
        found[name].append(way())
    return {
        name: {row: round(statistics.median(turn[row] for turn in turns[1:]), 2) for row in turns[0]}
        for name, turns in found.items()
    }


def main(given: Sequence[str] | None = None) -> None:
    """Print a table for each network, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--forwards", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    results: list[dict[str, object]] = []
    for arch, dtype in product(arguments.arch, arguments.dtype):
        setting = Setting(arch, dtype, arguments.batch, arguments.size, 1)
        found = measure(setting, arguments.forwards, arguments.rounds)
        results.append({"arch": arch, "dtype": dtype, **found})
        print(
            f"{arch} {dtype}: ms a forward, one worker of one thread\n{'':24}"
            + "".join(f"{name:>10}" for name in found)
        )
        for row in ROWS:
            print(f"{row:24}" + "".join(f"{rows[row]:10.2f}" if row in rows else f"{'':10}" for rows in found.values()))
        print(f"{'all':24}" + "".join(f"{sum(rows.values()):10.2f}" for rows in found.values()), flush=True)
    summary = {
        "benchmark": "hot_path",
        "batch": arguments.batch,
        "size": arguments.size,
        "workers": 1,
        "threads": 1,
        "forwards": arguments.forwards,
        "rounds": arguments.rounds,
        "rows": results,
        "versions": {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
