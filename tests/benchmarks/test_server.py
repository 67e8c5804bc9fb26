"""benchmarks/server.py, made tiny: every row is measured over a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_row_is_measured_and_says_whether_its_target_is_met(tmp_path: Path) -> None:
    out = tmp_path / "server.json"
    command = [sys.executable, "-m", "benchmarks.server", "--size", "32", "--rounds", "1", "--seconds", "0.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary == json.loads(out.read_text())
    rows = {name: row for name, row in summary["rows"].items() if isinstance(row, dict)}
    assert [name.split(":")[0] for name in rows] == [
        "tasks", "tasks", "http", "latency", "latency", "pixels", "register", "register",
    ]  # fmt: skip
    at_most = ("latency", "register")
    for name, row in rows.items():
        assert row["met"] == (
            row["value"] <= row["target"] if name.startswith(at_most) else row["value"] >= row["target"]
        )
        assert row["value"] > 0 or name.startswith("latency")
