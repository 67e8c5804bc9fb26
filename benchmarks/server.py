"""The server around its engine: what many tasks, HTTP, one request and a registration cost.

    python -m benchmarks.server [--arch resnet18] [--size 224] [--dtype fp32] [--rows http …] [--rounds 5] [--seconds 5]

Five rows, all with one worker of one thread, wall time, side by side in one run; the callers and the server's own
event loop and decoding are on the machine's other cores.

tasks      requests a second for ten nested PackNet tasks drawn at random over those for the first alone, 16 callers
           with JPEGs: with slots for three views, and for all (targets 0.85 and 0.97)
http       requests a second of the server for one task over pictures a second of the same engine without HTTP,
           decoded pictures, as many in flight (target 0.85)
pixels     the same with pictures that need next to no decoding (target 0.95). No route takes raw pixels: in their stead
           stand PNGs of exactly the network's size, stored without compression and filters, 4 bytes a row and some
           dozens a file more than the pixels, whose checksums are still taken
latency    one caller that does next to nothing, 50 and 99 of 100 requests in milliseconds: a request's time less its
           decoding, as the answer tells it, over the bare forward of that round, which is the engine's own without HTTP
           (targets 1 and 3); and over the forward that the answer tells. A machine's speed changes by more than a
           millisecond of a forward from minute to minute, which is in the former, and the server's forward over the
           bare one is told, too
register   seconds from `POST /tasks` of one more task to its first answer, which waits among the callers, less what its
           probe took by `Server-Timing`, its wait for the engine included; and the 99th percentile of the other tasks'
           waits in the seconds around it over that of as many seconds before (targets: 1 second, and 1.2).
           `--callers 4` keeps the one worker busy, too, with a shorter queue for the first answer to wait in

Tasks and JPEGs are those of benchmarks/peers; answers are compared with the slow reference first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.lone import Lone, lone_requests, of, percentile
from benchmarks.peers.load import Callers, PeerFailed
from benchmarks.peers.servers import Server, started
from benchmarks.peers.tasks import CLASSES, FILES, SHARE, Tasks, make
from benchmarks.targets import Target, judged
from benchmarks.turns import Contestant, answer
from masks_store import Store
from service.serving import Serving
from tests.zoo import task as random_task

ROWS = ("tasks", "http", "pixels", "register")
TASKS, CALLERS, TOKEN = 10, 16, "benchmark-of-the-server"


@dataclass(frozen=True)
class Ours(Server):
    """Our server with further flags."""

    flags: tuple[str, ...] = ()

    def command(self, tasks: Tasks, port: int, pythons: Mapping[str, str]) -> list[str]:
        """What starts it."""
        return [*super().command(tasks, port, pythons), *self.flags]


@dataclass(frozen=True)
class Bare(Server):
    """The least that answers over HTTP."""

    def command(self, tasks: Tasks, port: int, pythons: Mapping[str, str]) -> list[str]:
        """What starts it."""
        flags = ["--port", str(port), "--dtype", "bf16" if self.bf16 else "fp32"]
        return [sys.executable, "-m", "benchmarks.bare_route", str(tasks.store), *flags]


# ---------------------------------------------------------------- the engine without HTTP, in a process of its own


def engine_rounds(store: Path, dtype: Any, seconds: float) -> Callable[[], dict[str, float]]:
    """Pictures a second for the first task with as many in flight as callers, and milliseconds of a lone forward.

    The forward's are the worker's own, without the call's way to it and back.
    """
    torch.set_num_threads(1)
    opened = Store.open(store)
    serving = Serving(opened, dtype=dtype, workers=1, worker_threads=1)
    version = opened.resolve(opened.tasks()[0].name).version
    size = serving.image_size
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    runner = asyncio.Runner()
    runner.run(serving.start())

    async def many() -> float:
        done, until = 0, time.perf_counter() + seconds

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < until:
                await serving.infer(version, picture)
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return done / (time.perf_counter() - began)

    async def alone() -> float:
        taken: list[float] = []
        for _ in range(30):
            taken.append((await serving.infer(version, picture)).infer_ms)
        return statistics.median(taken)

    return lambda: {"rate": runner.run(many()), "ms": runner.run(alone())}


# ---------------------------------------------------------------- the rows


def view_bytes(tasks: Tasks) -> int:
    """About what one materialised view takes."""
    with Store.open(tasks.store) as store:
        return 4 * sum(tensor.numel() for tensor in store.backbone.tensors.values())


def measure_tasks(tasks: Tasks, server: Server, rounds: int, seconds: float) -> list[float]:
    """Per round, the rate for all tasks over that for the first."""
    with (
        started(server, tasks, {}) as running,
        Callers(server, running, tasks, tasks.names, CALLERS) as everyone,
        Callers(server, running, tasks, tasks.names[:1], CALLERS) as one,
    ):
        everyone.wait_until_ready()
        agreement = everyone.compare()
        if agreement.same < agreement.answers:
            raise PeerFailed(f"{agreement.answers - agreement.same} answers differ from the slow reference's")
        pairs = [(everyone.ask(seconds).rate, one.ask(seconds).rate) for _ in range(rounds + 1)]
    return [many / alone for many, alone in pairs[1:]]


def engine_of(tasks: Tasks, dtype: str, seconds: float) -> Contestant:
    """The engine without HTTP."""
    command = [sys.executable, "-m", "benchmarks.server", "--engine", str(tasks.store), "--dtype", dtype]
    return Contestant("the engine", [*command, "--seconds", str(seconds)])


def measure_http(
    tasks: Tasks, server: Server, dtype: str, rounds: int, seconds: float
) -> tuple[list[float], list[Lone], list[Lone], float]:
    """Per round, the server's rate over the engine's; lone requests, to it and the bare route; a bare forward's ms."""
    engine = engine_of(tasks, dtype, seconds)
    ratios: list[float] = []
    forwards: list[float] = []
    requests: list[Lone] = []
    floor: list[Lone] = []
    least = Bare("taskpack", tuned=False, bf16=dtype == "bf16", cores=1)
    with (
        started(server, tasks, {}) as running,
        Callers(server, running, tasks, tasks.names[:1], CALLERS) as callers,
        started(least, tasks, {}) as bare_route,
        Callers(least, bare_route, tasks, tasks.names[:1], 1) as its_caller,
    ):
        callers.wait_until_ready()
        its_caller.wait_until_ready()
        for turn in range(rounds + 1):
            bare, rate = engine.round(), callers.ask(seconds).rate
            lone, its = (lone_requests(url, tasks, bare["ms"]) for url in (running.url, bare_route.url))
            if turn:
                ratios.append(rate / bare["rate"])
                forwards.append(bare["ms"])
                requests += lone
                floor += its
    engine.end()
    return ratios, requests, floor, statistics.median(forwards)


