"""The engine's C functions, compiled from the source as it is now."""

from __future__ import annotations

import shutil
import subprocess
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
