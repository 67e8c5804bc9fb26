"""The comparison with other servers, made tiny: plain FastAPI runs in our own environment, the others are not here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from benchmarks.peers import figures, memory
from benchmarks.peers.runs import Run, measure
from benchmarks.peers.servers import CONTENDERS, REQUIREMENTS, Kind, Server, contestants
from benchmarks.peers.tables import servers_table, targets
from benchmarks.peers.tasks import Tasks, make
from masks_store import Preprocess, normalise, open_image, pixels, to_batch

pytestmark = pytest.mark.timeout(300)
HERE = dict.fromkeys(REQUIREMENTS, sys.executable)


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
    told = measure(servers, [tasks], HERE, rounds=1, seconds=0.3, connections=2, say=left_out.append)
    runs = list(told)
    assert left_out == []
    assert [(run.server, run.tasks, run.same == run.answers) for run in runs] == [
        ("taskpack fp32", 2, True),
        ("fastapi as written fp32", 2, True),
    ]
    assert all(run.answers == 16 and run.error < 1e-3 and run.rate > 0 and run.memory > 50 * 2**20 for run in runs)
    assert all(0 < run.latency_ms["p50"] <= run.latency_ms["p90"] <= run.latency_ms["p99"] for run in runs)


@pytest.mark.parametrize(("kind", "missing"), [("ray", "ray"), ("torchserve", "ts"), ("triton", "pytriton")])
def test_a_server_that_does_not_start_is_left_out_with_its_own_words(tasks: Tasks, kind: Kind, missing: str) -> None:
    left_out: list[str] = []
    unknown = [Server(kind, False, False, 1)]  # not in this environment
    told = measure(unknown, [tasks], HERE, rounds=1, seconds=0.1, connections=1, say=left_out.append)
    assert list(told) == []
    assert len(left_out) == 1
    assert f"{kind} as written fp32 did not start" in left_out[0]
    assert f"No module named '{missing}'" in left_out[0]


@pytest.fixture
def contender(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a contender's program as its server does, which told it of the tasks."""
    monkeypatch.syspath_prepend(str(CONTENDERS))
    monkeypatch.setenv("PEER_ARGUMENTS", f"--folder\n{tasks.networks}\n--port\n0")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # this process is the tests'
    return importlib.import_module


class Context:
    """What TorchServe tells a handler of its requests."""

    def __init__(self, headers: list[dict[str, str]]) -> None:
        self._headers = headers

    def get_request_header(self, index: int, key: str) -> str:
        return self._headers[index][key]


def test_torchserves_handler_answers_as_the_reference(tasks: Tasks, contender: Callable[[str], ModuleType]) -> None:
    handler = contender("torchserve_handler").Classifiers()
    handler.initialize(None)
    asked = [(name, i) for name in tasks.names for i in range(2)]
    server = Server("torchserve", False, False, 1)
    requests = [server.asked(name, tasks.files[i]) for name, i in asked]
    assert {request["url"] for request in requests} == {"/predictions/tasks"}
    bodies = [{"body": bytearray(request["content"])} for request in requests]
    found = handler.handle(bodies, Context([request["headers"] for request in requests]))
    for (name, i), answer in zip(asked, found, strict=True):
        expected = tasks.expected[name][i]
        assert server.answer(answer) == (expected.label, pytest.approx(expected.score, abs=1e-3))


def test_torchserve_listens_on_this_machine_alone(contender: Callable[[str], ModuleType]) -> None:
    told = dict(line.split("=") for line in contender("torchserve_server").settings(8123, 2).splitlines())
    addresses = {key: value for key, value in told.items() if key.endswith("address")}
    assert len(addresses) == 5
    assert set(addresses.values()) == {"http://127.0.0.1:8123", "127.0.0.1"}
    assert (told["disable_token_authorization"], told["enable_metrics_api"]) == ("true", "false")
    assert told["default_workers_per_model"] == "2"


class Tensor:
    """Of Triton's Python backend."""

    def __init__(self, name: str, values: np.ndarray[Any, Any]) -> None:
        self.name, self._values = name, values

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._values


def test_tritons_model_answers_as_the_reference(
    tasks: Tasks, contender: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ModuleType("triton_python_backend_utils")  # requests are dicts here, and a response is its tensors
    backend.__dict__.update(Tensor=Tensor, InferenceResponse=lambda output_tensors: output_tensors)
    backend.__dict__["get_input_tensor_by_name"] = lambda request, name: Tensor(name, np.array([request[name]], object))
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    model = contender("triton_model").TritonPythonModel()
    model.initialize({})
    server = Server("triton", False, False, 1)
    for name in tasks.names:
        (response,) = model.execute([{"task": name.encode(), "image": tasks.files[0]}])
        outputs = [{"name": tensor.name, "data": tensor.as_numpy().tolist()} for tensor in response]
        expected = tasks.expected[name][0]
        assert server.answer({"outputs": outputs}) == (expected.label, pytest.approx(expected.score, abs=1e-3))


def test_a_picture_for_triton_follows_the_json_that_says_its_length() -> None:
    asked = Server("triton", False, False, 1).asked("task-0000", b"a picture")
    end = int(asked["headers"]["Inference-Header-Content-Length"])
    task, image = json.loads(asked["content"][:end])["inputs"]
    assert task["data"] == ["task-0000"]
    assert asked["content"][end:] == b"\x09\0\0\0a picture"
    assert image["parameters"] == {"binary_data_size": 13}


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
