"""Several processes train one task (METHODS §0.7): what two of them get is what one gets, to float rounding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from masks_store import InvalidInput, Store, create
from trainer.job import prepare
from trainer.measure import predict
from trainer.pipeline import train
from trainer.progress import Silent
from trainer.runs import new_run

from .rig import CPU, SIZE, new_store, quick, shapes, state_bits
from .two_ranks import EVEN, MANY, MIXED, NORM, RUNS, loop_of, run_loop, tensors_of

pytestmark = pytest.mark.timeout(600)  # torch starts three times for each torchrun

REPOSITORY = Path(__file__).parents[2]


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stores, two sources, and what two processes made of them."""
    path = tmp_path_factory.mktemp("ranks")
    shapes(path / EVEN, train=61, val=15, test=1)  # batches of 9 and 8, an odd number of pictures, fewer than processes
    shapes(path / MANY, train=303, val=201, test=3)
    new_store(path / "half", keep=0.5)
    new_store(path / "none", keep=0.0)
    units = create("tinyresnet", image_size=SIZE, keep=0.0, arch_args={"width": 6, "blocks": [1, 1]})
    Store.create(path / "units", units, capacity="units")
    torch.save(norm_case(), path / "norm.pt")
    done = subprocess.run(
        torchrun("-m", "tests.trainer.two_ranks", str(path)),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return path


def norm_case() -> dict[str, Tensor]:
    """A batch of an odd number of pictures, far from mean 0 and deviation 1, and a gradient."""
    torch.manual_seed(0)
    x = torch.randn(7, 4, 3, 2, dtype=torch.float64) * torch.tensor([0.1, 1, 9, 3]).view(1, 4, 1, 1) + 20
    mean, variance = torch.randn(4).double(), torch.rand(4).double()
    weight, bias = torch.randn(4).double(), torch.randn(4).double()
    return {"x": x, "dy": torch.randn_like(x), "mean": mean, "variance": variance, "weight": weight, "bias": bias}


def both(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    return first, second


def interleaved(first: Tensor, second: Tensor) -> Tensor:
    """The batch of which one process had every other picture."""
    whole = first.new_empty(len(first) + len(second), *first.shape[1:])
    whole[0::2], whole[1::2] = first, second
    return whole


# ---------------------------------------------------------------- the norm


def test_a_synchronised_norm_is_batchnorm_on_the_whole_batch_forward_backward_and_in_its_statistics(folder):
    case, (first, second) = norm_case(), both(folder, "norm")
    plain = torch.nn.BatchNorm2d(4, **NORM).double()
    plain.load_state_dict(
        {
            "weight": case["weight"],
            "bias": case["bias"],
            "running_mean": case["mean"],
            "running_var": case["variance"],
            "num_batches_tracked": torch.tensor(0),
        }
    )
    x = case["x"].clone().requires_grad_()
    y = plain.train()(x)
    (y * case["dy"]).sum().backward()
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(interleaved(first["y"], second["y"]), y.detach(), **close)
    torch.testing.assert_close(interleaved(first["dx"], second["dx"]), x.grad, **close)
    torch.testing.assert_close(first["dweight"] + second["dweight"], plain.weight.grad, **close)
    torch.testing.assert_close(first["dbias"] + second["dbias"], plain.bias.grad, **close)
    for found in (first, second):
        torch.testing.assert_close(found["mean"], plain.running_mean, **close)
        torch.testing.assert_close(found["variance"], plain.running_var, **close)


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_picture_is_measured_once_by_two_processes_and_both_hear_of_all(folder, split):
    loop = loop_of(folder, *RUNS["linear"], None, None)
    pictures = loop.source.splits[split]
    assert len(pictures) % 2 == 1
    alone = predict(loop.network, pictures, loop.ground.backbone.manifest.preprocess, CPU, 0)
    for said in both(folder, f"evaluation-{split}"):
        assert said["labels"].tolist() == alone.labels.tolist() == pictures.labels.tolist()
        assert said["predicted"].tolist() == alone.predicted.tolist()
        torch.testing.assert_close(said["confidence"], torch.from_numpy(alone.confidence))
        torch.testing.assert_close(said["losses"], torch.from_numpy(alone.losses))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("name", [*RUNS, *MIXED, "dropout"])
def test_both_processes_hold_the_same_bits_after_training(folder, name):
    first, second = both(folder, name)
    assert state_bits(first) == state_bits(second)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(folder, name):
    expected, (found, _) = tensors_of(run_loop(folder, *RUNS[name])), both(folder, name)
    assert found.keys() == expected.keys()
    for tensor, ours in found.items():
        if ours.is_floating_point():
            torch.testing.assert_close(ours, expected[tensor], rtol=1e-3, atol=1e-4, msg=tensor)
        else:  # pruned weights, gated units, counts
            assert torch.equal(ours, expected[tensor]), tensor


def test_dropout_differs_between_processes_and_between_steps(folder):
    first, second = both(folder, "dropout-drawn")
    pictures = len(second["first"])
    assert not torch.equal(first["first"][:pictures], second["first"])
    assert not torch.equal(second["first"], second["second"][:pictures])


@pytest.mark.parametrize("name", ["packnet", "clnp", "dropout"])
def test_a_run_that_one_of_two_processes_was_asked_to_stop_resumes_to_the_same_bits(folder, name):
    expected, _ = both(folder, name)
    for found in both(folder, f"resumed-{name}"):
        assert state_bits(found) == state_bits(expected)


def test_a_failure_is_told_once_and_a_difference_by_all(folder):
    first, second = both(folder, "faults")
    told, elsewhere, out_of_step = 1, 2, 3
    assert first["heard"].tolist() == [told, elsewhere, told, out_of_step]
    assert second["heard"].tolist() == [elsewhere, told, elsewhere, out_of_step]


# ---------------------------------------------------------------- the command


def command(store: Path, data: Path, *flags: str) -> list[str]:
    return torchrun(
        *("-m", "taskpack", "train", str(store), "second", "--data", str(data), "--method", "packnet"),
        *("--epochs", "20", "--batch-size", "10", "--threads", "1", "--device", "cpu", *flags),
    )


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(arguments, env=environment(), stdout=stream, stderr=stream)


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def second_process_of(torchrun_process: int) -> int:
    """The process of rank 1 that torchrun started."""
    children = Path(f"/proc/{torchrun_process}/task/{torchrun_process}/children").read_text().split()
    (found,) = (int(child) for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A store with one task; the second's training lost a process, went on, was asked to stop, and went on again."""
    path = tmp_path_factory.mktemp("killed")
    data, store, logs = path / EVEN, path / "store", [path / f"{n}.log" for n in range(3)]
    shapes(data, train=61, val=15, test=1)
    with new_store(store) as made:
        train(made, "first", str(data), quick())
    running = start(command(store, data), logs[0])
    wait_for("train 2/20", logs[0], running)
    os.kill(second_process_of(running.pid), signal.SIGKILL)
    assert running.wait(300) != 0
    running = start(command(store, data, "--resume"), logs[1])
    wait_for("train 5/20", logs[1], running)
    running.send_signal(signal.SIGTERM)
    assert running.wait(300) != 0
    assert start(command(store, data, "--resume"), logs[2]).wait(300) == 0, logs[2].read_text()
    return store, data, [log.read_text() for log in logs]


def test_a_process_that_dies_ends_the_other_with_one_error_that_says_so(killed):
    _, _, (log, _, _) = killed
    assert log.count("error: another process of this run ended") == 1
    assert log.count("error: ") == 1
    assert "retrain" not in log.split("phase 1 of 2")[1]


def test_a_request_to_stop_stops_both_processes_at_a_checkpoint_and_is_told_once(killed):
    _, _, (_, log, _) = killed
    assert "going on with run" in log
    assert log.count("stopped; the checkpoint is kept") == 1
    assert "error: " not in log


def test_the_run_goes_on_registers_its_task_and_changes_none_before_it(killed):
    store, _, (_, _, log) = killed
    assert "going on with run" in log
    assert "train 20/20" in log
    assert "train 3/20" not in log
    assert log.count("earlier tasks changed: 0 bits (1 compared)") == 1
    with Store.open(store) as opened:
        assert {task.name for task in opened.tasks()} == {"first", "second"}
        assert opened.verify() == []
        (run,) = (path for path in opened.runs.iterdir() if json.loads(settings_of(path))["task"] == "second")
        assert json.loads(settings_of(run))["processes"] == 2
        assert {path.name for path in run.iterdir()} >= {"report.json", "results.csv", "predictions-val.csv"}


def settings_of(run: Path) -> str:
    return (run / "settings.json").read_text()


def test_a_fault_of_the_input_is_told_by_one_of_two_processes(killed, tmp_path):
    store, data, _ = killed
    log = tmp_path / "log"
    assert start(command(store, data, "--prune", "equal:1"), log).wait(300) != 0
    told = log.read_text()
    assert told.count("versions in this store hold claims already") == 1
    assert told.count("error: ") == 1


def test_processes_that_would_get_no_picture_of_a_batch_are_refused_in_every_fold_too(tmp_path):
    data = shapes(tmp_path / "a.npz", train=180, val=30)  # a fold trains with 140, in batches of 12 and 11
    with new_store(tmp_path / "store") as store:
        prepare(store, "shapes", data, quick(batch_size=12, prune=0.5), Silent(), 12)
        for rule, processes, smallest in ((0.5, 13, 12), ("auto", 12, 11)):
            with pytest.raises(InvalidInput, match=f"{processes} processes cannot share a batch of {smallest}: "):
                prepare(store, "shapes", data, quick(batch_size=12, prune=rule), Silent(), processes)


def test_a_run_of_two_processes_is_not_gone_on_with_by_one(tmp_path):
    data = shapes(tmp_path / EVEN)
    with new_store(tmp_path / "store") as store:
        job = prepare(store, "shapes", data, quick(), Silent(), 2)
        new_run(store.runs, job.plan).close()
        with pytest.raises(InvalidInput) as caught:
            train(store, "shapes", data, quick(resume=True))
        assert caught.value.faults == ("processes: 2 then, 1 now",)