def measure_pixels(tasks: Tasks, server: Server, dtype: str, rounds: int, seconds: float) -> list[float]:
    """Per round, the rate with pictures that need next to no decoding over the engine's."""
    random = np.random.default_rng(0)
    with Store.open(tasks.store) as store:
        size = store.backbone.manifest.image_size
    pictures = random.integers(0, 256, (FILES, size, size, 3), dtype=np.uint8)
    stored = replace(tasks, files=[stored_png(picture) for picture in pictures])
    engine = engine_of(tasks, dtype, seconds)
    with (
        started(server, stored, {}) as running,
        Callers(server, running, stored, stored.names[:1], CALLERS) as callers,
    ):
        callers.wait_until_ready()
        pairs = [(callers.ask(seconds).rate, engine.round()["rate"]) for _ in range(rounds + 1)]
    engine.end()
    return [served / alone for served, alone in pairs[1:]]


def stored_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W, 3] whose rows are neither filtered nor compressed."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: no filter
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@dataclass(frozen=True)
class Registration:
    """Seconds of one: the probe, the rest of `POST /tasks`, the first answer."""

    probe: float
    rest: float
    answer: float


def measure_registration(
    tasks: Tasks, server: Server, rounds: int, seconds: float, asking: int
) -> tuple[list[Registration], list[float]]:
    """Per round, a registration while so many are `asking`, and the others' 99th percentile then over that before."""
    took: list[Registration] = []
    ratios: list[float] = []
    with (
        started(server, tasks, {}) as running,
        Callers(server, running, tasks, tasks.names, asking) as callers,
        httpx.Client(base_url=running.url, trust_env=False, timeout=60) as admin,
    ):
        callers.wait_until_ready()
        callers.ask(seconds)
        for turn in range(rounds):
            artifact = one_more(tasks, turn)
            before = percentile(callers.ask(seconds).waits, 0.99)

            def send(artifact: tuple[str, bytes] = artifact) -> None:
                took.append(register(admin, artifact, tasks))

            registering = threading.Thread(target=send)
            registering.start()
            meanwhile = percentile(callers.ask(seconds).waits, 0.99)
            registering.join()
            ratios.append(meanwhile / before)
    return took, ratios


def one_more(tasks: Tasks, number: int) -> tuple[str, bytes]:
    """A further task on top of the others, not registered: its name and its artifact."""
    name = f"more-{number}"
    with Store.open(tasks.store) as store:
        made = random_task(
            store.backbone,
            name,
            ancestors=store.lineage(store.resolve(tasks.names[-1]).version),
            taken=list(store.claims().values()),
            seed=100 + number,
            classes=CLASSES,
            share=SHARE,
            own_norm=True,
        )
    return name, made


