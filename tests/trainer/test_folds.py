"""`--prune auto` on a small validation split: the share is chosen by three folds of what is not for testing."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.cli import summary
from trainer.folds import deal, fold_sources, too_small_for_folds
from trainer.methods import METHODS
from trainer.methods.packnet import by_folds, trials
from trainer.pipeline import train
from trainer.plan import make_plan, seeded
from trainer.progress import Silent

from .rig import (
    CPU,
    Kept,
    bare_ground,
    loop_for,
    new_store,
    plan_for,
    quick,
    read,
    refuse_above,
    shapes,
    state_bits,
    states_on_entry,
)

AUTO = quick(prune="auto", epochs=2, batch_size=50, lr=0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Too few validation pictures for a search by them, and just enough for folds."""
    return shapes(tmp_path_factory.mktemp("data") / "shapes.npz", train=180, val=20)


@pytest.fixture(scope="module")
def ground():
    return bare_ground(keep=0.5)


@pytest.fixture(scope="module")
def source(data, ground):
    return read(data, ground)


def _loop(ground, source, settings, keeper=None):
    """A loop whose share is chosen by folds."""
    loop = loop_for(ground, source, settings, keeper=keeper, folds=fold_sources(source, settings.seed))
    if settings.prune == "auto":
        choices = by_folds(METHODS["packnet"].choose(ground, settings))
        loop.plan = make_plan(loop.plan.task, settings, ground, choices, source, CPU)
        with seeded(loop.plan, CPU):  # the loop keeps what its plan's folds start from
            loop = type(loop)(
                loop.method, ground, loop.plan, source, loop.fabric, Silent(), loop.keeper, folds=loop.folds
            )
    return loop


def _run(loop, checkpoint=None):
    with seeded(loop.plan, CPU):
        return loop.run(checkpoint)


# ---------------------------------------------------------------- who is in which fold


def _dealt(labels, twins=None, seed=0, order=None):
    names = [f"{label}/{n}" for n, label in enumerate(labels)]
    order = list(range(len(labels))) if order is None else order
    folds = deal([labels[n] for n in order], [names[n] for n in order], [(twins or names)[n] for n in order], seed)
    return dict(zip([names[n] for n in order], folds.tolist(), strict=True))


def test_every_class_is_dealt_out_evenly_and_so_is_the_whole():
    labels = ["a"] * 10 + ["b"] * 4 + ["c"] * 3 + ["d"] * 8
    found = _dealt(labels)
    for label in "abcd":
        sizes = np.bincount([fold for name, fold in found.items() if name[0] == label], minlength=3)
        assert sizes.max() - sizes.min() <= 1, label
    sizes = np.bincount(list(found.values()), minlength=3)
    assert sizes.max() - sizes.min() <= 1


def test_seed_and_names_alone_choose_the_folds():
    labels = ["a"] * 12 + ["b"] * 12
    shuffled = np.random.default_rng(0).permutation(24).tolist()
    assert _dealt(labels, order=shuffled) == _dealt(labels)
    assert _dealt(labels, seed=1) != _dealt(labels)


def test_copies_stay_together():
    labels = ["a"] * 12
    found = _dealt(labels, twins=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5])
    folds = list(found.values())
    assert len({*folds[:3]}) == len({*folds[3:6]}) == len({*folds[6:9]}) == 1
    assert sorted(folds) == [0] * 4 + [1] * 4 + [2] * 4


def test_copies_under_several_classes_stay_together_and_every_class_is_in_every_fold():
    labels = ["a"] * 9 + ["b"] * 3
    found = list(_dealt(labels, twins=["x", "y", "z", *range(6), "x", "y", "z"]).values())
    assert found[:3] == found[9:], "the same fold for both of a pair"
    assert sorted(found[9:]) == [0, 1, 2]
    assert np.bincount(found[:9]).tolist() == [3, 3, 3]


def test_a_folds_pictures_are_those_of_train_and_validation_once_each_and_none_of_test(source, ground):
    preprocess = ground.backbone.manifest.preprocess
    known = {}
    for split in (source.splits["train"], source.splits["val"]):
        squares = split.squares(np.arange(len(split)), preprocess)
        known |= {(split.names[n], split.twins[n]): (split.labels[n], squares[n].tobytes()) for n in range(len(split))}
    assert len(known) == 200
    held: list[object] = []
    for fold in fold_sources(source, seed=0):
        assert fold.splits.keys() == {"train", "val"}
        inside = []
        for split in fold.splits.values():
            squares = split.squares(np.arange(len(split)), preprocess)
            keys = list(zip(split.names, split.twins, strict=True))
            assert all(known[key] == (split.labels[n], squares[n].tobytes()) for n, key in enumerate(keys))
            inside += keys
        assert len(inside) == len(set(inside)) == 200
        held += list(zip(fold.splits["val"].names, fold.splits["val"].twins, strict=True))
    assert len(held) == len(set(held)) == 200


def test_folds_need_200_pictures_and_three_different_ones_of_each_class(tmp_path, ground):
    def fault(name, **changes):
        path = shapes(tmp_path / f"{name}.npz", train=180, val=20)
        arrays = dict(np.load(path))
        for array, keep in changes.items():
            arrays[f"{array}_images"], arrays[f"{array}_labels"] = (
                arrays[f"{array}_{x}"][keep] for x in ("images", "labels")
            )
        np.savez(path, **arrays)
        return too_small_for_folds(read(path, ground))

    assert fault("enough") is None
    assert "200 pictures for training and validation together, here are 199" in fault("few", val=slice(19))
    copies = [n for n in range(180) if n % 3 != 2] + [2] * 60  # one picture of the last class, sixty times over
    assert "3 different pictures of each class, which shape 2 has not" in fault(
        "copies", train=copies, val=[0, 1] * 10 + [2]
    )


