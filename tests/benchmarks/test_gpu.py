"""benchmarks/gpu.py: says where there is no GPU, and does every step of a run in its rehearsal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", "--no-tests", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so_and_nothing_is_measured() -> None:
    found = run()
    assert found.returncode == 2
    assert found.stdout.count("\n") == 1
    assert "no usable NVIDIA GPU" in found.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rehearsal_tries_every_row_and_ends_in_json() -> None:
    found = run("--rehearse")
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout.splitlines()[-1])
    assert [row["name"].split(",")[0].split(" ")[0] for row in summary["rows"]] == [
        "cold",
        "batch",
        "packnet",
        "batch",
        "batch",
        "clr",
    ]
    assert [row["goal"] for row in summary["rows"] if row["goal"] is not None] == [34_000]
    assert summary["threads"] >= summary["workers"] == 1
    assert summary["missing"] == []
    assert {row["pass"] for row in summary["rows"]} == {None}, "a rehearsal measures nothing"
