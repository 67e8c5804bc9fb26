"""`train` from end to end on real stores: what it registers, what it proves, what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import pytest
import torch

import trainer
from masks_store import (
    InvalidInput,
    NotFound,
    OutOfCapacity,
    Pool,
    Store,
    StoreReplaced,
    StoreReserved,
    TaskpackError,
    lacks_instructions,
    read_artifact,
)
from trainer import proof
from trainer.ground import ground_for
from trainer.job import prepare
from trainer.loop import Keeper
from trainer.methods import METHODS
from trainer.pipeline import train
from trainer.progress import Silent
from trainer.runs import new_run, resume_run

from .rig import loop_for, new_store, quick, read, state_bits


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path / "store")


def _files(store: Store) -> set[str]:
    return {str(path.relative_to(store.path)) for path in store.path.rglob("*")}


def _logits(store: Store, version: str) -> bytes:
    from masks_store import eager_prober

    return eager_prober(store.backbone, store.lineage(version), store.view(version)).numpy().tobytes()


# ---------------------------------------------------------------- no forgetting


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_no_earlier_task_changes_by_a_bit(tmp_path, data, other, optimizer):
    store = new_store(tmp_path / "store", keep=0.0)
    before: dict[str, bytes] = {}
    runs = [
        ("one", data, {"method": "packnet"}),
        ("two", other, {"method": "packnet"}),
        ("three", data, {"method": "clr", "on": "one"}),
        ("four", other, {"method": "packnet", "norm": "own", "value_dtype": "bf16"}),
        ("one", data, {"method": "packnet", "seed": 1}),
        ("five", data, {"method": "linear", "on": "four"}),
    ]
    for task, source, fields in runs if optimizer == "adamw" else runs[:3]:
        report = train(store, task, source, quick(epochs=1, optimizer=optimizer, weight_decay=1e-2, lr=0.01, **fields))
        assert (report.changed_bits, report.compared) == (0, len(before))
        for version, bits in before.items():
            assert _logits(store, version) == bits
        before[report.version] = _logits(store, report.version)
    assert store.verify() == []


def test_a_change_of_an_earlier_task_stops_the_registration(store, data, other, monkeypatch):
    """The check itself: a pool that writes one weight too far is found, and nothing is registered."""
    train(store, "one", data, quick())

    class OneTooFar(Pool):
        def write(self, claim, values):
            super().write(claim, values)
            name, kept = next(iter(store.backbone.kept.items()))
            mask = torch.zeros_like(kept)
            mask[tuple(kept.nonzero()[0].tolist())] = True
            weight = store.backbone.tensors[name][mask]
            super().write({name: mask}, {name: torch.nextafter(weight, weight + 1)})

    monkeypatch.setattr(proof, "Pool", OneTooFar)
    with pytest.raises(trainer.Forgotten, match="nothing was registered") as caught:
        train(store, "two", other, quick())
    assert "one (sha256:" in caught.value.faults[0]
    assert [task.name for task in store.tasks()] == ["one"]


@pytest.mark.parametrize("part", ["task digest", "logits"])
def test_a_change_of_one_bit_in_either_half_of_the_proof_is_found(store, data, part):
    """Digest and logits are compared each for itself: one does not hide behind the other."""
    version = train(store, "one", data, quick()).version
    before = proof.witnesses(store)
    artifact, ancestors = store.artifact(version), []
    assert proof.check_unchanged(store, before, artifact, ancestors) == 1
    witness = before[version]
    if part == "logits":
        logits = witness.logits.clone()
        logits.view(torch.int32)[0, 0] ^= 1
        changed = dataclasses.replace(witness, logits=logits)
    else:
        changed = dataclasses.replace(witness, digest="sha256:" + "0" * 64)
    with pytest.raises(trainer.Forgotten) as caught:
        proof.check_unchanged(store, {version: changed}, artifact, ancestors)
    assert list(caught.value.faults) == [f"one ({version[:19]}): its {part} would change"]


def test_a_later_task_trains_on_the_values_that_were_stored(store, data, other):
    """Rule 4: values of an earlier bf16 task are decoded, and the next task's base holds exactly those."""
    first = train(store, "one", data, quick(value_dtype="bf16"))
    second = train(store, "two", other, quick())
    base, above = store.view(first.version), store.view(second.version)
    claim = store.claim(first.version)
    for name, mask in claim.items():
        assert state_bits({"": above.weights[name][mask]}) == state_bits({"": base.weights[name][mask]})
        assert torch.equal(base.weights[name][mask], base.weights[name][mask].bfloat16().float())


