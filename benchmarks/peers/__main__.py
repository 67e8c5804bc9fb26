"""Our server beside LitServe, Ray Serve, TorchServe, Triton and plain FastAPI, each with a full network per task.

    python -m benchmarks.peers [--tasks 1 8] [--rounds 5] [--seconds 10] [--out FILE.json] [--figures FOLDER]

Prints a table and the targets, and ends in one line of JSON. `README.md` says what is compared and how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.environments import python_with
from benchmarks.learning.record import write

from . import figures
from .runs import Run, measure
from .servers import REQUIREMENTS, contestants
from .tables import servers_table, targets
from .tasks import make


def main() -> None:
    """Measure; or draw what was measured."""
    args = arguments(sys.argv[1:])
    if args.draw:
        runs = [Run(**run) for run in json.loads(args.draw.read_text())["runs"]]
        print("\n".join(map(str, figures.draw(runs, args.figures or args.draw.parent))))
        return
    servers = [server for server in contestants(args.cores) if not args.servers or server.name in args.servers]
    pythons = {
        name: python_with(name, REQUIREMENTS[name], args.venvs and args.venvs / name)
        for name in sorted({server.environment for server in servers if not server.ours})
    }
    told: dict[str, Any] = setting(args)
    runs: list[Run] = []
    left_out: list[str] = []

    def say(what: str) -> None:
        left_out.append(what)
        print(what, flush=True)

    with tempfile.TemporaryDirectory(prefix="taskpack-peers-") as folder:
        counts = sorted(args.tasks)
        stores = [make(Path(folder, str(count)), args.arch, args.size, count) for count in counts]
        measuring = measure(
            servers, stores, pythons, rounds=args.rounds, seconds=args.seconds, connections=args.connections, say=say
        )
        for run in measuring:
            runs.append(run)
            print(f"round {run.round}  {run.tasks:>4} tasks  {run.server:34} {run.rate:7.1f} requests/s", flush=True)
            if args.out:
                write(args.out, told | {"runs": [run.told() for run in runs], "left_out": left_out})
    print("\n" + servers_table(runs) + "\n")
    found = targets(runs)
    for target in found:
        value = "-" if target.value is None else f"{target.value:.2f}"
        print(f"{target.verdict:13} {value:>6}  (wanted {target.wanted:g})  {target.name}")
    if args.figures:
        figures.draw(runs, args.figures)
    print(json.dumps(told | {"targets": [target.told() for target in found], "left_out": left_out}))


def arguments(given: list[str]) -> argparse.Namespace:
    """From the command line; an unknown server is told with all that there are."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [server.name for server in contestants(1)]
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="under load, of each server in each round")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--cores", type=int, default=2, help="workers of one thread each")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--servers", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; by default the cache")
    parser.add_argument("--out", type=Path, help="every run as JSON, written after each")
    parser.add_argument("--figures", type=Path, help="folder for PNGs")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="only draw what --out wrote")
    return parser.parse_args(given)


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """What a result needs to be run again."""
    return {
        "benchmark": "peers",
        "command": " ".join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "arch": args.arch,
        "size": args.size,
        "cores": args.cores,
        "workers": args.cores,
        "threads": 1,
        "connections": args.connections,
        "seconds": args.seconds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: metadata.version(name) for name in ("taskpack", "torchvision", "fastapi", "uvicorn")}
        | dict(requirement.split("==") for requirements in REQUIREMENTS.values() for requirement in requirements),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
