"""How much a PackNet task gives back: shares, equal parts, and the search of `--prune auto`."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from masks_store import OutOfCapacity
from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.methods.packnet import trials
from trainer.pipeline import train
from trainer.prune import Equal, chosen_share, judge_trial, parse_prune, too_small_for_auto

from .rig import (
    Kept,
    loop_for,
    new_store,
    plan_for,
    quick,
    read,
    refuse_above,
    run,
    shapes,
    state_bits,
    states_on_entry,
)

AUTO = quick(prune="auto", epochs=2, batch_size=50, lr=0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Enough validation pictures for a search."""
    return shapes(tmp_path_factory.mktemp("data") / "shapes.npz", train=150, val=200)


@pytest.fixture(scope="module")
def source(data, ground):
    return read(data, ground)


# ---------------------------------------------------------------- equal parts


@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
def test_equal_parts_are_equal_and_use_up_all(tasks):
    rule, free, parts = Equal(tasks), 1.0, []
    for holders in range(tasks):
        kept = free * (1.0 - rule.share(rule.turn(holders)))
        parts.append(kept)
        free -= kept
    assert parts == pytest.approx([1.0 / tasks] * tasks)
    assert free == pytest.approx(0.0)
    with pytest.raises(OutOfCapacity, match=rf"{tasks} versions in this store hold claims.*taskpack rm"):
        rule.turn(tasks)


def test_equal_tasks_of_one_store_own_as_much_and_a_further_one_is_refused(tmp_path):
    data = shapes(tmp_path / "a.npz")
    with new_store(tmp_path / "store") as store:
        reports = [train(store, f"task-{n}", data, quick(epochs=1, prune="equal:3", seed=n)) for n in range(3)]
        claims = [{name: int(mask.sum()) for name, mask in store.claim(report.version).items()} for report in reports]
        for name in claims[0]:
            counts = [claim.get(name, 0) for claim in claims]
            assert max(counts) - min(counts) <= 1, name  # rounding, once a layer and task
        assert [report.tasks_left for report in reports] == [2, 1, 0]
        assert [report.plan["turn"] for report in reports] == [(1, 3), (2, 3), (3, 3)]
        assert store.capacity_left().keys()
        assert sum(free for free, _ in store.capacity_left().values()) == 0
        with pytest.raises(OutOfCapacity):
            train(store, "task-4", data, quick(epochs=1, prune="equal:3"))


def test_a_claim_of_a_new_version_of_the_same_task_counts_too(tmp_path):
    data = shapes(tmp_path / "a.npz")
    with new_store(tmp_path / "store") as store:
        train(store, "one", data, quick(epochs=1))
        train(store, "one", data, quick(epochs=1, seed=1))
        train(store, "view", data, quick(epochs=1, method="linear"))
        train(store, "head", data, quick(epochs=1, train_layers="head"))
        dry = train(store, "two", data, quick(prune="equal:4", dry_run=True))
        assert dry.plan["turn"] == (3, 4)
        assert dry.plan["prune"] == 0.5
        assert dry.tasks_left == 2
        with pytest.raises(OutOfCapacity, match=r"equal:2.*2 versions.*equal:3"):
            train(store, "two", data, quick(prune="equal:2", dry_run=True))


def test_picks_alone_are_no_claim(tmp_path):
    data = shapes(tmp_path / "a.npz")
    with new_store(tmp_path / "store") as store:
        train(store, "head", data, quick(epochs=1, train_layers="head", pick=True))
        assert train(store, "one", data, quick(prune="equal:2", dry_run=True)).plan["turn"] == (1, 2)


@pytest.mark.parametrize("text", ["equal", "equal:", "equal:0", "equal:-1", "equal:2.5", "equal:x", "equal:10000"])
def test_equal_of_no_number_of_tasks_is_refused(text):
    with pytest.raises(ValueError, match=r"equal:T \(T tasks"):
        parse_prune(text)


