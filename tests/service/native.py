"""The engine's C functions, compiled from the source as it is now."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "service/engine/native"
FLAGS = ["-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]


def build(made: Path, *flags: str) -> Path:
    """Compile the C functions into a file; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    subprocess.run([compiler, *FLAGS, *flags, "-o", str(made), *sources], check=True)
    return made


def run_guarded(source: str, made: Path, calls: int, *beside: str, flags: Sequence[str] = ()) -> None:
    """Build one of the programs beside this file with sanitizers, run so many calls, and fail where one is wrong.

    Args:
        source: the program's file, which includes what it tests.
        made: the program to build.
        calls: how many it makes.
        beside: other sources of the C functions that it calls.
        flags: for the compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    sources = [str(Path(__file__).with_name(source)), *(str(SOURCES / name) for name in beside)]
    watched = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compiler, "-O1", *watched, *flags, "-I", str(SOURCES), "-o", str(made), *sources, "-lgomp", "-lm"]
    subprocess.run(command, check=True)
    # what it allocates for its threads is libgomp's to the end
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    found = subprocess.run([str(made), str(calls)], capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stdout + found.stderr
