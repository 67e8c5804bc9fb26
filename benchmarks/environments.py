"""Virtual environments for other people's packages, which borrow the torch that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def python_with(name: str, requirements: Sequence[str], venv: Path | None = None) -> str:
    """The interpreter of an environment, which is made from the package index where it is missing.

    Args:
        name: of its folder in the cache.
        requirements: as pip takes them; part of what makes an environment the right one.
        venv: its folder, instead of one in the cache.
    """
    venv = venv or cache() / name
    python, ready = venv / "bin" / "python", venv / "ready"
    wanted = "\n".join(requirements)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making {venv} with {', '.join(requirements)} (once, some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        library = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
        (library / "zz-host.pth").write_text(sysconfig.get_path("purelib") + "\n")  # last: its own packages go first
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        ready.write_text(wanted)
    return str(python)


def cache() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskpack"
