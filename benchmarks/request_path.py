"""Where the processor's time of a request goes in the server under load: samples of py-spy, sorted by phase.

    python -m pip install py-spy
    python -m benchmarks.request_path [--py-spy py-spy] [--seconds 20] [--arch resnet18] [--size 224]

The server and its load are those of `benchmarks.server`: one worker of one thread, ten nested PackNet tasks drawn at
random with slots for all, JPEGs, 16 callers. py-spy looks at every thread of the server a hundred times a second and
keeps what is not waiting, as far as it can tell. A sample belongs to the phase of its innermost function that has one,
`PHASES`; what a library does for a phase is that phase's. A share is of all samples; the machine's other work is in
none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.peers.load import Callers
from benchmarks.peers.servers import started
from benchmarks.peers.tasks import make
from benchmarks.server import CALLERS, TASKS, Ours, view_bytes

PHASES = {
    "reading the body": (
        "service/edge/bodies",
        "service/edge/protocol",
        "service/edge/multipart",
        "service/api/payloads",
    ),
    "decoding": (
        "service/images",
        "service/image_headers",
        "service/plain_jpeg",
        "service/backlog",
        "masks_store/images",
        "PIL/",
    ),
    "queue and batching": (
        "service/batching",
        "service/workers",
        "service/serving",
        "service/loading",
        "service/residency",
        "service/following",
        "service/turnout",
    ),
    "engine": ("service/engine/",),
    "writing the answer": ("service/api/answers", "service/api/predictions", "service/api/ranking"),
    "handing over between threads": ("concurrent/futures/_base", "asyncio/futures"),
    "the event loop: sockets, waking": ("asyncio/runners",),
    "threads that look for work": ("concurrent/futures/thread",),
    "the rest of ours": ("service/", "masks_store/", "taskpack"),
    "the rest of the framework": (
        "starlette/",
        "fastapi/",
        "uvicorn/",
        "anyio/",
        "asyncio/",
        "prometheus_client/",
        "pydantic/",
    ),
}
"""Phase -> how its files' names begin; the first that fits."""

OTHER = "not sorted"


def phase_of(stack: str) -> str:
    """The phase of py-spy's `outermost (file:line);…;innermost (file:line)`."""
    for frame in reversed(stack.split(";")):
        found = re.search(r"\((?:.*/site-packages/)?(.+?)(?::\d+)?\)$", frame)
        file = found.group(1) if found else ""
        for phase, starts in PHASES.items():
            if file.startswith(starts):
                return phase
    return OTHER


def sorted_by_phase(lines: Iterable[str]) -> dict[str, int]:
    """Phase -> samples, of py-spy's raw format: a stack and its number a line."""
    found = dict.fromkeys((*PHASES, OTHER), 0)
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        if stack:
            found[phase_of(stack)] += int(count)
    return found


def recorded(py_spy: str, arch: str, size: int, seconds: float) -> tuple[list[str], int]:
    """py-spy's lines over so many seconds of load, and how many requests were answered in them."""
    with tempfile.TemporaryDirectory(prefix="taskpack-path-") as folder:
        tasks, raw = make(Path(folder, "made"), arch, size, TASKS), Path(folder, "raw")
        flags = ("--slot-bytes", str((TASKS + 2) * view_bytes(tasks)))
        server = Ours("taskpack", False, False, 1, flags)
        with (
            started(server, tasks, {}) as running,
            Callers(server, running, tasks, tasks.names, CALLERS) as callers,
        ):
            callers.wait_until_ready()
            callers.ask(seconds / 4)  # views are in their slots
            command = [py_spy, "record", "--pid", str(running.process.pid), "--rate", "100", "--nonblocking"]
            command += ["--duration", str(round(seconds)), "--format", "raw", "--output", str(raw)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as spying:
                done = len(callers.ask(seconds).waits)
                _, said = spying.communicate()
        lines = raw.read_text().splitlines() if raw.exists() else []
        if not lines:
            raise SystemExit(
                f"{py_spy} has recorded nothing; may it look at other processes here? It says: {said.strip()}"
            )
        return lines, done


def main(given: Sequence[str] | None = None) -> None:
    """Record, print a row for each phase, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--py-spy", default="py-spy")
    parser.add_argument("--raw", type=Path, help="keep py-spy's lines here")
    arguments = parser.parse_args(given)
    if shutil.which(arguments.py_spy) is None:
        parser.error(f"{arguments.py_spy} is not there: pip install py-spy, or give --py-spy")
    torch.set_num_threads(1)
    lines, done = recorded(arguments.py_spy, arguments.arch, arguments.size, arguments.seconds)
    if arguments.raw is not None:
        arguments.raw.write_text("\n".join(lines) + "\n")
    found = sorted_by_phase(lines)
    whole = sum(found.values())
    print(f"{done} requests in {arguments.seconds:g} s, {whole} samples; one worker of one thread")
    for phase, count in found.items():
        print(f"{phase:32} {100 * count / whole:6.1f} %")
    summary = {
        "benchmark": "request_path",
        "arch": arguments.arch,
        "size": arguments.size,
        "workers": 1,
        "threads": 1,
        "callers": CALLERS,
        "seconds": arguments.seconds,
        "requests": done,
        "samples": found,
        "versions": {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