# ---------------------------------------------------------------- what a run leaves


def test_a_run_registers_labels_and_reports(store, data):
    report = train(store, "shapes", data, quick())
    version = store.resolve("shapes")
    assert (report.version, report.labels, version.labels) == (version.version, ("stable",), ("stable",))
    manifest = version.manifest
    assert manifest.metrics.val_top1 == report.val_top1
    assert manifest.metrics.test_top1 == report.test_top1
    assert manifest.metrics.images == report.images == {"train": 60, "val": 15, "test": 15}
    assert manifest.provenance.seed == 0
    assert {"torch", "taskpack"} <= set(manifest.provenance.versions)
    free, total = (sum(column) for column in zip(*store.capacity_left().values(), strict=True))
    assert (report.free, report.total) == (free, total)
    assert report.claimed == sum(int(mask.sum()) for mask in store.claim(report.version).values())
    assert report.bytes == version.size


def test_a_runs_folder_has_settings_results_and_report(store, data):
    report = train(store, "shapes", data, quick())
    (folder,) = store.runs.iterdir()
    assert str(folder) == report.run
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["task"] == "shapes"
    assert settings["phases"][1]["name"] == "retrain"
    assert settings["lr"] if "lr" in settings else settings["phases"][0]["lr"] > 0
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        ("train", "1"),
        ("train", "2"),
        ("retrain", "0"),
        ("retrain", "1"),
    ]
    told = json.loads((folder / "report.json").read_text())
    assert told["version"] == report.version
    assert dataclasses.replace(trainer.Report.from_json(told), plan=report.plan) == report
    del told["cpu_seconds"]  # as an earlier version wrote it
    assert trainer.Report.from_json(told).cpu_seconds == 0.0
    predictions = {f"predictions-{split}.csv" for split in ("val", "test")}
    written = {path.name for path in folder.iterdir()}
    assert written == {"settings.json", "results.csv", "report.json", "lock", *predictions}


def test_a_new_version_of_a_known_task_is_the_canary_and_keeps_the_parent(store, data, other):
    first = train(store, "one", data, quick(epochs=1))
    train(store, "two", other, quick(epochs=1))
    again = train(store, "one", data, quick(epochs=1, seed=1))
    assert again.labels == ("canary",)
    assert again.parent is first.parent is None
    assert store.resolve("one").version == first.version
    assert train(store, "three", data, quick(epochs=1, method="linear", label="none")).labels == ()
    assert train(store, "four", data, quick(epochs=1, method="linear", label="canary")).labels == ("canary",)


def test_the_same_run_gives_the_same_version(tmp_path, data):
    versions = {train(new_store(tmp_path / name), "shapes", data, quick()).version for name in ("a", "b")}
    assert len(versions) == 1


def test_out_writes_the_artifact_and_registers_nothing(store, data, tmp_path):
    report = train(store, "shapes", data, quick(out=tmp_path / "shapes.safetensors"))
    assert store.tasks() == []
    artifact = read_artifact((tmp_path / "shapes.safetensors").read_bytes())
    assert artifact.version == report.version
    assert report.out == str(tmp_path / "shapes.safetensors")
    assert report.free == sum(free for free, _ in store.capacity_left().values()) - report.claimed
    assert store.register((tmp_path / "shapes.safetensors").read_bytes()).created


