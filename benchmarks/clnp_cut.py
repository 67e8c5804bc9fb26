"""A CLNP task that uses half of the units, cut out of the shared network, against the network in its full width.

    python -m benchmarks.clnp_cut [--arch vgg16 resnet18] [--size 224] [--batch 8] [--rounds 7]

Wall milliseconds of a batch through the server's own worker without HTTP, one worker of one thread, float32, median of
the rounds, taking turns. `half` is a task whose units are a random half of every group; `whole` one with all of them,
computed by the same engine; `eager` that network in plain torch, channels last. The ratio is the faster of the two over
`half`; the target is 2.5.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serve_engine import milliseconds
from benchmarks.targets import Target, judged
from masks_store import Store, create, normalise
from service.serving import Serving
from tests.zoo import task as random_task
from trainer.measure import network_of

TARGET = Target(2.5)


def packed(folder: Path, arch: str, size: int, share: float) -> tuple[Store, str]:
    """A store with one task that uses this share of the units, and the task's version."""
    store = Store.create(folder, create(arch, image_size=size, keep=0.0, seed=0), capacity="units")
    artifact = random_task(store.backbone, f"share-{share:g}", "clnp", share=share)
    return store, store.register(artifact, label="stable").version.version


def measured(arch: str, size: int, batch: int, rounds: int) -> dict[str, float]:
    """Median of each contestant."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory(prefix="taskpack-cut-") as folder, asyncio.Runner() as runner:
        servings: list[Serving] = []
        for name, share in (("half", 0.5), ("whole", 1.0)):
            store, version = packed(Path(folder, name), arch, size, share)
            servings.append(Serving(store, workers=1, worker_threads=1))
            runner.run(servings[-1].start())
            calls[name] = lambda own=servings[-1], version=version: runner.run(own.infer(version, pixels))
            view, backbone = store.view(version), store.backbone
        network = network_of(backbone, view).to(memory_format=torch.channels_last)

        def eager() -> object:
            with torch.inference_mode():
                images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), view.preprocess)
                return network(images.contiguous(memory_format=torch.channels_last))

        found = milliseconds(calls | {"eager": eager}, rounds, time.perf_counter)
        for serving in servings:
            runner.run(serving.stop(5.0))
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Print a row for each network, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["vgg16", "resnet18"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print("wall ms of a batch; one worker of one thread")
    for arch in arguments.arch:
        found = measured(arch, arguments.size, arguments.batch, arguments.rounds)
        ratio = min(found["whole"], found["eager"]) / found["half"]
        rows.append(
            {
                "arch": arch,
                "ms": {name: float(f"{ms:.4g}") for name, ms in found.items()},
                "ratio": judged(ratio, TARGET),
            }
        )
        times = "  ".join(f"{name} {ms:.1f}" for name, ms in found.items())
        print(f"{arch:12} {times}  ratio {ratio:.2f}  {TARGET.told(ratio)}")
    summary = {
        "benchmark": "clnp_cut",
        "size": arguments.size,
        "batch": arguments.batch,
        "workers": 1,
        "threads": 1,
        "rounds": arguments.rounds,
        "rows": rows,
        "versions": {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
