"""A result: JSON with all that is needed to run it again, and a table for people."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PLACES = ("--work", "--out", "--data", "--mnist", "--weights")
"""Flags whose values are folders and files of one machine."""
LIBRARIES = ("taskpack", "torch", "lightning-fabric", "numpy")


def environment() -> dict[str, Any]:
    """Command, versions and machine."""
    return {
        "command": shlex.join(["python", "-m", _module(), *_flags()]),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def _flags() -> list[str]:
    """The command's arguments; places of this machine by their flag's name alone: `--work WORK`."""
    return [
        flag.strip("-").upper() if flag in PLACES and value != "none" else value for flag, value in pairwise(sys.argv)
    ]


def _module() -> str:
    """The program as `python -m` takes it; another caller's own name (a test's)."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def read(path: Path) -> dict[str, Any]:
    """A result that was written; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result in place of the last; safe to call after every task of a long run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def mean_sd(values: Sequence[float], scale: float = 100.0, digits: int = 2) -> str:
    """`mean ± sd` over seeds (sample deviation); the mean alone of one seed."""
    scaled = [scale * value for value in values]
    text = f"{statistics.mean(scaled):.{digits}f}"
    return f"{text} ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else text


def interval(found: Sequence[float], digits: int = 1) -> str:
    """A difference and its interval, fractions of 1, in points: `-2.2 (-4.9 to +0.3)`."""
    mean, low, high = (f"{100 * value:+.{digits}f}" for value in found)
    return f"{mean} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
