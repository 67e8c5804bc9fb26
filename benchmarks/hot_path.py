"""Where each millisecond of a forward goes: the plain network in torch, and the engine for a task that can be swapped.

    python -m benchmarks.hot_path [--arch resnet50 resnet18] [--dtype fp32 bf16] [--batch 1] [--forwards 20]

One thread, wall milliseconds of a forward by torch's profiler, sorted into what computes: the
convolutions (with what is fused into them), norms, activations and additions of their own, pooling, the head, and what
brings pixels into place. `rest` is what the call takes beside them: Python, the queue of operators, allocation, and the
C functions, which torch's profiler does not see: pixels and pooling of ours. The contestants are those of
benchmarks.runtimes and take turns; a profiled call is slower than one that is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from importlib import metadata
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.runtimes import Forward, Setting, eager_forward, taskpack_forward

KINDS = {
    "convolutions": ("mkldnn_convolution", "_convolution_pointwise", "_convolution_pointwise_", "thnn_conv2d"),
    "norms": ("native_batch_norm", "batch_norm", "_native_batch_norm_legit_no_training"),
    "activations, additions": ("clamp_min_", "clamp_min", "relu_", "relu", "add_", "add"),
    "pooling": ("max_pool2d_with_indices", "mean", "sum", "adaptive_avg_pool2d"),
    "head": ("addmm", "mm"),
    "pixels": ("div_", "sub_", "copy_"),
}
"""What computes -> the operators' names, without their namespaces. `copy_` is nearly all of pixels."""


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


def measure(setting: Setting, forwards: int, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Contestant -> row -> median milliseconds."""
    made = {name: make(setting, Path()) for name, make in (("eager", eager_forward), ("taskpack", taskpack_forward))}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    for _, (name, forward) in product(range(rounds + 1), made.items()):
        found[name].append(taken(forward, forwards))
    rows = (*KINDS, "rest")
    return {
        name: {row: round(statistics.median(turn[row] for turn in turns[1:]), 2) for row in rows}
        for name, turns in found.items()
    }


def main() -> None:
    """Print a table for each network, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--forwards", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, object]] = []
    for arch, dtype in product(arguments.arch, arguments.dtype):
        found = measure(Setting(arch, dtype, arguments.batch, arguments.size, 1), arguments.forwards)
        results.append({"arch": arch, "dtype": dtype, **found})
        print(f"{arch} {dtype}: ms a forward\n{'':24}" + "".join(f"{name:>10}" for name in found))
        for row in (*KINDS, "rest"):
            print(f"{row:24}" + "".join(f"{rows[row]:10.2f}" for rows in found.values()))
        print(f"{'all':24}" + "".join(f"{sum(rows.values()):10.2f}" for rows in found.values()), flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    versions = {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")}
    print(json.dumps({"batch": arguments.batch, "rows": results, "machine": machine, "versions": versions}))


if __name__ == "__main__":
    main()