# ---------------------------------------------------------------- the paired rule


def _hits(*bits: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.bool)


def test_a_drop_is_paired_its_error_is_that_of_the_differences():
    before, after = _hits(1, 1, 1, 1, 0, 0, 1, 1), _hits(1, 1, 0, 1, 1, 0, 1, 0)
    trial = judge_trial(0.5, before, after, margin=0.0)
    differences = np.array([0, 0, 1, 0, -1, 0, 0, 1])
    assert trial.drop == pytest.approx(differences.mean())
    assert trial.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(8))
    assert trial.val_top1 == pytest.approx(5 / 8)
    assert trial.accepted, "1/8 is under one standard error of 0.227"


@pytest.mark.parametrize(
    ("lost", "margin", "accepted"), [(0, 0.0, True), (1, 0.0, True), (2, 0.0, False), (2, 1.0, True), (3, 1.0, False)]
)
def test_a_drop_is_accepted_up_to_the_margin_or_one_standard_error(lost, margin, accepted):
    """Of 200 pictures: k lost and none won is a drop of k/200 with an error of about sqrt(k)/200."""
    after = torch.ones(200, dtype=torch.bool)
    after[:lost] = False
    trial = judge_trial(0.5, torch.ones(200, dtype=torch.bool), after, margin)
    assert trial.accepted is accepted
    assert trial.drop == pytest.approx(lost / 200)


def test_the_share_is_the_first_accepted_and_0_where_none_is(ground, source):
    made = [judge_trial(share, _hits(1, 1, 1), _hits(1, 1, 1), 0.5) for share in (0.9, 0.8)]
    assert chosen_share(made) == 0.9
    refused = [dataclasses.replace(trial, accepted=False) for trial in made]
    assert chosen_share([refused[0], made[1]]) == 0.8
    assert chosen_share(refused) == 0.0


# ---------------------------------------------------------------- the search


def test_the_search_tries_the_published_shares_for_a_third_of_the_epochs(ground, source):
    phases = plan_for(ground, source, quick(prune="auto", epochs=20)).phases
    assert [phase.prune for phase in phases] == [None, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.25, None]
    assert [phase.epochs for phase in phases] == [20, *[4] * 8, 10]
    assert {phase.start for phase in phases[1:]} == {"train"}
    assert len({phase.draws for phase in phases[1:-1]}) == 1


def test_every_trial_starts_at_the_same_network_and_the_last_phase_too(ground, source, monkeypatch):
    refuse_above(monkeypatch, 0.8)
    loop = loop_for(ground, source, AUTO)
    entered = states_on_entry(loop)
    trained = run(loop)
    assert list(entered) == ["train", "trial 0.95", "trial 0.9", "trial 0.85", "trial 0.8", "retrain"]
    assert all(bits == entered["retrain"] for name, bits in entered.items() if name != "train")
    claim = {name: int(trained.trainable[f"body.{name}"].sum()) for name in ground.free}
    for name, free in ground.free.items():
        assert claim[name] == int(free.sum()) - round(0.8 * int(free.sum()))


def test_the_winner_of_the_search_is_what_the_same_share_gives_without_one(ground, source, monkeypatch):
    """Trials leave no trace: the last phase's epochs are those of a plain run at that share."""
    refuse_above(monkeypatch, 0.7)
    found = run(loop_for(ground, source, AUTO))
    plain = run(loop_for(ground, source, dataclasses.replace(AUTO, prune=0.7)))
    assert state_bits(found.network.state_dict()) == state_bits(plain.network.state_dict())


def test_all_trials_see_the_same_pictures_in_the_same_order(ground, source, monkeypatch):
    """Two trials of the same share are the same run, to the last bit."""
    refuse_above(monkeypatch, -1.0)
    loop = loop_for(ground, source, AUTO)
    train_phase, first, second, *_, last = loop.plan.phases
    second = dataclasses.replace(second, prune=first.prune)
    loop.plan = dataclasses.replace(loop.plan, phases=(train_phase, first, second, last))
    rows = run(loop).rows
    one, two = ([row for row in rows if row.phase == phase.name] for phase in (first, second))
    assert [(r.train_loss, r.val_loss) for r in one] == [(r.train_loss, r.val_loss) for r in two]


