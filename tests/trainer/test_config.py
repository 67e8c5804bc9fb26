"""Settings are checked before anything is touched, and every fault is told at once."""

from __future__ import annotations

import pytest
import torch

from masks_store import InvalidInput
from trainer.backbone import init
from trainer.compare import compare
from trainer.config import Settings, check_settings, resolve_device, settings_from
from trainer.evaluate import evaluate
from trainer.order import propose
from trainer.prune import parse_prune

from .rig import new_store


def _faults(task: str = "birds", **fields: object) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        check_settings(task, Settings(**fields))
    return caught.value.faults


def test_the_defaults_are_sound():
    check_settings("birds", Settings())
    check_settings("birds", Settings(prune="auto", margin=2.0))
    check_settings("birds", Settings(prune="equal:8"))
    assert parse_prune(Settings().prune) == 0.75


def test_every_fault_is_told_at_once():
    faults = _faults(
        "Big Birds",
        method="packnet",
        prune="1.5",
        norm="none",
        label="latest",
        epochs=0,
        lr=-1.0,
        batch_size=1,
        optimizer="lion",
        weight_decay=float("nan"),
        precision="bf16-true",
        value_dtype="f64",
        device="tpu",
        threads=0,
        seed=-1,
        probe="none",
        recipe="fast",
        train_layers="few",
        prune_by="luck",
        class_weight="fair",
        augment="much",
        retrain_lr=0.0,
    )
    names = ["Big Birds", "--prune", "--norm", "--label", "--precision", "--value-dtype", "--optimizer", "--probe"]
    names += [
        "--epochs",
        "--batch-size",
        "--threads",
        "--seed",
        "--lr",
        "--weight-decay",
        "--recipe",
        "--device",
        "--train-layers",
    ]
    names += ["--prune-by", "--class-weight", "--augment", "--retrain-lr"]
    for name in names:
        assert len([fault for fault in faults if f"{name} " in fault or f"'{name}'" in fault]) == 1, name
    assert len(faults) == len(names)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prune": "equal:none"}, "--prune equal:none is not a number"),
        ({"method": "clr", "prune": "auto"}, "--prune is for packnet"),
        ({"margin": 0.5}, "--margin is what --prune auto may give up"),
        ({"prune": "auto", "margin": -1.0}, "--margin -1.0 must be points"),
        ({"prune": "auto", "margin": float("nan")}, "--margin nan must be points"),
        ({"recipe": "fast"}, "--recipe fast is not one of best, paper"),
        ({"recipe": "paper", "method": "clr", "flip": True}, "--flip does not go with --recipe paper of clr"),
        ({"augment": "none", "flip": True}, "--flip does not go with --augment none"),
        ({"method": "clr", "retrain_lr": 1e-3}, "--retrain-lr is for packnet"),
        ({"adapter": "wide", "method": "clr"}, "--adapter wide is not one of depthwise, full"),
        ({"adapter": "full", "method": "bn"}, "--adapter is for clr"),
        ({"prune_by": "layers"}, "--prune-by layers is not one of weights, filters"),
        ({"prune_by": "filters", "method": "clr"}, "--prune-by is for packnet; clr prunes no weights"),
        ({"class_weight": "even"}, "--class-weight even is not one of none, balanced"),
        ({"train_layers": "first:2"}, "--train-layers first:2 is not one of"),
        ({"train_layers": "last:0"}, "--train-layers last:0 is not one of"),
        ({"train_layers": "last:2", "method": "bn"}, "--train-layers is for packnet"),
        ({"train_layers": "head", "prune": 0.5}, "leave --prune out"),
        ({"method": "nonsense"}, "--method nonsense is not one of"),
        ({"precision": "bf16-true"}, "would round frozen weights"),
        ({"prune": "most"}, "--prune most is not a number"),
        ({"prune": 1.0}, "below 1"),
        ({"prune": "nan"}, "below 1"),
        ({"method": "clr", "prune": 0.5}, "--prune is for packnet"),
        ({"method": "clr", "pick": True}, "--pick is for packnet; clr uses all"),
        ({"method": "piggyback", "pick": True}, "--pick is for packnet; piggyback picks"),
        ({"method": "piggyback", "prune": 0.5}, "--prune is for packnet"),
        ({"method": "clr", "norm": "shared"}, "--norm shared does not go with clr"),
        ({"method": "linear", "norm": "own"}, "--norm own does not go with linear"),
        ({"out": "/no/such/folder/x.safetensors"}, "does not exist"),
        ({"out": "/"}, "is a folder"),
        ({"epochs": 2**63}, "--epochs"),
        ({"patience": -1}, "--patience -1 must be a whole number of at least 0"),
        ({"epochs": 1.5}, "--epochs 1.5 must be a whole number"),
        ({"seed": True}, "--seed True must be a whole number"),
        ({"prune": 0, "retrain_lr": 1e-3}, "--retrain-lr is of the retraining after pruning, and nothing is pruned"),
        ({"train_layers": "head", "prune_by": "filters"}, "--prune-by says what is pruned, and nothing is"),
        ({"threads": 4097}, "--threads 4097 must be a whole number from 1 to 4,096"),
        ({"lr": float("inf")}, "--lr inf must be a finite number over 0"),
        ({"weight_decay": float("inf")}, "--weight-decay inf must be a finite number of at least 0"),
        ({"out": "x.st", "label": "canary"}, "--label canary does not go with --out, which registers nothing"),
        ({"method": "finetune", "out": "x.st", "label": "stable"}, "does not go with finetune, which registers"),
        ({"train_layers": "last:2", "prune": "equal:4"}, "--prune equal:T shares out what is free in all layers"),
    ],
)
def test_one_wrong_setting_is_the_message_itself(fields, said):
    (fault,) = _faults(**fields)
    assert said in fault