def register(admin: httpx.Client, artifact: tuple[str, bytes], tasks: Tasks) -> Registration:
    """Send it, and ask it once."""
    name, data = artifact
    began = time.perf_counter()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/octet-stream"}
    answer = admin.post("/tasks", content=data, headers=headers).raise_for_status()
    registered = time.perf_counter()
    stages = (stage.split(";dur=") for stage in answer.headers["Server-Timing"].split(", "))
    probe = {name: float(ms) / 1e3 for name, ms in stages}["probe"]
    asked = {"Content-Type": "image/jpeg"}
    admin.post("/predict", params={"task": name}, content=tasks.files[0], headers=asked).raise_for_status()
    return Registration(probe, registered - began - probe, time.perf_counter() - registered)


# ---------------------------------------------------------------- all of it


def measured(arguments: argparse.Namespace, tasks: Tasks) -> dict[str, Any]:
    """All rows."""
    rounds, seconds, bf16 = arguments.rounds, arguments.seconds, arguments.dtype == "bf16"
    view = view_bytes(tasks) // (2 if bf16 else 1)
    few = Ours("taskpack", False, bf16, 1, ("--slot-bytes", str(int(3.5 * view))))
    enough = Ours("taskpack", False, bf16, 1, ("--slot-bytes", str((TASKS + 2) * view)))
    rows: dict[str, Any] = {}

    print("one worker of one thread", flush=True)

    def row(name: str, value: float, bound: float, *, at_most: bool = False) -> None:
        target = Target(bound, at_most)
        rows[name] = judged(value, target)
        print(f"{name:52} {value:8.3f}  {target.told(value)}", flush=True)

    def note(name: str, value: float) -> None:
        rows[name] = round(value, 3)
        print(f"{name:52} {value:8.3f}", flush=True)

    if "tasks" in arguments.rows:
        for name, server, target in (("three", few, 0.85), ("all", enough, 0.97)):
            ratios = measure_tasks(tasks, server, rounds, seconds)
            row(f"tasks: ten, slots for {name}, x one task", statistics.median(ratios), target)
    if "http" in arguments.rows:
        ratios, lone, floor, forward = measure_http(tasks, enough, arguments.dtype, rounds, seconds)
        row("http: the server with JPEGs, x its engine", statistics.median(ratios), 0.85)
        for share, bound in ((0.5, 1.0), (0.99, 3.0)):
            name = f"latency: added {{}}, p{100 * share:.0f}, ms"
            row(name.format("over the bare forward"), of(lone, "over_bare", share), bound, at_most=True)
            note(name.format("over the server's forward"), of(lone, "added", share))
            note(name.format("by a bare route, over bare"), of(floor, "over_bare", share))
            note(name.format("by a bare route, over its own"), of(floor, "added", share))
        note("bare forward, ms", forward)
        note("forward in the server, x bare", statistics.median(one.forward for one in lone) / forward)
    if "pixels" in arguments.rows:
        ratios = measure_pixels(tasks, enough, arguments.dtype, rounds, seconds)
        row("pixels: with stored PNGs of its size, x its engine", statistics.median(ratios), 0.95)
    if "register" in arguments.rows:
        took, meanwhile = measure_registration(tasks, enough, rounds, seconds, arguments.callers)
        beside = statistics.median(one.rest + one.answer for one in took)
        row("register: to its first answer, beside its probe, s", beside, 1.0, at_most=True)
        for part in ("probe", "rest", "answer"):
            note(f"register: {part}, s", statistics.median(getattr(one, part) for one in took))
        row("register: others' p99 meanwhile, x before", statistics.median(meanwhile), 1.2, at_most=True)
    return rows


def main() -> None:
    """Measure, print the rows, end in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="http: latency, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--callers", type=int, default=CALLERS, help="of the row register")
    parser.add_argument("--out", type=Path, help="a JSON file of its own")
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        answer(lambda: engine_rounds(arguments.engine, arguments.dtype, arguments.seconds))
        return
    os.environ["TASKPACK_ADMIN_TOKEN"] = TOKEN
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="taskpack-server-") as folder:
        rows = measured(arguments, make(Path(folder, "made"), arguments.arch, arguments.size, TASKS))
    summary = {
        "benchmark": "server",
        "arch": arguments.arch,
        "size": arguments.size,
        "dtype": arguments.dtype,
        "workers": 1,
        "threads": 1,
        "callers": CALLERS,
        "callers of register": arguments.callers,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "rows": rows,
        "versions": {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
