"""`taskpack compare`: methods side by side, and the store left as it was."""

from __future__ import annotations

import json
import signal
import tempfile

import numpy as np
import pytest

import taskpack
import trainer
from masks_store import InvalidInput, Store, create, read_artifact
from trainer.compare import compare
from trainer.metrics import paired_interval
from trainer.pipeline import train
from trainer.timing import interleaved

from .rig import SIZE, new_store, quick
from .signals import signalled


@pytest.fixture(scope="module")
def compared(tmp_path_factory, data):
    """A store, what is in it before and after, the comparison, and its artifacts."""
    folder = tmp_path_factory.mktemp("compared")
    with new_store(folder / "store") as store:
        before = _state(store)
        found = compare(store, "shapes", data, ["packnet", "clr", "linear"], quick(epochs=1), out=folder / "out")
        yield store, before, _state(store), found, folder / "out"


def _state(store: Store) -> object:
    return store.tasks(), store.versions(), store.last_event(), store.generation(), store.capacity_left()


def test_every_method_is_measured_and_nothing_is_registered(compared):
    _, before, after, found, _ = compared
    assert before == after
    assert [one.method for one in found.methods] == ["packnet", "clr", "linear"]
    for one in found.methods:
        assert 0.0 <= one.calibration_error <= 1.0
        assert set(one.milliseconds) == {"1", "32"}
        assert min(one.milliseconds.values()) > 0.0


def test_bytes_and_accuracy_are_those_of_the_artifacts_that_out_keeps(compared):
    *_, found, out = compared
    assert {file.name for file in out.iterdir()} == {f"{one.method}.safetensors" for one in found.methods}
    for one in found.methods:
        bytes_ = (out / f"{one.method}.safetensors").read_bytes()
        artifact = read_artifact(bytes_)
        assert (one.version, one.bytes) == (artifact.version, len(bytes_))
        assert (one.val_top1, one.test_top1) == (
            artifact.manifest.metrics.val_top1,
            artifact.manifest.metrics.test_top1,
        )


def test_what_the_next_task_would_find_is_told(compared):
    store, *_, found, _ = compared
    packnet, clr, _ = found.methods
    free = sum(free for free, _ in store.capacity_left().values())
    assert (clr.claimed, clr.free) == (0, free)
    assert packnet.claimed > 0
    assert packnet.free == free - packnet.claimed


def test_differences_are_to_the_first_method_and_within_their_interval(compared):
    *_, found, _ = compared
    reference, *others = found.methods
    assert (found.reference, reference.difference) == ("packnet", None)
    for one in others:
        assert one.difference.mean == pytest.approx(one.test_top1 - reference.test_top1)
        assert one.difference.low <= one.difference.mean <= one.difference.high


def test_a_method_is_what_train_gives_with_the_same_settings(compared, data, tmp_path):
    *_, found, _ = compared
    with new_store(tmp_path / "store") as store:
        report = train(store, "shapes", data, quick(epochs=1, method="clr"))
    assert report.version == found.methods[1].version


def test_the_store_keeps_the_figures_and_no_run(compared):
    store, *_, found, _ = compared
    (folder,) = store.runs.iterdir()
    assert [file.name for file in folder.iterdir()] == ["compare.json"]
    kept = json.loads((folder / "compare.json").read_text())
    assert kept == json.loads(json.dumps(found.as_json()))


def test_prune_goes_to_the_methods_that_take_weights(data, tmp_path):
    with new_store(tmp_path / "store") as store:
        found = trainer.compare(
            store, "shapes", data, ["linear", "packnet"], epochs=1, batch_size=30, prune=0.0, device="cpu", threads=1
        )
        assert found.methods[1].free == 0


