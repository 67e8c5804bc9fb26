"""`taskpack init`, `train` and `eval` as a user types them, in processes of their own where that matters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import taskpack
from masks_store import Store, create
from trainer.config import LABELS
from trainer.pipeline import train

from .rig import SIZE, new_store, quick, shapes
from .signals import signalled, wait_for

ROOT = Path(__file__).parents[2]
QUICK = ["--epochs", "2", "--batch-size", "10", "--threads", "1", "--device", "cpu"]


def _run(*arguments: object, expect: int = 0, capsys) -> tuple[str, str]:
    code = taskpack.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == expect, err
    return out, err


def test_init_train_eval_from_the_command_line(tmp_path, data, capsys):
    store = tmp_path / "store"
    out, _ = _run("init", store, "--backbone", "tinyresnet", "--image-size", 8, "--keep", 0.5, capsys=capsys)
    assert "50.0 %" in out
    assert "next: taskpack train" in out
    out, err = _run("train", store, "shapes", "--data", data, "--method", "packnet", *QUICK, capsys=capsys)
    assert "earlier tasks changed: 0 bits" in out
    assert "registered, stable" in out
    assert "capacity left: " in out
    assert "train 2/2" in err
    assert "images/s" in err
    out, _ = _run("eval", store, "shapes", "--data", data, capsys=capsys)
    assert "shapes" in out
    out, _ = _run("eval", store, "--data", data, "--json", capsys=capsys)
    (result,) = json.loads(out)["results"]
    manifest = Store.open(store).resolve("shapes").manifest
    assert (result["split"], result["images"]) == ("test", 15)
    assert result["top1"] == pytest.approx(manifest.metrics.test_top1)


def test_nothing_of_the_trainer_asks_the_network(tmp_path, data, capsys, monkeypatch):
    asked: list[object] = []

    def refused(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("there is no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    store = tmp_path / "store"
    _run("init", store, "--backbone", "resnet18", "--image-size", 32, capsys=capsys)
    _run("check", data, capsys=capsys)
    _run("plan", store, "--data", data, "--device", "cpu", "--threads", 1, capsys=capsys)
    _run("train", store, "shapes", "--data", data, "--method", "linear", *QUICK, capsys=capsys)
    _run("eval", store, "shapes", "--data", data, capsys=capsys)
    _run("report", store, "--out", tmp_path / "report", capsys=capsys)
    assert asked == []


def test_json_is_one_line_on_stdout_and_progress_stays_on_stderr(tmp_path, data, capsys):
    new_store(tmp_path / "store").close()
    arguments = ("train", tmp_path / "store", "shapes", "--data", data, "--method", "linear", *QUICK, "--json")
    out, err = _run(*arguments, capsys=capsys)
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["task"] == "shapes"
    assert report["changed_bits"] == 0
    assert report["plan"]["phases"][0]["epochs"] == 2
    assert "train 2/2" in err


def test_dry_run_tells_the_phases_and_the_cost(tmp_path, data, capsys):
    new_store(tmp_path / "store").close()
    arguments = ("train", tmp_path / "store", "shapes", "--data", data, "--method", "packnet", "--dry-run")
    out, err = _run(*arguments, capsys=capsys)
    assert "train 20 epochs" in out
    assert "retrain 10 epochs" in out
    assert "nothing was written" in out
    assert "gives back 75.0 %" in err
    out, _ = _run(*arguments, "--patience", 2, capsys=capsys)
    assert "train up to 20 epochs" in out
    assert "retrain up to 10 epochs" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "clnp"), "clnp takes units, and the tasks of this store take weights (--capacity weights)"),
        (("--method", "packnet", "--prune", "equal:no"), "--prune equal:no is not a number"),
        (("--method", "packnet", "--recipe", "slow"), "--recipe slow is not one of best, paper"),
        (("--method", "packnet", "--epochs", "0"), "--epochs 0 must be"),
    ],
)
def test_what_comes_later_or_is_wrong_is_refused_by_name_with_exit_code_2(tmp_path, data, arguments, said, capsys):
    new_store(tmp_path / "store").close()
    _, err = _run("train", tmp_path / "store", "shapes", "--data", data, *arguments, expect=2, capsys=capsys)
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def _told(command: str, *arguments: object, capsys) -> str:
    _, err = _run(command, *arguments, expect=2, capsys=capsys)
    return err


def test_a_source_and_a_base_that_are_not_there_are_told_with_the_settings(tmp_path, capsys):
    new_store(tmp_path / "s").close()
    wrong = ("--data", "nothere", "--on", "nope", "--epochs", 0, "--lr", -1, "--prune", 2, "--method", "packnet")
    err = _told("train", tmp_path / "s", "d2", *wrong, capsys=capsys)
    assert err.startswith("error: 5 things are wrong\n")
    for told in ("--epochs 0", "--lr -1", "--prune 2", "there is no source 'nothere'", "no task 'nope'"):
        assert told in err
    err = _told("train", tmp_path / "s", "d2", "--data", "nothere", "--on", "a@b", "--method", "clr", capsys=capsys)
    assert "no source 'nothere'" in err
    assert "'b' is not a version" in err
    err = _told("eval", tmp_path / "s", "d2", "--data", "nothere", "--split", "foo", "--version", "bar", capsys=capsys)
    for told in ("no source 'nothere'", "--split foo is not one of", "'bar' is not a version"):
        assert told in err
    err = _told("compare", tmp_path / "s", "d2", "--data", "no", "--methods", "clr,bn", "--epochs", 0, capsys=capsys)
    assert "--epochs 0" in err
    assert "no source 'no'" in err
    err = _told("plan", tmp_path / "s", "--data", "no", "none", "--seed", -1, capsys=capsys)
    for told in ("--seed -1", "no source 'no'", "no source 'none'"):
        assert told in err


def test_a_base_that_is_not_there_is_not_found_where_nothing_else_is_wrong(tmp_path, data, capsys):
    new_store(tmp_path / "s").close()
    arguments = ("train", tmp_path / "s", "d2", "--data", data, "--on", "nope", "--method", "clr")
    _, err = _run(*arguments, expect=1, capsys=capsys)
    assert err.startswith("error: no task 'nope' in this store")


def test_capacity_units_needs_keep_0(tmp_path, capsys):
    arguments = ("init", tmp_path / "s", "--backbone", "tinyresnet", "--capacity", "units")
    _, err = _run(*arguments, expect=2, capsys=capsys)
    assert "--capacity units needs --keep 0" in err
    assert not (tmp_path / "s").exists()


def test_a_clnp_task_tells_per_layer_what_it_added_and_reused_and_what_is_left(tmp_path, data, capsys):
    made = ("init", tmp_path / "s", "--backbone", "mlp-16-12", "--image-size", 8, "--keep", 0, "--capacity", "units")
    out, _ = _run(*made, capsys=capsys)
    assert "--method clnp" in out
    arguments = ("train", tmp_path / "s", "shapes", "--data", data, "--method", "clnp", "--margin", 10, *QUICK)
    out, err = _run(*arguments, capsys=capsys)
    report = json.loads(next((tmp_path / "s" / "runs").glob("*/report.json")).read_text())
    assert "threshold" in err
    assert [use["layer"] for use in report["units"]] == ["fc1", "fc2"]
    for use in report["units"]:
        assert use["new"] + use["free"] == use["units"]
        assert f"{use['layer']}: {use['new']} new and 0 reused of {use['units']} units; {use['free']} free" in out
    assert f"units: room for {report['tasks_left']} more such task" in out
    out, _ = _run(*arguments[:2], "again", *arguments[3:], "--finetune", "--dry-run", capsys=capsys)
    assert "finetune 1 epochs" in out


def test_a_full_store_is_exit_code_1_and_says_what_to_do(tmp_path, data, capsys):
    new_store(tmp_path / "store", keep=1.0).close()
    arguments = ("train", tmp_path / "store", "shapes", "--data", data, "--method", "packnet", *QUICK)
    _, err = _run(*arguments, expect=1, capsys=capsys)
    assert "--keep 0.5" in err


def test_eval_names_the_classes_that_a_task_does_not_know(tmp_path, data, capsys):
    store = new_store(tmp_path / "store")
    train(store, "shapes", data, quick(method="linear", epochs=1))
    more = shapes(tmp_path / "more.npz", classes=5)
    _, err = _run("eval", store.path, "shapes", "--data", more, expect=2, capsys=capsys)
    assert "'shape 3'" in err
    assert "'shape 4'" in err
    _, err = _run("eval", store.path, "--data", more, expect=2, capsys=capsys)
    assert "no task of this store knows all 5 classes" in err


def test_eval_matches_classes_by_name_where_a_source_has_fewer(tmp_path, data, capsys):
    """A source with the classes 1 and 2 only: label 0 of the source is class 1 of the task."""
    import numpy as np

    store = new_store(tmp_path / "store")
    train(store, "shapes", data, quick(method="packnet", epochs=6, lr=0.05))
    arrays = dict(np.load(data))
    for split in ("train", "val", "test"):
        keep = arrays[f"{split}_labels"] > 0
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = (
            arrays[f"{split}_images"][keep],
            arrays[f"{split}_labels"][keep] - 1,
        )
    arrays["class_names"] = arrays["class_names"][1:]
    np.savez(tmp_path / "fewer.npz", **arrays)
    out, _ = _run("eval", store.path, "--data", tmp_path / "fewer.npz", "--split", "all", "--json", capsys=capsys)
    fewer = json.loads(out)["results"][0]
    out, _ = _run("eval", store.path, "--data", data, "--split", "all", "--json", capsys=capsys)
    whole = json.loads(out)["results"][0]
    wrong = round(whole["images"] * (1 - whole["top1"]))
    wrong_of_fewer = round(fewer["images"] * (1 - fewer["top1"]))
    assert fewer["images"] == whole["images"] * 2 // 3
    assert wrong_of_fewer <= wrong < whole["images"] // 3


def test_every_flag_of_train_is_explained():
    help_text = CliRunner().invoke(taskpack.command, ["train", "--help"]).output
    flags = (
        "data method on prune norm recipe label out epochs lr batch-size optimizer weight-decay precision value-dtype"
    )
    flags += " device threads flip skip-broken seed resume dry-run json probe margin prune-by train-layers adapter"
    flags += " class-weight tensorboard"
    flags += " augment retrain-lr patience"
    for flag in flags.split():
        assert f"--{flag} " in help_text, flag
    assert "\\b" not in help_text
    assert "\n  or CLASS/…, split 70/15/15 by seed), a .zip" in help_text, "the paragraph keeps its lines"


def test_the_help_names_every_label_that_a_wrong_one_is_told():
    help_text = " ".join(CliRunner().invoke(taskpack.command, ["train", "--help"]).output.split())
    assert f"--label TEXT {', '.join(LABELS)}; auto is" in help_text


# ---------------------------------------------------------------- kill -9 and Ctrl-C

LONG = ("--method", "packnet", "--epochs", "10", "--batch-size", "10", "--threads", "1", "--device", "cpu")


def _resumed(store: Path, data: str) -> str:
    """The version that a stopped run gives when it goes on in this process; the store is sound before and after."""
    with Store.open(store) as opened:
        assert opened.tasks() == []
        assert opened.verify() == []
        report = train(opened, "shapes", data, quick(epochs=10, resume=True))
        assert opened.verify() == []
    assert not list(store.rglob("*.tmp"))
    return report.version


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """The version of a run that nobody stopped."""
    with new_store(tmp_path_factory.mktemp("undisturbed") / "store") as store:
        return train(store, "shapes", data, quick(epochs=10)).version


def test_a_run_killed_with_9_resumes_to_the_same_version(tmp_path, data, undisturbed):
    store = tmp_path / "store"
    new_store(store).close()
    command = [sys.executable, "-m", "taskpack", "train", str(store), "shapes", "--data", data, *LONG]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_for(store, "runs/*/checkpoint.safetensors")
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert _resumed(store, data) == undisturbed


@pytest.mark.parametrize(
    ("capacity", "chosen", "phase"),
    [
        ("weights", {"prune": "auto", "epochs": 50}, "retrain,1,"),
        ("weights", {"pick": True, "epochs": 50}, "train,9,"),
        ("units", {"method": "clnp", "lr": 5e-3, "margin": 5.0, "finetune": True, "epochs": 50}, "finetune,1,"),
    ],
    ids=["auto", "pick", "clnp"],
)
def test_a_method_of_several_phases_killed_with_9_in_one_resumes_to_the_same_version(
    tmp_path, data, capacity, chosen, phase
):
    arch_args = {"width": 4, "blocks": [1, 1]}
    keep = 0.5 if capacity == "weights" else 0.0
    backbone = create("tinyresnet", image_size=SIZE, keep=keep, arch_args=arch_args)
    versions = []
    for name in ("whole", "killed"):
        Store.create(tmp_path / name, backbone, capacity=capacity).close()
        if name == "killed":
            code = (
                "import sys; from masks_store import Store; from trainer.pipeline import train; "
                "from tests.trainer.rig import quick; "
                f"train(Store.open(sys.argv[1]), 'shapes', sys.argv[2], quick(**{chosen!r}))"
            )
            command = [sys.executable, "-c", code, str(tmp_path / name), data]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
                wait_for(tmp_path / name, "runs/*/results.csv", holding=phase)
                process.kill()
                assert process.wait(60) == -signal.SIGKILL, "it had not ended by itself"
            (results,) = (tmp_path / name).glob("runs/*/results.csv")
            first_epochs = results.read_text().splitlines()[:3]
        with Store.open(tmp_path / name) as store:
            assert store.tasks() == []
            versions.append(train(store, "shapes", data, quick(**chosen, resume=name == "killed")).version)
            assert store.verify() == []
    assert versions[0] == versions[1]
    assert results.read_text().splitlines()[:3] == first_epochs, (
        "with the seconds of the run that was killed: it went on"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_resumes_to_the_same_version(tmp_path, data, undisturbed, number, code, capsys):
    store = tmp_path / "store"
    new_store(store).close()
    with signalled(number, store, "runs/*/checkpoint.safetensors"):
        _, err = _run("train", store, "shapes", "--data", data, *LONG, expect=code, capsys=capsys)
    assert "--resume goes on from it" in err
    assert _resumed(store, data) == undisturbed
