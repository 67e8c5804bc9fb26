"""The comparison with other servers, made tiny: plain FastAPI runs in our own environment, the others are not here."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from benchmarks.peers import figures, memory
from benchmarks.peers.runs import Run, measure
from benchmarks.peers.servers import Server, contestants
from benchmarks.peers.tables import servers_table, targets
from benchmarks.peers.tasks import Tasks, make
from masks_store import Preprocess, normalise, open_image, pixels, to_batch

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    return make(tmp_path_factory.mktemp("peers"), "resnet18", 32, 2)


def test_the_peers_networks_are_the_stores_tasks(tasks: Tasks) -> None:
    picture = pixels(open_image(tasks.files[0]), Preprocess(resize=32, size=32))
    batch = normalise(to_batch(picture[None]), Preprocess(resize=32, size=32))
    labels = []
    for name in tasks.names:
        network = models.resnet18(num_classes=10)
        network.load_state_dict(load_file(tasks.networks / f"{name}.safetensors"))
        with torch.no_grad():
            score, label = network.eval()(batch).softmax(1).max(1)
        expected = tasks.expected[name][0]
        assert (int(label), float(score)) == (expected.label, pytest.approx(expected.score, abs=1e-4))
        labels.append(expected.score)
    assert len(set(labels)) == len(labels)  # two tasks' answers can be told apart


@pytest.mark.slow
def test_our_server_and_plain_fastapi_are_measured_and_answer_alike(tasks: Tasks) -> None:
    servers = [Server("taskpack", False, False, 1), Server("fastapi", False, False, 1)]
    left_out: list[str] = []
    told = measure(servers, [tasks], sys.executable, rounds=1, seconds=0.3, connections=2, say=left_out.append)
    runs = list(told)
    assert left_out == []
    assert [(run.server, run.tasks, run.same == run.answers) for run in runs] == [
        ("taskpack fp32", 2, True),
        ("fastapi as written fp32", 2, True),
    ]
    assert all(run.answers == 16 and run.error < 1e-3 and run.rate > 0 and run.memory > 50 * 2**20 for run in runs)
    assert all(0 < run.latency_ms["p50"] <= run.latency_ms["p90"] <= run.latency_ms["p99"] for run in runs)


def test_a_server_that_does_not_start_is_left_out_with_its_own_words(tasks: Tasks) -> None:
    left_out: list[str] = []
    unknown = [Server("ray", False, False, 1)]  # no ray in this environment
    told = measure(unknown, [tasks], sys.executable, rounds=1, seconds=0.1, connections=1, say=left_out.append)
    assert list(told) == []
    assert len(left_out) == 1
    assert "ray as written fp32 did not start" in left_out[0]
    assert "No module named 'ray'" in left_out[0]


def test_every_process_that_a_server_starts_is_counted_and_ended() -> None:
    mark, sleep = uuid.uuid4().hex, "print('up', flush=True); import time; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
    environ = {**os.environ, memory.MARK: mark}
    with subprocess.Popen([sys.executable, "-c", parent], env=environ, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == [b"up\n", b"up\n"]  # both run
            found = memory.marked(mark)
            assert process.pid in found
            assert len(found) == 2
            assert memory.memory_of(mark) > 2**20
        finally:
            memory.end(mark)
    assert memory.marked(mark) == []


def run(server: str, tasks: int, rate: float, memory_mib: float = 100.0, turn: int = 1) -> Run:
    waits = {"p50": 10.0, "p90": 20.0, "p99": 30.0}
    return Run(server, tasks, turn, rate, waits, int(memory_mib * 2**20), 16, 16, 0.0001)


def test_targets_are_ratios_to_the_best_peer_of_the_same_round() -> None:
    runs = [
        run("taskpack fp32", 8, 30.0, 300, turn=1),
        run("fastapi as written fp32", 8, 20.0, 900, turn=1),
        run("ray as written fp32", 8, 10.0, 100, turn=1),
        run("taskpack fp32", 8, 60.0, 300, turn=2),  # a quieter machine: both are faster
        run("fastapi as written fp32", 8, 40.0, 900, turn=2),
        run("ray as written fp32", 8, 20.0, 100, turn=2),
        run("taskpack fp32", 1, 50.0, 230),
        run("fastapi as written fp32", 1, 20.0, 200),
    ]
    found = {target.name: (target.value, target.verdict) for target in targets(runs)}
    assert found["taskpack fp32, 8 tasks: requests/s x the best peer as written"] == (1.5, "reached")
    memory_of_fastest = found["taskpack fp32, 8 tasks: memory x the fastest peer's (fastapi as written fp32)"]
    assert memory_of_fastest == (pytest.approx(300 / 900), "reached")
    slope = found["taskpack fp32, 1 to 8 tasks: memory of a further task x the fastest peer's"]
    assert slope == (pytest.approx(70 / 700), "reached")
    assert found["taskpack bf16, 8 tasks: requests/s x the best peer as written"] == (None, "not measured")


def test_the_table_has_a_line_for_every_server_and_number_of_tasks() -> None:
    runs = [run("taskpack fp32", n, 30.0) for n in (1, 8)] + [run("ray tuned bf16", 8, 12.0)]
    lines = servers_table(runs).splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| taskpack fp32", "1", "30.0"],
        ["| taskpack fp32", "8", "30.0"],
        ["| ray tuned bf16", "8", "12.0"],
    ]


def test_every_contestant_can_be_drawn(tmp_path: Path) -> None:
    runs = [run(server.name, n, 30.0) for server in contestants(2) for n in (1, 8)]
    drawn = figures.draw(runs, tmp_path)
    assert [path.name for path in drawn] == ["peers-throughput.png", "peers-memory.png", "peers-latency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
