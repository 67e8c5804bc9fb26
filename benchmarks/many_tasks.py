"""Thousands of registered CLR tasks from one store: does the server stay as fast as with one?

    python -m benchmarks.many_tasks [--tasks 1 10 100 1000] [--arch resnet18] [--size 64] [--requests 256] [--rounds 5]

One store grows from the first number of tasks to the last, ten classes and random adapters each. For every number two
fresh processes serve it in turn, with one worker of one thread: the first finds nothing probed, the second what the
first has found. `ready` is the time from a process's start to the ready server, less that of a process which only
imports torch. Memory a task is what the resident set of the second grows by from the smallest store to this one, over
the number of tasks more: after the start, and after every task has been asked once. A route's time is the median of
several calls in the same process, through the whole app and without a socket. Throughput counts requests of one
picture that is decoded already, 32 in flight, of one task, of all in equal shares and of all by Zipf's law, taking
turns within each round; `cold` are the same with a tenth of the memory that all tasks take.

Targets, of a number of tasks: 0.95 of one task's throughput up to 1,000 and 0.9 beyond, 0.8 when cold, by either load;
memory at most 1.3 x the artifact once all were asked; ready at most 5 s after what importing torch takes.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.many_tables import figures, table, verdicts
from benchmarks.targets import judged
from masks_store import (
    Backbone,
    BackboneFile,
    Metrics,
    Provenance,
    Store,
    TaskManifest,
    adapter_sites,
    create,
    identity_adapter,
    norm_modules,
    pack_images,
    read_artifact,
    reference_logits,
    synthetic_images,
    task_digest,
    view_of,
    write_artifact,
)
from service import Settings, create_app
from service.runtime import Runtime
from service.serving import Serving

CLASSES = 10
IN_FLIGHT = 32
TOKEN = "many-tasks-admin-token"
ROOT = Path(__file__).parents[1]
NOWHERE = "sha256:" + "0" * 64


# ---------------------------------------------------------------- making the store


def artifact(backbone: Backbone, name: str, seed: int) -> bytes:
    """A CLR task with random values."""
    random = torch.Generator().manual_seed(seed)
    tensors = {"head.weight": torch.randn((CLASSES, backbone.features), generator=random)}
    tensors["head.bias"] = torch.zeros(CLASSES)
    body = backbone.shape_only()
    for site, conv in adapter_sites(body).items():
        kernel = identity_adapter(conv.out_channels)
        tensors[f"adapter/{site}"] = kernel + 0.1 * torch.randn(kernel.shape, generator=random)
    for module, layer in norm_modules(body).items():
        for field in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"norm/{module}.{field}"] = 0.5 + torch.rand(layer.num_features, generator=random)
    pictures = synthetic_images(backbone.manifest.image_size, seed, 1)
    tensors["probe.images"] = pack_images(pictures)
    tensors["probe.logits"] = torch.zeros(1, CLASSES)
    manifest = TaskManifest(
        schema=1,
        kind="task",
        task=name,
        method="clr",
        backbone=backbone.digest,
        parent=None,
        classes=tuple(f"class {i}" for i in range(CLASSES)),
        preprocess=backbone.manifest.preprocess,
        masks={},
        metrics=Metrics(val_top1=0.5, test_top1=0.5, images={"train": 1}),
        provenance=Provenance(seed=seed),
        task_digest=NOWHERE,
    )
    view = view_of(backbone, [read_artifact(write_artifact(manifest, tensors))])
    tensors["probe.logits"] = reference_logits(backbone, view, pictures)
    return write_artifact(manifest.model_copy(update={"task_digest": task_digest(backbone, view)}), tensors)


def grow(path: Path, backbone: BackboneFile, count: int) -> dict[str, float]:
    """Register tasks up to a number; seconds spent in `Store.register`, how many, and bytes of an artifact."""
    store = Store.open(path) if path.exists() else Store.create(path, backbone)
    took, before, size = 0.0, len(store.tasks()), 0
    for seed in range(before, count):
        data = artifact(store.backbone, f"task-{seed:05}", seed)
        started = time.monotonic()
        store.register(data, label="stable")
        took += time.monotonic() - started
    size = int(statistics.mean(version.size for version in store.versions()))
    store.close()
    return {"register_s": took, "registered": count - before, "artifact_bytes": size}


# ---------------------------------------------------------------- a server of it, in a process of its own


async def serve(path: Path, spawned: float, requests: int, rounds: int) -> dict[str, Any]:
    """Start, wait until everything is probed, and measure if `requests` is not 0."""
    app = create_app(Settings(store=path, workers=1, worker_threads=1), admin_token=TOKEN)
    async with app.router.lifespan_context(app):
        runtime: Runtime = app.state.runtime
        found: dict[str, Any] = {"ready_s": time.time() - spawned}
        started = time.monotonic()
        while runtime.serving.stats().versions["loading"]:
            await asyncio.sleep(0.02)
        found["probed_s"] = time.monotonic() - started
        if not requests:
            return found
        found["rss"] = resident()
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            names = [task.name for task in runtime.store.tasks()]
            found["ms"] = await routes(client, runtime, names)
            loads = traffic(names, requests)
            found["first_s"] = await asked_once(runtime.serving, await versions(runtime, names))
            found["rss_asked"] = resident()
            found["ms"]["metrics"] = await metrics_page(client, runtime, names)
            found["warm"] = await throughput(runtime.serving, await versions(runtime, names), loads, rounds)
        sizes = sum(version.size for version in runtime.store.versions())
    found["cold"] = await cold(path, names, sizes // 10, loads, rounds)
    return found


async def routes(client: httpx.AsyncClient, runtime: Runtime, names: Sequence[str]) -> dict[str, float]:
    """Milliseconds of a call of each route, and of what a request asks the store."""

    async def get(url: str) -> None:
        response = await client.get(url)
        assert response.status_code == 200, response.text

    return {
        "tasks": await median_ms(lambda: get("/tasks")),
        "tasks_1000": await median_ms(lambda: get("/tasks?limit=1000")),
        "task": await median_ms(lambda: get(f"/tasks/{names[-1]}")),
        "info": await median_ms(lambda: get("/info")),
        "refresh": await median_ms(runtime.refresh),
        "lookup_new": await median_ms(lambda: asyncio.to_thread(runtime.store.resolve, names[-1], "stable")),
        "lookup": await median_ms(lambda: runtime.resolve(names[-1], "stable")),
    }


async def metrics_page(client: httpx.AsyncClient, runtime: Runtime, names: Sequence[str]) -> float:
    """Milliseconds of /metrics once every task has been asked over HTTP."""
    for name in names:
        runtime.metrics.requests.labels(name, "200").inc()

    async def get() -> None:
        assert (await client.get("/metrics")).status_code == 200

    return await median_ms(get)


async def median_ms(call: Callable[[], Awaitable[object]], times: int = 7) -> float:
    """Median milliseconds of a call, after one that is not counted."""
    taken: list[float] = []
    for _ in range(times + 1):
        started = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken[1:])


async def versions(runtime: Runtime, names: Sequence[str]) -> list[str]:
    """The stable version of each task, by the door that requests use."""
    return [(await runtime.resolve(name, "stable")).version for name in names]


def traffic(names: Sequence[str], requests: int) -> dict[str, list[int]]:
    """Name of a load -> which task each request is for."""
    random = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, len(names) + 1)
    return {
        "one": [0] * requests,
        "uniform": random.integers(0, len(names), requests).tolist(),
        "zipf": random.choice(len(names), requests, p=weights / weights.sum()).tolist(),
    }


async def asked_once(serving: Serving, digests: Sequence[str]) -> float:
    """Seconds to answer one request for every task."""
    return await answered(serving, digests, list(range(len(digests))))


async def answered(serving: Serving, digests: Sequence[str], which: Sequence[int]) -> float:
    """Seconds to answer requests of one picture, 32 in flight."""
    picture = np.random.default_rng(0).integers(0, 256, (1, serving.image_size, serving.image_size, 3), dtype=np.uint8)
    left = iter(which)

    async def client() -> None:
        for task in left:
            await serving.infer(digests[task], picture)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - started


async def throughput(
    serving: Serving, digests: Sequence[str], loads: dict[str, list[int]], rounds: int
) -> dict[str, float]:
    """Requests a second of one task, and by load the median ratio to it."""
    taken: dict[str, list[float]] = {load: [] for load in loads}
    for turn in range(rounds + 1):  # the first is for warming up
        for load, which in loads.items():
            seconds = await answered(serving, digests, which)
            if turn:
                taken[load].append(len(which) / seconds)
    ratios = {
        load: statistics.median(rate / one for rate, one in zip(rates, taken["one"], strict=True))
        for load, rates in taken.items()
        if load != "one"
    }
    return {"one_per_s": statistics.median(taken["one"]), **ratios}


async def cold(
    path: Path, names: Sequence[str], memory: int, loads: dict[str, list[int]], rounds: int
) -> dict[str, float]:
    """The same with so little memory for tasks."""
    with Store.open(path) as store:
        serving = Serving(store, workers=1, worker_threads=1, host_bytes=memory // 2, overlay_bytes=memory // 2)
        await serving.start()
        try:
            digests = [store.resolve(name).version for name in names]
            await asked_once(serving, digests)
            return await throughput(serving, digests, loads, rounds)
        finally:
            await serving.stop(5.0)


def resident() -> int:
    """Bytes of this process in memory, after giving back what is free."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- all of it