def test_a_search_killed_after_any_step_and_resumed_gives_the_same_bits(ground, source, tmp_path, monkeypatch):
    refuse_above(monkeypatch, 0.9)
    kept, settings = Kept(), dataclasses.replace(AUTO, epochs=1)
    whole = run(loop_for(ground, source, settings, keeper=kept.keeper(interval=0.0)))
    steps = 3 * (1 + 2 * 1 + 1)  # three batches; training, two trials, retraining
    assert len(kept.checkpoints) > steps, "one after each step, and more at the ends of epochs"
    assert len({checkpoint.position.phase for checkpoint in kept.checkpoints}) == 4
    for number, checkpoint in enumerate(kept.checkpoints):
        write_checkpoint(tmp_path / "checkpoint", checkpoint)
        torch.manual_seed(777 + number)
        resumed = run(loop_for(ground, source, settings), read_checkpoint(tmp_path / "checkpoint"))
        assert state_bits(resumed.network.state_dict()) == state_bits(whole.network.state_dict()), number
        assert state_bits(resumed.hits) == state_bits(whole.hits)
        assert [(row.phase, row.epoch, row.val_loss) for row in resumed.rows] == [
            (row.phase, row.epoch, row.val_loss) for row in whole.rows
        ]


def test_a_search_reports_its_curve_and_every_picture_it_showed(tmp_path, data):
    with new_store(tmp_path / "store") as store:
        report = train(store, "shapes", data, dataclasses.replace(AUTO, margin=0.0, epochs=6))
        assert store.verify() == []
        assert report.prune == (report.trials[-1].share if report.trials[-1].accepted else 0.0)
        assert not any(trial.accepted for trial in report.trials[:-1])
        kept, free = report.claimed, sum(int((~m).sum()) for m in store.backbone.kept.values())
        assert kept / free == pytest.approx(1.0 - report.prune, abs=0.02)
    with (Path(report.run) / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row["epoch"] != "0"]
    assert report.presentations == 150 * len(epochs)
    best = {}
    for row in rows:
        best[row["phase"]] = max(best.get(row["phase"], 0.0), float(row["val_top1"]))
    assert report.pruning_loss == pytest.approx(best["train"] - report.val_top1, abs=1e-6)
    assert report.pruning_loss != 0.0, "of 200 pictures at least one should tell"
    for trial in report.trials:
        assert best[f"trial {trial.share:g}"] == pytest.approx(trial.val_top1, abs=1e-6)
        assert best["train"] - trial.val_top1 == pytest.approx(trial.drop, abs=1e-6)
    assert report.as_json()["trials"][0]["share"] == 0.95


def test_a_search_on_too_few_pictures_is_the_fixed_share_with_a_warning(tmp_path):
    data = shapes(tmp_path / "a.npz")
    with new_store(tmp_path / "store") as store:
        report = train(store, "shapes", data, quick(epochs=1, prune="auto"))
        assert (report.prune, report.plan["prune"], report.trials) == (0.75, 0.75, ())
        assert "--prune auto chooses by at least 200 validation pictures" in report.warnings[0]


@pytest.mark.parametrize(("train_count", "val", "enough"), [(1133, 200, True), (1180, 200, False), (1000, 199, False)])
def test_validation_must_be_200_pictures_and_15_percent(tmp_path, ground, train_count, val, enough):
    source = read(shapes(tmp_path / "a.npz", train=train_count, val=val), ground)
    assert (too_small_for_auto(source) is None) is enough


def test_a_given_share_has_no_trials(ground, source):
    loop = loop_for(ground, source, quick(epochs=1))
    assert trials(loop.plan, run(loop).hits) == []
