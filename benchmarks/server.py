"""The server around its engine: what many tasks, HTTP, one request and a registration cost.

    python -m benchmarks.server [--arch resnet18] [--size 224] [--dtype fp32] [--rows http …] [--rounds 5] [--seconds 5]

Four rows, all with one worker of one thread, wall time, side by side in one run; the callers and the server's own
event loop and decoding are on the machine's other cores.

tasks      requests a second for ten nested PackNet tasks drawn at random over those for the first alone, 16 callers
           with JPEGs: with slots for three views, and for all (targets 0.85 and 0.97)
http       requests a second of the server for one task over pictures a second of the same engine without HTTP,
           decoded pictures, as many in flight (target 0.85)
latency    one caller that does next to nothing: a request's time less its decoding and its forward, as the answer
           tells them, 50 and 99 of 100 requests in milliseconds (targets 1 and 3); and the server's forward over the
           engine's bare one. A machine's speed changes by more than a millisecond of a forward from minute to minute
register   seconds from `POST /tasks` of one more task to its first answer, which waits among the callers, less what its
           probe took by `Server-Timing`, its wait for the engine included; and the 99th percentile of the other tasks'
           waits in the seconds around it over that of as many seconds before (targets: 1 second, and 1.2).
           `--callers 4` keeps the one worker busy, too, with a shorter queue for the first answer to wait in

Tasks and JPEGs are those of benchmarks/peers; answers are compared with the slow reference first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.peers.load import Callers, PeerFailed
from benchmarks.peers.servers import Server, started
from benchmarks.peers.tasks import CLASSES, SHARE, Tasks, make
from benchmarks.turns import Contestant, answer
from masks_store import Store
from service.serving import Serving
from tests.zoo import task as random_task

ROWS = ("tasks", "http", "register")
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
    """Pictures a second for the first task with as many in flight as callers, and milliseconds of a lone forward."""
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
            began = time.perf_counter()
            await serving.infer(version, picture)
            taken.append((time.perf_counter() - began) * 1e3)
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


def measure_http(
    tasks: Tasks, server: Server, dtype: str, rounds: int, seconds: float
) -> tuple[list[float], list[Lone], list[Lone], float]:
    """Per round, the server's rate over the engine's; lone requests, to it and the bare route; a bare forward's ms."""
    command = [sys.executable, "-m", "benchmarks.server", "--engine", str(tasks.store), "--dtype", dtype]
    bare = Contestant("the engine", [*command, "--seconds", str(seconds)])
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
            engine, rate = bare.round(), callers.ask(seconds).rate
            lone, its = lone_requests(running.url, tasks), lone_requests(bare_route.url, tasks)
            if turn:
                ratios.append(rate / engine["rate"])
                forwards.append(engine["ms"])
                requests += lone
                floor += its
    bare.end()
    return ratios, requests, floor, statistics.median(forwards)


@dataclass(frozen=True)
class Lone:
    """Milliseconds of a request: its forward, and all that is neither that nor decoding."""

    forward: float
    added: float


def lone_requests(url: str, tasks: Tasks, count: int = 100) -> list[Lone]:
    """Requests one after another, by a client that does next to nothing."""
    draw, taken = random.Random(0), list[Lone]()
    path, headers = f"/predict?task={tasks.names[0]}", {"Content-Type": "image/jpeg"}
    with contextlib.closing(http.client.HTTPConnection(httpx.URL(url).netloc.decode(), timeout=60)) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.request("POST", path, draw.choice(tasks.files), headers)
            response = connection.getresponse()
            body = response.read()
            took = (time.perf_counter() - began) * 1e3
            if response.status != 200:
                raise PeerFailed(f"{response.status}: {body.decode()}")
            timing = json.loads(body)["timing_ms"]
            taken.append(Lone(timing["infer"], took - timing["decode"] - timing["infer"]))
    return taken


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


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share does not exceed."""
    return sorted(values)[max(0, int(np.ceil(share * len(values))) - 1)]


# ---------------------------------------------------------------- all of it


def measured(arguments: argparse.Namespace, tasks: Tasks) -> dict[str, Any]:
    """All rows."""
    rounds, seconds, bf16 = arguments.rounds, arguments.seconds, arguments.dtype == "bf16"
    view = view_bytes(tasks) // (2 if bf16 else 1)
    few = Ours("taskpack", False, bf16, 1, ("--slot-bytes", str(int(3.5 * view))))
    enough = Ours("taskpack", False, bf16, 1, ("--slot-bytes", str((TASKS + 2) * view)))
    rows: dict[str, Any] = {}

    def row(name: str, value: float, target: float, *, at_most: bool = False) -> None:
        met = value <= target if at_most else value >= target
        rows[name] = {"value": round(value, 4), "target": target, "met": met}
        sign, verdict = "<=" if at_most else ">=", "met" if met else "MISSED"
        print(f"{name:50} {value:8.3f}  target {sign} {target:g}: {verdict}", flush=True)

    if "tasks" in arguments.rows:
        for name, server, target in (("three", few, 0.85), ("all", enough, 0.97)):
            ratios = measure_tasks(tasks, server, rounds, seconds)
            row(f"tasks: ten, slots for {name}, x one task", statistics.median(ratios), target)
    if "http" in arguments.rows:
        ratios, lone, floor, forward = measure_http(tasks, enough, arguments.dtype, rounds, seconds)
        added = [one.added for one in lone]
        row("http: the server with JPEGs, x its engine", statistics.median(ratios), 0.85)
        row("latency: added, p50, ms", percentile(added, 0.5), 1.0, at_most=True)
        row("latency: added, p99, ms", percentile(added, 0.99), 3.0, at_most=True)
        for share in (0.5, 0.99):
            least = percentile([one.added for one in floor], share)
            rows[f"latency: added by a bare route, p{100 * share:.0f}, ms"] = round(least, 3)
        rows["bare forward, ms"] = round(forward, 3)
        rows["forward in the server, x bare"] = round(statistics.median(one.forward for one in lone) / forward, 3)
    if "register" in arguments.rows:
        took, meanwhile = measure_registration(tasks, enough, rounds, seconds, arguments.callers)
        beside = statistics.median(one.rest + one.answer for one in took)
        row("register: to its first answer, beside its probe, s", beside, 1.0, at_most=True)
        for part in ("probe", "rest", "answer"):
            rows[f"register: {part}, s"] = round(statistics.median(getattr(one, part) for one in took), 3)
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