# ---------------------------------------------------------------- the search


def test_the_phases_are_the_runs_own_and_between_them_each_fold_and_each_share_in_each_fold(ground, source):
    settings = quick(prune="auto", epochs=20)
    own = plan_for(ground, source, settings).phases
    phases = _loop(ground, source, settings).plan.phases
    assert (phases[0], phases[-1]) == (own[0], own[-1])
    assert [(p.name, p.epochs, p.fold, p.start, p.prune) for p in phases[1:7]] == [
        *((f"fold {n} train", 20, n, "begin", None) for n in (1, 2, 3)),
        *((f"fold {n} trial 0.95", 4, n, f"fold {n} train", 0.95) for n in (1, 2, 3)),
    ]
    assert [p.prune for p in phases[4:-1]] == [share for p in own[1:-1] for share in [p.prune] * 3]


def test_each_fold_starts_as_the_run_does_and_each_trial_at_the_best_of_its_fold(ground, source, monkeypatch):
    refuse_above(monkeypatch, 0.9)
    loop = _loop(ground, source, AUTO)
    entered = states_on_entry(loop)
    _run(loop)
    order = ["train", *(f"fold {n} train" for n in (1, 2, 3))]
    order += [f"fold {n} trial {share}" for share in (0.95, 0.9) for n in (1, 2, 3)]
    assert list(entered) == [*order, "retrain"]
    for n in (1, 2, 3):
        assert entered[f"fold {n} train"] == entered["train"]
        assert entered[f"fold {n} trial 0.95"] == entered[f"fold {n} trial 0.9"] != entered["train"]
    assert len({frozenset(entered[f"fold {n} trial 0.95"].items()) for n in (1, 2, 3)}) == 3


def test_folds_leave_no_trace_the_winner_is_what_the_same_share_gives_without_a_search(ground, source, monkeypatch):
    refuse_above(monkeypatch, 0.95)
    found = _run(_loop(ground, source, AUTO))
    plain = _run(loop_for(ground, source, dataclasses.replace(AUTO, prune=0.95)))
    assert state_bits(found.network.state_dict()) == state_bits(plain.network.state_dict())


def test_a_share_is_judged_by_the_paired_drops_of_all_folds_together(ground, source):
    loop = _loop(ground, source, dataclasses.replace(AUTO, margin=0.0))
    hits = _run(loop).hits
    trial = trials(loop.plan, hits)[0]
    lost = np.concatenate(
        [hits[f"fold {n} train"].numpy().astype(int) - hits[f"fold {n} trial 0.95"].numpy() for n in (1, 2, 3)]
    )
    assert len(lost) == 200
    assert trial.drop == pytest.approx(lost.mean())
    assert trial.standard_error == pytest.approx(lost.std(ddof=1) / np.sqrt(200))
    assert trial.accepted is bool(trial.drop <= trial.standard_error)
    assert (
        len(trials(loop.plan, {name: hit for name, hit in hits.items() if name != "fold 3 trial 0.95"}))
        == len(trials(loop.plan, hits)) - 1
    ), "a share that was not tried in all folds is not judged"


def test_a_search_by_folds_killed_anywhere_and_resumed_gives_the_same_bits(ground, source, tmp_path, monkeypatch):
    refuse_above(monkeypatch, 0.9)
    kept, settings = Kept(), dataclasses.replace(AUTO, epochs=1, batch_size=70)
    whole = _run(_loop(ground, source, settings, kept.keeper(interval=0.0)))
    assert {checkpoint.position.phase for checkpoint in kept.checkpoints} == {*range(10), 28}
    for number, checkpoint in enumerate(kept.checkpoints):
        if number % 3:
            continue
        write_checkpoint(tmp_path / "checkpoint", checkpoint)
        torch.manual_seed(777 + number)
        resumed = _run(_loop(ground, source, settings), read_checkpoint(tmp_path / "checkpoint"))
        assert state_bits(resumed.network.state_dict()) == state_bits(whole.network.state_dict()), number
        assert state_bits(resumed.hits) == state_bits(whole.hits)


def test_a_run_by_folds_reports_its_trials_its_pictures_and_before_it_what_it_will_cost(tmp_path, data):
    class Heard(Silent):
        def __init__(self):
            self.lines: list[str] = []

        def say(self, text):
            self.lines.append(text)

    heard = Heard()
    with new_store(tmp_path / "store") as store:
        dry = train(store, "shapes", data, dataclasses.replace(AUTO, dry_run=True), heard)
        (said,) = [line for line in heard.lines if "3 folds" in line]
        assert "here are 20 (10 %), so the share is chosen by 3 folds of the 200 pictures" in said
        own = 180 * (2 + 1)  # training and retraining
        folds = 400 * 2 + 8 * 400  # each fold two thirds of 200, over all three 400
        assert f"at most {(own + folds) / own:.1f} times the pictures" in said
        (line,) = [line for line in summary(dry) if line.startswith("dry run")]
        assert "train 2 epochs" in line
        assert "in folds 3 times 2 epochs, in folds up to 24 trials of 1 epochs, retrain 1 epochs" in line
        report = train(store, "shapes", data, AUTO)
        assert store.verify() == []
    assert report.plan["prune"] == "auto"
    assert report.prune == (report.trials[-1].share if report.trials[-1].accepted else 0.0)
    with (Path(report.run) / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] != "0"]
    in_folds = [row for row in rows if row["phase"].startswith("fold")]
    assert len(in_folds) == 3 * 2 + 3 * len(report.trials)
    assert report.presentations == 180 * (len(rows) - len(in_folds)) + 400 * (2 + len(report.trials))