def in_process(path: Path, requests: int, rounds: int) -> dict[str, Any]:
    """What a fresh process says of the store."""
    command = [sys.executable, "-m", "benchmarks.many_tasks", "--serve", str(path.absolute())]
    command += ["--requests", str(requests), "--rounds", str(rounds), "--spawned", repr(time.time())]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def importing_torch() -> float:
    """Seconds of a process that only imports torch; the best of three."""
    took: list[float] = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        took.append(time.monotonic() - started)
    return min(took)


def stage(path: Path, backbone: BackboneFile, count: int, requests: int, rounds: int) -> dict[str, Any]:
    """All figures for one number of tasks."""
    made, torch_s = grow(path, backbone, count), importing_torch()
    first, second = in_process(path, 0, rounds), in_process(path, requests, rounds)
    return {
        **made,
        **second,
        "tasks": count,
        "torch_s": torch_s,
        "first_start": {"ready_s": first["ready_s"] - torch_s, "probed_s": first["probed_s"]},
        "ready_s": second["ready_s"] - torch_s,
    }


def rounded(value: Any) -> Any:
    """Four digits of every float in a document."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary_of(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The last line."""
    return {
        "benchmark": "many_tasks",
        "arch": args.arch,
        "size": args.size,
        "workers": 1,
        "threads": 1,
        "in_flight": IN_FLIGHT,
        "requests": args.requests,
        "rounds": args.rounds,
        "rows": rounded(list(rows)),
        "figures": {name: judged(*figure) for name, figure in figures(rows).items()},
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="keep the store here, and grow the one that is there")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    """Measure, print a table, end in one line of JSON."""
    args = parse()
    torch.set_num_threads(1)
    if args.serve:
        print(json.dumps(asyncio.run(serve(args.serve, args.spawned, args.requests, args.rounds))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.store or Path(folder, "store")
        backbone = create(args.arch, image_size=args.size, keep=1.0, seed=0)
        rows = [stage(path, backbone, count, args.requests, args.rounds) for count in sorted(args.tasks)]
    summary = summary_of(rows, args)
    print(table(rows), verdicts(rows), sep="\n\none worker of one thread:\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
