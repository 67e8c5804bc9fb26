"""What a result says of the run that made it."""

from __future__ import annotations

import sys

from benchmarks.learning.record import environment


def test_a_results_command_can_be_typed_again_and_names_no_folder_of_a_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--seeds", "0", "--work", "/home/me", "--weights", "none", "--data", "/d"])
    command = environment()["command"]
    assert command.endswith(" --seeds 0 --work WORK --weights none --data DATA")
    monkeypatch.setattr(sys, "argv", ["x"])
    assert environment()["command"].startswith("python -m ")