def test_a_flag_of_some_methods_goes_to_those_and_leaves_the_others_as_they_are(data, tmp_path):
    """Each method comes out as `train` with the flags that are for it alone: the same file, byte for byte."""
    asked = {
        "prune": 0.5,
        "prune_by": "filters",
        "train_layers": "last:3",
        "pick": True,
        "retrain_lr": 1e-3,
        "adapter": "full",
    }
    with new_store(tmp_path / "store") as store:
        found = compare(store, "shapes", data, ["clr", "packnet", "bn"], quick(epochs=1, **asked))
        for number, (name, own) in enumerate(
            [("clr", ["adapter"]), ("packnet", [flag for flag in asked if flag != "adapter"]), ("bn", [])]
        ):
            alone = quick(epochs=1, method=name, out=tmp_path / "alone", **{flag: asked[flag] for flag in own})
            assert found.methods[number].version == train(store, "shapes", data, alone).version, name


def test_flags_of_clnp_go_to_clnp(data, tmp_path):
    made = create("mlp-16-12", image_size=SIZE, keep=0.0)
    with Store.create(tmp_path / "store", made, capacity="units") as store:
        train(store, "base", data, quick(method="clnp", epochs=1))
        asked = {"l1": 1e-3, "finetune": True, "margin": 20.0, "on": "base"}
        found = compare(store, "shapes", data, ["linear", "clnp"], quick(epochs=1, **asked))
        alone = quick(epochs=1, method="clnp", out=tmp_path / "alone", **asked)
        assert found.methods[1].version == train(store, "shapes", data, alone).version
        assert [phase["name"] for phase in found.methods[1].phases] == ["train", "finetune"]


def test_the_published_schedule_goes_to_the_methods_whose_is_known(data, tmp_path):
    made = create("tinyresnet", image_size=SIZE, keep=0.0, arch_args={"width": 4, "blocks": [1, 1]})
    with Store.create(tmp_path / "store", made, capacity="units") as store:
        train(store, "base", data, quick(method="clnp", epochs=1))
        found = compare(store, "shapes", data, ["clr", "clnp"], quick(epochs=1, recipe="paper", on="base"))
        clr, clnp = (method.phases[0] for method in found.methods)
        assert (clr["schedule"], clnp["schedule"]) == ("thirds", "cosine")


def test_finetune_is_compared_with_what_is_built_on_a_task_of_a_store_that_keeps_nothing(data, tmp_path):
    """There --on has to be given, and finetune, which stands on no task, starts as it does by itself."""
    with new_store(tmp_path / "store", keep=0.0) as store:
        base = train(store, "base", data, quick(epochs=1))
        found = compare(store, "shapes", data, ["finetune", "linear"], quick(epochs=1, on="base"), out=tmp_path / "out")
        assert read_artifact((tmp_path / "out" / "linear.safetensors").read_bytes()).manifest.parent == base.version
        train(store, "shapes", data, quick(epochs=1, method="finetune", out=tmp_path / "alone"))
        assert (tmp_path / "out" / "finetune.safetensors").read_bytes() == (tmp_path / "alone").read_bytes()
        assert (found.reference, found.methods[0].version) == ("finetune", None)


@pytest.mark.parametrize(
    ("methods", "asked", "said"),
    [
        (["clr", "bn"], {"pick": True}, "--pick is for packnet, and not for clr, bn"),
        (["packnet", "bn"], {"adapter": "full"}, "--adapter is for clr, and not for packnet, bn"),
        (["packnet", "clr"], {"l1": 1e-4}, "--l1 is for clnp, and not for packnet, clr"),
        (["packnet", "clr"], {"finetune": True}, "--finetune is for clnp"),
        (["clr"], {"retrain_lr": 1e-3}, "--retrain-lr is for packnet"),
        (["clr", "linear"], {"train_layers": "head"}, "--train-layers is for packnet"),
        (["clr", "linear"], {"prune": 0.5}, "--prune is for packnet"),
        (["clr", "linear"], {"prune_by": "filters"}, "--prune-by is for packnet"),
        (
            ["packnet", "bn"],
            {"margin": 1.0},
            "--margin is for packnet with --prune auto, clnp, and not for packnet, bn",
        ),
        (
            ["clnp"],
            {"recipe": "paper"},
            "--recipe is for packnet, clr, piggyback, bn, linear, finetune, and not for clnp",
        ),
        (["finetune"], {"on": "base"}, "--on is for packnet, clr, clnp, piggyback, bn, linear, and not for finetune"),
    ],
)
def test_a_flag_that_no_method_takes_is_one_fault(data, tmp_path, methods, asked, said):
    with new_store(tmp_path / "store") as store:
        with pytest.raises(InvalidInput) as caught:
            compare(store, "shapes", data, methods, quick(**asked))
        (fault,) = caught.value.faults
        assert fault.startswith(said)
        assert fault.endswith("leave it out, or compare with a method that takes it")
        assert list(store.runs.iterdir()) == []


