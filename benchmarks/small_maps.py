"""A training step with the convolutions of small maps as matrix products, beside the same step without, in one run.

    python -m benchmarks.small_maps [--arch resnet18 vgg16_bn] [--size 32 64 96 224] [--batch 32] [--kinds fp32]
                                  [--rounds 5]

One thread, CPU time of this process, the two taking turns within each round; median of each one's milliseconds and of
the ratio. Forward, backward and SGD of a network that trains whole, in fp32 and in bf16 with autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from importlib import metadata

import torch
import torchvision
from torch.nn import functional as F

from benchmarks.train_step import in_turns
from trainer.small_maps import SmallMaps

CLASSES = 10


def step_of(arch: str, size: int, batch: int, *, bf16: bool, products: bool) -> Callable[[], None]:
    """One training step of a network of its own."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(arch, num_classes=CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), SmallMaps() if products else nullcontext():
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(arch: str, size: int, batch: int, rounds: int, *, bf16: bool) -> dict[str, float | str]:
    """CPU milliseconds a step, and how many times the speed the products are."""
    steps = {name: step_of(arch, size, batch, bf16=bf16, products=name == "products") for name in ("plain", "products")}
    times = in_turns(steps, rounds)
    ratios = [a / b for a, b in zip(times["plain"], times["products"], strict=True)]
    found = {f"{name}_ms": round(statistics.median(values), 1) for name, values in times.items()}
    kind = "bf16" if bf16 else "fp32"
    return {"arch": arch, "size": size, "kind": kind, **found, "ratio": round(statistics.median(ratios), 2)}


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet18", "vgg16_bn"])
    parser.add_argument("--size", type=int, nargs="+", default=[32, 64, 96, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, float | str]] = []
    for arch in arguments.arch:
        for size in arguments.size:
            for kind in arguments.kinds:
                rows.append(measure(arch, size, arguments.batch, arguments.rounds, bf16=kind == "bf16"))
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    versions = {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")}
    setting = {"batch": arguments.batch, "threads": 1, "rounds": arguments.rounds}
    print(json.dumps(setting | {"rows": rows, "machine": machine} | versions))


if __name__ == "__main__":
    main()