def test_a_file_of_its_own_goes_with_no_label_and_with_the_default_one():
    for label in ("auto", "none"):
        check_settings("birds", Settings(out="x.st", label=label))


def test_a_device_that_is_not_there_is_told_before_anything_is_read():
    (fault,) = _faults(device="cuda:77")
    assert "--device cuda:77 is not there" in fault


def test_an_unknown_keyword_of_the_python_api_is_named_with_those_that_exist():
    with pytest.raises(InvalidInput, match=r"'epoch' is not a setting.*'speed' is not a setting.*epochs") as caught:
        settings_from({"epoch": 3, "speed": "high"})
    assert len(caught.value.faults) == 2


def _as_torchrun_would(monkeypatch, count: int) -> None:
    variables = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "RANK": 1, "TORCHELASTIC_RUN_ID": "run"}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_processes_that_something_else_than_torchrun_started_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (fault,) = _faults(device="cpu")
    assert "start them with torchrun --nproc-per-node 2" in fault


def test_several_processes_train_together_on_one_machine_alone(monkeypatch):
    _as_torchrun_would(monkeypatch, 2)
    check_settings("birds", Settings(device="cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    (fault,) = _faults(device="cpu")
    assert "on several machines" in fault


def test_each_of_several_processes_takes_its_own_gpu_and_there_must_be_one(monkeypatch):
    _as_torchrun_would(monkeypatch, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, said in (("cuda:1", "cuda:1 is one GPU"), ("auto", "3 processes need 3 GPUs, and torch finds 2")):
        (fault,) = _faults(device=device)
        assert said in fault
    assert resolve_device("cuda") == torch.device("cuda:1")


def test_what_would_only_be_done_twice_is_refused_to_several_processes(tmp_path, monkeypatch):
    store = new_store(tmp_path / "store")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="init runs in one process"):
        init(tmp_path / "new", "tinyresnet")
    with pytest.raises(InvalidInput, match="compare runs in one process"):
        compare(store, "task", "nowhere", ["clr"], Settings())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"device": "foo"}, "--device foo is not one of"),
        ({"device": "cuda:99"}, "--device cuda:99 is not there"),
        ({"threads": 0}, "--threads 0 must be"),
        ({"threads": 100_000}, "--threads 100000 must be"),
        ({"seed": -1}, "--seed -1 must be"),
    ],
)
def test_commands_that_only_compute_refuse_the_same_settings_before_they_read_anything(tmp_path, fields, said):
    store = new_store(tmp_path / "store")
    missing = str(tmp_path / "not there")
    with pytest.raises(InvalidInput, match=said):
        evaluate(store, None, missing, **fields)
    with pytest.raises(InvalidInput, match=said):
        propose(store, [missing], **fields)
    with pytest.raises(InvalidInput, match=said):
        init(tmp_path / "new", "tinyresnet", data=missing, keep=0.5, settings=Settings(**fields))
    assert not (tmp_path / "new").exists()


def test_init_tells_a_precision_that_rounds_and_flags_that_need_data(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        init(tmp_path / "new", "tinyresnet", settings=Settings(precision="bf16-true", epochs=3, batch_size=-3))
    told = " ".join(caught.value.faults)
    for text in ("it would round frozen weights", "--epochs is for retraining", "--batch-size -3 must be"):
        assert text in told