def test_a_wrong_value_of_a_flag_is_told_where_a_method_takes_it(data, tmp_path):
    with new_store(tmp_path / "store") as store, pytest.raises(InvalidInput, match=r"--prune 1\.5 must be from 0"):
        compare(store, "shapes", data, ["clr", "packnet"], quick(prune=1.5))


def test_every_wrong_method_and_setting_is_told_at_once(data, tmp_path):
    with new_store(tmp_path / "store") as store:
        with pytest.raises(InvalidInput) as caught:
            compare(store, "Shapes!", data, ["clr", "nosuch", "clr"], quick(epochs=0))
        told = "\n".join(caught.value.faults)
        for part in ("'clr' is named twice", "nosuch", "--epochs 0", "'Shapes!'"):
            assert part in told, part
        with pytest.raises(InvalidInput, match="no method"):
            compare(store, "shapes", data, [], quick())


def test_a_method_that_this_store_has_no_room_for_is_told_before_any_training(data, tmp_path):
    with new_store(tmp_path / "store", keep=1.0) as store:
        with pytest.raises(InvalidInput, match="packnet: packnet has no free weights here"):
            compare(store, "shapes", data, ["clr", "packnet"], quick(epochs=10_000))
        assert list(store.runs.iterdir()) == []


def test_the_command_prints_both_tables_and_passes_trains_flags_on(data, tmp_path, capsys):
    new_store(tmp_path / "store").close()
    arguments = ["compare", str(tmp_path / "store"), "shapes", "--data", data, "--methods", "linear, bn"]
    code = taskpack.run([*arguments, "--epochs", "1", "--batch-size", "30", "--threads", "1", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "minus linear (95 %)" in out
    assert "macro-F1" in out
    assert "weights left" in out
    assert "train 1/1" in err


def test_json_is_one_line(data, tmp_path, capsys):
    new_store(tmp_path / "store").close()
    arguments = ["compare", str(tmp_path / "store"), "shapes", "--data", data, "--methods", "linear", "--json"]
    assert taskpack.run([*arguments, "--epochs", "1", "--batch-size", "30", "--threads", "1"]) == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    told = json.loads(out)
    assert (told["reference"], told["split"], told["methods"][0]["phases"][0]["epochs"]) == ("linear", "test", 1)


def test_ctrl_c_leaves_the_store_as_it_was(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with new_store(tmp_path / "store") as store:
        before = _state(store)
    command = ["compare", str(tmp_path / "store"), "shapes", "--data", data, "--methods", "packnet,clr"]
    with signalled(signal.SIGINT, tmp_path, "taskpack-compare-*/**/results.csv"):
        assert taskpack.run([*command, "--epochs", "10000", "--threads", "1", "--device", "cpu"]) == 130
    assert "the store is as it was" in capsys.readouterr().err
    with Store.open(tmp_path / "store") as store:
        assert _state(store) == before
        assert list(store.runs.iterdir()) == []
    assert not list(tmp_path.glob("taskpack-compare-*"))


def test_the_paired_interval_excludes_zero_only_where_one_method_is_better():
    """Ten of forty pictures better and none worse, against ten better and ten worse."""
    better = np.r_[np.ones(10), np.zeros(30)]
    either = np.r_[np.ones(10), -np.ones(10), np.zeros(20)]
    assert paired_interval(better)[0] > 0.0
    low, high = paired_interval(either)
    assert low < 0.0 < high


def test_times_are_taken_in_rounds_of_every_call():
    calls: list[str] = []
    taken = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, budget=0.0)
    assert calls == list("ab") * 6  # once to warm up, then the least number of rounds
    assert set(taken) == {"a", "b"}
