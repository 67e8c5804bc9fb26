"""`init`: the store it makes, and phase A's retraining of what a pruned backbone keeps."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import pytest
import safetensors.torch
import torch

import taskpack
from masks_store import InvalidInput, Store, build, norm_modules, read_backbone
from trainer.backbone import init, retrain
from trainer.config import Settings
from trainer.interrupt import Interrupted
from trainer.methods.kept import KeptWeights
from trainer.pipeline import train
from trainer.progress import Lines, Silent

from .rig import bare_ground, quick, shapes, state_bits
from .signals import signalled


def _file(keep: float = 0.5):
    from masks_store import create

    return create("tinyresnet", image_size=8, keep=keep, arch_args={"width": 4, "blocks": [1, 1]})


def test_retraining_moves_kept_weights_norm_and_nothing_that_was_pruned(data, tmp_path):
    made = _file()
    retrained = retrain(made, data, quick(lr=1e-2), Silent(), tmp_path / "runs")
    before, after = read_backbone(made.data), read_backbone(retrained.data)
    assert after.manifest.norm_adapted
    assert not before.manifest.norm_adapted
    assert after.manifest.source == before.manifest.source
    for name, kept in before.kept.items():
        assert torch.equal(after.kept[name], kept)
        weight = after.tensors[name]
        assert bool((weight.view(torch.int32)[~kept] == 0).all())
        assert float((weight != before.tensors[name])[kept].float().mean()) > 0.5
    for name in norm_modules(before.shape_only()):
        assert not torch.equal(after.tensors[f"{name}.running_mean"], before.tensors[f"{name}.running_mean"])


def test_the_published_phase_follows_one_for_the_head():
    head, phase = KeptWeights().choose(bare_ground(), quick(epochs=None, batch_size=None)).phases
    assert (phase.epochs, phase.lr, phase.schedule, phase.optimizer) == (10, 1e-4, "half", "sgd")
    assert head.name == "head"


def test_a_store_made_with_its_data_shares_the_norm_with_its_tasks(tmp_path, data):
    store = init(tmp_path / "store", "tinyresnet", image_size=8, keep=0.5, data=data, settings=quick(epochs=1))
    assert store.verify() == []
    assert not store.artifact(train(store, "shapes", data, quick(epochs=1)).version).of_kind("norm")


class _StopsAt(Lines):
    """Ctrl-C to this process at the end of an epoch of a phase."""

    def __init__(self, stream, phase: str, epoch: int) -> None:
        super().__init__(stream)
        self._at = phase, epoch

    def epoch(self, row):
        super().epoch(row)
        if (row.phase, row.epoch) == self._at:
            os.kill(os.getpid(), signal.SIGINT)


ARGUMENTS = {"image_size": 8, "keep": 0.5}


def _stopped(path, data, phase: str, epoch: int, settings: Settings) -> None:
    with pytest.raises(Interrupted, match="The same command with --resume goes on from it") as caught:
        init(
            path,
            "tinyresnet",
            data=data,
            settings=settings,
            reporter=_StopsAt(io.StringIO(), phase, epoch),
            **ARGUMENTS,
        )
    assert caught.value.number == signal.SIGINT
    assert not path.exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """The bits of a backbone whose retraining nobody stopped."""
    path = tmp_path_factory.mktemp("undisturbed") / "store"
    with init(path, "tinyresnet", data=data, settings=quick(epochs=3), **ARGUMENTS) as store:
        assert [folder.name for folder in path.parent.iterdir()] == ["store"]
        return store.backbone_digest, state_bits(store.backbone.tensors)


@pytest.mark.parametrize(("phase", "epoch"), [("head", 1), ("head", 3), ("retrain", 0), ("retrain", 2)])
def test_an_init_that_is_stopped_and_resumed_gives_the_bits_of_one_that_was_not(
    tmp_path, data, undisturbed, phase, epoch
):
    path = tmp_path / "store"
    _stopped(path, data, phase, epoch, quick(epochs=3))
    torch.manual_seed(12345)  # a new process has other random state
    told = io.StringIO()
    again = quick(epochs=3, resume=True)
    with init(path, "tinyresnet", data=data, settings=again, reporter=Lines(told), **ARGUMENTS) as store:
        assert (store.backbone_digest, state_bits(store.backbone.tensors)) == undisturbed
    assert "going on with run" in told.getvalue()
    assert "head 1/3" not in told.getvalue(), "what was done is not done again"
    assert [folder.name for folder in tmp_path.iterdir()] == ["store"], "the run's folder is gone"


def test_an_init_is_resumed_only_with_the_same_settings_and_starts_anew_without_the_flag(tmp_path, data, undisturbed):
    path = tmp_path / "store"
    _stopped(path, data, "head", 1, quick(epochs=3))
    for changed, said in (
        (quick(epochs=4, resume=True), "epochs: 3 then, 4 now"),
        (quick(epochs=3, resume=True, seed=1), "seed"),
    ):
        with pytest.raises(InvalidInput, match="has other settings") as caught:
            init(path, "tinyresnet", data=data, settings=changed, **ARGUMENTS)
        assert any(said in fault for fault in caught.value.faults)
    told = io.StringIO()
    with init(path, "tinyresnet", data=data, settings=quick(epochs=3), reporter=Lines(told), **ARGUMENTS) as store:
        assert store.backbone_digest == undisturbed[0]
    assert "head 1/3" in told.getvalue()
    assert [folder.name for folder in tmp_path.iterdir()] == ["store"]


def test_resume_without_a_stopped_init_starts_anew_and_needs_data(tmp_path, data, undisturbed):
    with init(tmp_path / "s", "tinyresnet", data=data, settings=quick(epochs=3, resume=True), **ARGUMENTS) as store:
        assert store.backbone_digest == undisturbed[0]
    with pytest.raises(InvalidInput, match="--resume goes on with retraining; it needs --data"):
        init(tmp_path / "t", "tinyresnet", settings=quick(epochs=None, batch_size=None, resume=True), **ARGUMENTS)


def test_an_init_uses_as_many_threads_as_it_is_told(tmp_path, data):
    """They are part of the settings that a resumed run must have."""
    _stopped(tmp_path / "store", data, "head", 1, quick(epochs=3, threads=2))
    before = torch.get_num_threads()
    (settings,) = (tmp_path / ".store.init").glob("*/settings.json")
    assert json.loads(settings.read_text())["threads"] == 2
    assert torch.get_num_threads() == before


def test_the_command_says_how_to_go_on_after_ctrl_c_and_goes_on(tmp_path, data, undisturbed, capsys):
    command = ["init", str(tmp_path / "store"), "--backbone", "tinyresnet", "--image-size", "8", "--keep", "0.5"]
    command += ["--data", data, "--batch-size", "10", "--threads", "1", "--device", "cpu"]
    with signalled(signal.SIGINT, tmp_path, ".store.init/*/results.csv"):
        assert taskpack.run([*command, "--epochs", "10000"]) == 130
    assert "with --resume goes on from it" in capsys.readouterr().err
    assert taskpack.run([*command, "--epochs", "10000", "--resume", "--seed", "1"]) == 2
    assert "has other settings" in capsys.readouterr().err
    assert taskpack.run([*command, "--epochs", "3"]) == 0
    with Store.open(tmp_path / "store") as store:
        assert store.backbone_digest == undisturbed[0]


def test_nothing_is_made_where_something_is_and_all_faults_are_told(tmp_path, data):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InvalidInput) as caught:
        init(tmp_path / "full", "tinyresnet", keep=1.0, data=data, capacity="units")
    assert len(caught.value.faults) == 3
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_what_is_wrong_with_the_network_its_weights_and_the_data_is_told_with_the_settings(tmp_path):
    weights, data = tmp_path / "no.safetensors", str(tmp_path / "no pictures")
    with pytest.raises(InvalidInput) as caught:
        init(tmp_path / "s", "resnet19", weights=weights, image_size=3, keep=2, data=data, settings=quick(epochs=0))
    told = [
        "--epochs 0 must be",
        "there is no source",
        "'resnet19' is not supported",
        "image size 3",
        "keep 2",
        "no such file",
    ]
    assert len(caught.value.faults) == len(told)
    for fault, words in zip(caught.value.faults, told, strict=True):
        assert words in fault


@pytest.mark.parametrize(
    ("place", "said"), [("", "the store's path is empty"), ("file/store", "is a file, not a directory")]
)
def test_a_place_where_no_store_can_be_is_refused_before_any_training(tmp_path, monkeypatch, place, said, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=said) as caught:
        init(place, "tinyresnet", image_size=8, keep=0.5, data=data, settings=quick())
    assert len(caught.value.faults) == 1


def test_none_and_no_weights_are_the_same_random_start(tmp_path):
    a = init(tmp_path / "a", "tinyresnet", image_size=8, weights="none")
    b = init(tmp_path / "b", "tinyresnet", image_size=8)
    c = init(tmp_path / "c", "tinyresnet", image_size=8, settings=Settings(seed=1))
    assert a.backbone_digest == b.backbone_digest != c.backbone_digest


@pytest.mark.parametrize(("keep", "warned"), [(0.0, False), (0.5, True), (1.0, True)])
def test_random_weights_that_are_kept_for_ever_are_told(tmp_path, keep, warned):
    told = io.StringIO()
    init(tmp_path / "store", "tinyresnet", image_size=8, keep=keep, reporter=Lines(told)).close()
    assert ("warning: the backbone's weights are random" in told.getvalue()) is warned


def test_kept_weights_that_were_loaded_are_not_called_random(tmp_path):
    told = io.StringIO()
    safetensors.torch.save_file(build("tinyresnet").state_dict(), tmp_path / "weights.safetensors")
    weights = tmp_path / "weights.safetensors"
    init(tmp_path / "store", "tinyresnet", weights=weights, image_size=8, reporter=Lines(told)).close()
    assert "random" not in told.getvalue()


def test_a_self_supervised_mobilenet_by_file_trains_as_a_backbone(tmp_path):
    """Depthwise and 1x1 convolutions, ReLU6, names under a prefix and no head: packnet and clr pack it all the same."""
    torch.manual_seed(0)
    state = build("mobilenet_v2").state_dict()
    safetensors.torch.save_file({f"module.backbone.{n}": t for n, t in state.items()}, tmp_path / "ssl.safetensors")
    said: list[str] = []

    class Listening(Lines):
        def say(self, text):
            said.append(text)

    data = shapes(tmp_path / "few.npz", train=12, val=6, test=6)
    arguments = {"weights": tmp_path / "ssl.safetensors", "image_size": 32, "reporter": Listening(sys.stderr)}
    with init(tmp_path / "store", "mobilenet_v2", keep=0.5, **arguments) as store:
        assert [line for line in said if "'module.backbone.' of its names was stripped" in line] == said
        for method in ("packnet", "clr"):
            report = train(store, method, data, quick(epochs=1, method=method))
            assert report.changed_bits == 0
        assert store.verify() == []
        depthwise = store.artifact(store.resolve("clr").version).of_kind("adapter")
        assert len(depthwise) == 18  # the stem and 17 depthwise convolutions; every other one is 1x1


@pytest.mark.parametrize("arch", ["mlp-12-9", "widecnn"])
def test_packnet_packs_two_tasks_from_scratch_into_a_network_without_norms(tmp_path, data, arch):
    store = init(tmp_path / "store", arch, image_size=8, keep=0.0)
    first = train(store, "first", data, quick(epochs=1, batch_size=20))
    second = train(store, "second", shapes(tmp_path / "b.npz", seed=1), quick(epochs=1, batch_size=20))
    assert (second.parent, second.compared, second.changed_bits) == (first.version, 1, 0)
    assert store.artifact(first.version).of_kind("bias").keys() == {n for n in store.backbone.tensors if "bias" in n}
    assert store.verify() == []


def test_clr_says_that_a_network_without_norms_is_not_for_it(tmp_path, data):
    store = init(tmp_path / "store", "widecnn", image_size=8)
    with pytest.raises(InvalidInput, match="widecnn has no BatchNorm; use linear"):
        train(store, "shapes", data, quick(method="clr"))
