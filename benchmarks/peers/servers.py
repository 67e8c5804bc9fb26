"""The contestants: how each is started, and how it wants to be asked."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from . import memory
from .tasks import Tasks

CONTENDERS = Path(__file__).parent / "contenders"
ROOT = Path(__file__).parents[2]
REQUIREMENTS = {
    "peers": ("litserve==0.2.19", "ray[serve]==2.60.0", "torchserve==0.12.0", "simplejpeg==1.9.0"),
    "peers-triton": ("nvidia-pytriton==0.7.0", "simplejpeg==1.9.0"),  # wants an older numpy
}
"""Environment -> what is installed there."""

Kind = Literal[
    "taskpack", "taskpack sparing", "fastapi", "litserve", "litserve batching", "ray", "torchserve", "triton"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
BATCH = 8


@dataclass(frozen=True)
class Server:
    """One contestant.

    Attributes:
        kind: the program; `sparing` keeps as few written views as it can (`--slot-bytes 1`).
        tuned: the peers': see `contenders/network.py`. Ours is as it is.
        bf16: the arithmetic; float32 where not.
        cores: workers of one thread each; of LitServe's batching one worker with as many threads.
    """

    kind: Kind
    tuned: bool
    bf16: bool
    cores: int

    @property
    def ours(self) -> bool:
        """Whether it is Taskpack."""
        return self.kind.startswith("taskpack")

    @property
    def name(self) -> str:
        """As tables and `--servers` have it."""
        way = "" if self.ours else " tuned" if self.tuned else " as written"
        return f"{self.kind}{way} {'bf16' if self.bf16 else 'fp32'}"

    @property
    def environment(self) -> str:
        """The one of `REQUIREMENTS` that a peer runs in."""
        return "peers-triton" if self.kind == "triton" else "peers"

    def command(self, tasks: Tasks, port: int, pythons: Mapping[str, str]) -> list[str]:
        """What starts it; `pythons` has the interpreter of each environment."""
        if self.ours:
            flags = ["--port", str(port), "--workers", str(self.cores), "--dtype", "bf16" if self.bf16 else "fp32"]
            flags += ["--slot-bytes", "1"] * (self.kind == "taskpack sparing")
            return [sys.executable, "-m", "taskpack", "serve", str(tasks.store), *flags]
        batching = self.kind == "litserve batching"
        program = CONTENDERS / f"{self.kind.split()[0]}_server.py"
        flags = ["--folder", str(tasks.networks), "--port", str(port)]
        flags += ["--tuned"] * self.tuned + ["--bf16"] * self.bf16
        processes, threads = (1, self.cores) if batching else (self.cores, 1)
        flags += ["--processes", str(processes), "--threads", str(threads), "--batch", str(BATCH if batching else 1)]
        return [pythons[self.environment], str(program), *flags]

    def asked(self, task: str, file: bytes) -> dict[str, Any]:
        """Arguments of httpx's `request` for one picture of one task."""
        if self.kind.startswith("litserve"):
            return {"url": "/predict", "json": {"task": task, "image": base64.b64encode(file).decode()}}
        if self.kind == "triton":
            return _asked_of_triton(task, file)
        headers = {"Content-Type": "image/jpeg"}
        if self.kind == "ray":
            return {"url": "/", "content": file, "headers": headers | {"serve_multiplexed_model_id": task}}
        if self.kind == "torchserve":
            return {"url": "/predictions/tasks", "content": file, "headers": headers | {"task": task}}
        return {"url": "/predict", "params": {"task": task}, "content": file, "headers": headers}

    def answer(self, told: Mapping[str, Any]) -> tuple[int, float]:
        """(class, score) of a response's JSON."""
        if self.ours:
            best = told["predictions"][0]["labels"][0]
            return best["id"], best["score"]
        if self.kind == "triton":
            told = {output["name"]: output["data"][0] for output in told["outputs"]}
        return int(told["class"]), told["score"]


def _asked_of_triton(task: str, file: bytes) -> dict[str, Any]:
    """JSON, and behind it the picture as Triton has bytes: after their number (uint32, little-endian)."""
    image = len(file).to_bytes(4, "little") + file
    inputs = [
        {"name": "task", "shape": [1], "datatype": "BYTES", "data": [task]},
        {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(image)}},
    ]
    told = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(told))}
    return {"url": "/v2/models/tasks/infer", "content": told + image, "headers": headers}


def contestants(cores: int) -> list[Server]:
    """All: ours in both dtypes; each peer as written, and tuned in both."""
    ours = [Server(kind, False, bf16, cores) for kind in KINDS[:2] for bf16 in (False, True)]
    ways = [(False, False), (True, False), (True, True)]
    return ours + [Server(kind, tuned, bf16, cores) for kind in KINDS[2:] for tuned, bf16 in ways]


@dataclass(frozen=True)
class Started:
    """A running server."""

    url: str
    mark: str
    log: Path
    process: subprocess.Popen[bytes]

    def alive(self) -> bool:
        """Whether its first process still runs."""
        return self.process.poll() is None


@contextmanager
def started(server: Server, tasks: Tasks, pythons: Mapping[str, str]) -> Generator[Started]:
    """Start a server, with all that it starts; none is left behind the block."""
    mark, port = uuid.uuid4().hex, _free_port()
    paths = [str(ROOT), os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [str(ROOT)]
    environment = {**os.environ, memory.MARK: mark, "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": str(server.cores if server.kind == "litserve batching" else 1)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory(prefix="taskpack-peer-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                server.command(tasks, port, pythons), stdout=out, stderr=out, env=environment, cwd=folder
            )
        try:
            yield Started(f"http://127.0.0.1:{port}", mark, log, process)
        finally:
            process.terminate()
            try:
                process.wait(memory.END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            memory.end(mark)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