def test_dry_run_writes_nothing(store, data):
    before = _files(store)
    report = train(store, "shapes", data, quick(dry_run=True))
    assert report.dry_run
    assert report.version is None
    assert report.plan["phases"][0]["epochs"] == 2
    assert _files(store) == before
    assert store.tasks() == []


def test_the_python_api_takes_settings_as_keywords(store, data):
    report = trainer.train(store, "shapes", data, method="linear", epochs=1, threads=1, device="cpu")
    assert store.resolve("shapes").version == report.version
    with pytest.raises(InvalidInput, match="'epoch' is not a setting"):
        trainer.train(store, "shapes", data, epoch=1)


def test_the_number_of_threads_is_the_callers_again_afterwards(store, data):
    before = torch.get_num_threads()
    train(store, "shapes", data, quick(threads=2, dry_run=True))
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- parents


def test_packnet_builds_on_the_newest_stable_packnet_task(store, data, other):
    assert train(store, "one", data, quick(epochs=1)).parent is None
    two = train(store, "two", other, quick(epochs=1))
    train(store, "new", data, quick(epochs=1, label="canary"))
    train(store, "view", data, quick(epochs=1, method="clr"))
    assert train(store, "three", other, quick(epochs=1)).parent == two.version


def test_on_names_the_base_and_a_version_of_it(store, data, other):
    one = train(store, "one", data, quick(epochs=1))
    canary = train(store, "one", data, quick(epochs=1, seed=1))
    train(store, "two", other, quick(epochs=1))
    assert train(store, "a", other, quick(epochs=1, on="one")).parent == one.version
    assert train(store, "b", other, quick(epochs=1, method="clr", on="one@canary")).parent == canary.version
    with pytest.raises(NotFound, match="nobody"):
        train(store, "c", other, quick(on="nobody"))


def test_order_free_methods_stand_on_the_backbone_and_must_name_a_base_where_it_is_empty(store, tmp_path, data):
    train(store, "one", data, quick(epochs=1))
    assert train(store, "view", data, quick(epochs=1, method="clr")).parent is None
    empty = new_store(tmp_path / "empty", keep=0.0)
    with pytest.raises(InvalidInput, match=r"--on TASK.*none yet: pack one with packnet first"):
        train(empty, "view", data, quick(method="clr"))
    one = train(empty, "one", data, quick(epochs=1))
    with pytest.raises(InvalidInput, match=r"--on TASK \(there is: one\)"):
        train(empty, "view", data, quick(method="clr"))
    assert train(empty, "view", data, quick(epochs=1, method="clr", on="one")).parent == one.version


# ---------------------------------------------------------------- capacity and reservation


def test_packnet_in_a_full_store_says_what_to_do_and_writes_nothing(store, data, other):
    train(store, "one", data, quick(epochs=1, prune=0))
    before = _files(store)
    with pytest.raises(OutOfCapacity, match="tasks own them all"):
        train(store, "two", other, quick())
    assert _files(store) == before
    assert train(store, "view", other, quick(epochs=1, method="clr")).free == 0


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)])
def test_a_precision_that_the_processor_only_imitates_is_told_before_training(store, data, precision, dtype):
    plain = prepare(store, "one", data, quick(), Silent())
    assert not plain.warnings
    mixed = prepare(store, "one", data, quick(precision=precision), Silent())
    told = [warning for warning in mixed.warnings if "no instructions for" in warning and precision in warning]
    assert len(told) == int(lacks_instructions(dtype, torch.device("cpu")))


def test_a_task_is_warned_before_it_starves(store, data, other):
    report = train(store, "one", data, quick(epochs=1, prune=0.04))  # leaves 2 % of the network
    assert report.tasks_left == 0
    assert not report.warnings
    starved = train(store, "two", other, quick(epochs=1))
    assert "shared weights are free" in starved.warnings[0]


