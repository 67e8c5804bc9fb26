"""Contestants in processes of their own that take turns, so that no thread pool of one disturbs another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def answer(prepare: Callable[[], Callable[[], Any]]) -> None:
    """A contestant's process: prepares, then makes one round for every line that it reads and answers in JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    one = prepare()
    for _ in sys.stdin:
        print(json.dumps(one()), file=answers, flush=True)


class Contestant:
    """A process that runs `answer`.

    Args:
        name: what messages call it.
        command: starts it.
        threads: of every library that computes.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int = 1) -> None:
        self.name, self.command = name, list(command)
        paths = [str(ROOT), os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [str(ROOT)]
        environment = {
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, str(threads)),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONWARNINGS": "ignore",
        }
        pipe = subprocess.PIPE
        self._folder = tempfile.TemporaryDirectory(prefix="taskpack-contestant-")
        self._errors = Path(self._folder.name, "stderr")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment
            )

    def round(self) -> Any:
        """What it answers to one line.

        Raises:
            SystemExit: its process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            command = " ".join(self.command)
            told = self._errors.read_text(errors="replace")[-2000:]
            raise SystemExit(f"{self.name} ended ({command}); it says:\n{told}") from None

    def end(self) -> None:
        """Wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()