def test_a_second_run_that_takes_weights_is_refused_with_the_holders_name_and_order_free_ones_go_on(store, data):
    with store.reserve("train elsewhere"):
        with pytest.raises(StoreReserved, match="train elsewhere"):
            train(store, "one", data, quick())
        assert train(store, "view", data, quick(epochs=1, method="clr")).version
        assert train(store, "one", data, quick(dry_run=True)).dry_run
    assert train(store, "one", data, quick(epochs=1)).version


# ---------------------------------------------------------------- resume


def test_resume_without_a_run_starts_anew(store, data):
    assert train(store, "shapes", data, quick(resume=True)).version


def test_a_run_is_resumed_only_under_the_same_settings(store, data):
    folder = _interrupt(store, data, quick())
    with pytest.raises(InvalidInput, match=folder) as caught:
        train(store, "shapes", data, quick(resume=True, seed=9))
    assert any(fault.startswith("seed: 0 then, 9 now") for fault in caught.value.faults)


def test_settings_of_a_phase_that_differ_are_told_one_by_one(store, data):
    folder = _interrupt(store, data, quick())
    epochs = json.loads((store.runs / folder / "settings.json").read_text(encoding="utf-8"))["phases"][0]["epochs"]
    with pytest.raises(InvalidInput, match=folder) as caught:
        train(store, "shapes", data, quick(resume=True, epochs=epochs + 1))
    assert f"phase 1 (train) epochs: {epochs} then, {epochs + 1} now" in caught.value.faults
    assert max(map(len, caught.value.faults)) < 80


def test_patience_stands_in_the_settings_of_a_run_and_is_one_of_those_that_a_resume_needs(store, data):
    folder = _interrupt(store, data, quick(patience=3))
    settings = json.loads((store.runs / folder / "settings.json").read_text(encoding="utf-8"))
    assert [phase["patience"] for phase in settings["phases"]] == [3, 3]
    with pytest.raises(InvalidInput, match=folder) as caught:
        train(store, "shapes", data, quick(resume=True, patience=4))
    assert "phase 1 (train) patience: 3 then, 4 now" in caught.value.faults
    assert train(store, "shapes", data, quick(resume=True, patience=3)).run == str(store.runs / folder)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("data", "sha256:1"),
        ("parent", "sha256:1"),
        ("backbone", "sha256:1"),
        ("classes", ("x",)),
        ("threads", 7),
        ("versions", {"torch": "1.0"}),
        ("precision", "bf16-mixed"),
    ],
)
def test_a_run_is_resumed_only_on_the_same_data_base_machine_and_libraries(store, data, name, other):
    ground = ground_for(store, "shapes", "packnet", None)
    plan = loop_for(ground, read(data, ground), quick()).plan
    new_run(store.runs, plan).close()
    with pytest.raises(InvalidInput) as caught:
        resume_run(store.runs, dataclasses.replace(plan, **{name: other}))
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [name]
    resumed = resume_run(store.runs, plan)
    assert resumed is not None
    resumed.close()


def test_free_weights_taken_meanwhile_stop_a_resume(store, data, other):
    _interrupt(store, data, quick())
    train(store, "other", other, quick(epochs=1))
    with pytest.raises(InvalidInput) as caught:
        train(store, "shapes", data, quick(resume=True, on=None))
    assert any(fault.startswith(("free:", "parent:")) for fault in caught.value.faults)


def test_a_task_trained_anew_clears_what_its_dead_runs_left(store, data):
    dead = _interrupt(store, data, quick())
    assert (store.runs / dead / "checkpoint.safetensors").exists()
    report = train(store, "shapes", data, quick(epochs=1))
    assert [str(path) for path in store.runs.iterdir()] == [report.run]


def _interrupt(store: Store, data: str, settings) -> str:
    """A run that ended in its second epoch, as after a crash."""

    class Crash(Exception):
        pass

    packnet = METHODS["packnet"]
    enter = type(packnet).enter

    def crash(self, ground, plan, phase, network, before):
        if phase.name == "retrain":
            raise Crash
        return enter(self, ground, plan, phase, network, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(packnet), "enter", crash)
        with pytest.raises(Crash):
            train(store, "shapes", data, settings)
    (folder,) = [path for path in store.runs.iterdir() if not (path / "report.json").exists()]
    return folder.name


def test_a_dead_run_resumed_registers_the_version_of_an_unbroken_one(store, data, tmp_path):
    expected = train(new_store(tmp_path / "whole"), "shapes", data, quick())
    folder = _interrupt(store, data, quick())
    report = train(store, "shapes", data, quick(resume=True))
    assert report.version == expected.version
    assert report.run.endswith(folder)
    assert _epochs(report.run) == _epochs(expected.run)


def _epochs(run: str) -> list[list[str]]:
    from pathlib import Path

    with (Path(run) / "results.csv").open() as file:
        return [row[:8] for row in csv.reader(file)]


# ---------------------------------------------------------------- faults


def test_wrong_settings_and_a_missing_source_leave_no_trace(store, data):
    before = _files(store)
    with pytest.raises(InvalidInput):
        train(store, "shapes", data, quick(lr=-1.0))
    with pytest.raises(TaskpackError):
        train(store, "shapes", "/no/such/source", quick())
    assert _files(store) == before


def test_a_store_whose_task_no_longer_computes_what_it_did_is_not_trained_on(store, data, other, monkeypatch):
    train(store, "one", data, quick(epochs=1))
    versions = store.versions()
    manifest = versions[0].manifest.model_copy(update={"task_digest": "sha256:" + "1" * 64})
    monkeypatch.setattr(store, "versions", lambda *_: [dataclasses.replace(versions[0], manifest=manifest)])
    with pytest.raises(trainer.Forgotten, match="taskpack verify"):
        train(store, "two", other, quick())


# ---------------------------------------------------------------- rule 5: at no step


def test_at_every_step_a_task_sees_its_lineages_bits_and_plus_zero_where_others_own(store, data, other):
    """Others' values are not even in memory: wherever a task neither sees nor trains a weight, it is +0.0."""
    train(store, "one", data, quick(epochs=1))
    train(store, "two", other, quick(epochs=1, on="one"))
    settings = quick(on="one", optimizer="adam", weight_decay=1e-2)
    ground = ground_for(store, "three", "packnet", "one")
    others = store.claim(store.resolve("two").version)
    steps = 0

    def look() -> bool:
        nonlocal steps
        steps += 1
        for name, free in ground.free.items():
            weight = loop.network.body.get_parameter(name).detach().contiguous()
            assert state_bits({"": weight[~free]}) == state_bits({"": ground.base[name][~free]})
            assert not bool(weight[others[name]].view(torch.int32).any())
        return False

    keeper = Keeper(save=lambda _: None, results=lambda _: None, stop=look)
    loop = loop_for(ground, read(data, ground), settings, keeper=keeper, task="three")
    loop.run()
    assert steps == 18 + 3, "each step, and the validation of each epoch"


def test_a_store_that_is_replaced_during_a_run_is_told_and_the_one_in_its_place_is_left_alone(tmp_path, data):
    store = new_store(tmp_path / "store")
    store.close()
    older = shutil.copy(store.path / "registry.sqlite3", tmp_path / "older")
    moved = tmp_path / "moved"

    class Replacing(Silent):
        def epoch(self, row):
            if not moved.exists():
                moved.mkdir()
                for file in store.path.glob("registry.sqlite3*"):
                    file.rename(moved / file.name)
                shutil.copy(older, store.path / "registry.sqlite3")

    with pytest.raises(StoreReplaced, match="replaced, moved or restored while it was open; start"):
        train(store, "shapes", data, quick(method="linear"), Replacing())
    assert Store.open(store.path).tasks() == []
    for file in moved.iterdir():
        file.replace(store.path / file.name)
    assert Store.open(store.path).tasks() == []
