"""The one loop: what it holds still, what it picks, and that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from masks_store import norm_modules
from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.interrupt import Interrupted
from trainer.loop import Diverged
from trainer.measure import score
from trainer.network import Network
from trainer.phase import Phase, learning_rate

from .rig import CPU, Kept, loop_for, quick, run, state_bits


def _timeless(row):
    """A row without what a clock gave."""
    return dataclasses.replace(row, seconds=0.0, images_per_second=0.0, cpu_seconds=0.0)


# ---------------------------------------------------------------- rule 1: frozen weights, at every step


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_kept_weights_have_the_backbones_bits_after_every_step(ground, source, optimizer, memory_format, precision):
    settings = quick(optimizer=optimizer, weight_decay=1e-2, lr=1e-2, precision=precision)
    kept = {f"body.{name}": mask for name, mask in ground.backbone.kept.items()}
    backbone = {f"body.{name}": ground.backbone.tensors[name] for name in ground.backbone.kept}
    steps = 0

    def look() -> bool:  # asked after every step
        nonlocal steps
        steps += 1
        for name, mask in kept.items():
            weight = loop.network.get_parameter(name).detach()
            assert torch.equal(weight[mask].view(torch.int32), backbone[name][mask].view(torch.int32)), name
        return False

    keeper = dataclasses.replace(Kept().keeper(), stop=look)
    loop = loop_for(ground, source, settings, keeper=keeper, layout=memory_format)
    run(loop)
    assert steps >= 9
    moved = [bool((loop.network.get_parameter(n).detach() != backbone[n])[~mask].any()) for n, mask in kept.items()]
    assert all(moved), "every layer's free weights should train"


# ---------------------------------------------------------------- rule 2: BatchNorm's statistics


@pytest.mark.parametrize(("norm", "still"), [("shared", True), ("own", False)])
def test_shared_norms_keep_statistics_scale_and_shift_in_train_mode(ground, source, norm, still):
    loop = loop_for(ground, source, quick(norm=norm))
    before = state_bits({n: t for n, t in loop.network.state_dict().items() if "bn" in n})
    run(loop)
    after = state_bits({n: t for n, t in loop.network.state_dict().items() if "bn" in n})
    assert set(before) == set(after) != set()
    assert (before == after) is still


def test_train_mode_is_never_given_to_a_frozen_norm(ground):
    network: Network = ground.network(3, trains_norm=False)
    for again in (network, torch.nn.Sequential(network)):
        again.train()
        assert network.training
        assert not any(norm.training for norm in norm_modules(network.body).values())
    network.trains_norm = True
    network.train()
    assert all(norm.training for norm in norm_modules(network.body).values())


# ---------------------------------------------------------------- rule 6: selection on validation


def test_a_phase_ends_at_the_best_of_its_validations_and_its_start_is_a_candidate(ground, source):
    loop = loop_for(ground, source, quick(epochs=4, lr=0.05, prune=0.02))
    retrain = dataclasses.replace(loop.plan.phases[1], lr=30.0, clip=None)  # can only make it worse
    loop.plan = dataclasses.replace(loop.plan, phases=(loop.plan.phases[0], retrain))
    trained = run(loop)
    start, *rest = [row for row in trained.rows if row.phase == "retrain"]
    assert start.epoch == 0
    assert start.best
    assert rest
    assert not any(row.best for row in rest)
    now = score(trained.network, source.splits["val"], ground.backbone.manifest.preprocess, CPU, 0)
    assert (now.top1, now.loss) == (start.val_top1, start.val_loss)


def test_the_best_is_the_highest_accuracy_and_at_the_same_accuracy_the_lowest_loss(ground, source):
    rows = run(loop_for(ground, source, quick(epochs=8, lr=0.1, prune=0.0))).rows
    best = (-1.0, 0.0)
    for row in rows:
        better = (row.val_top1, -row.val_loss) > best
        assert row.best is better
        best = max(best, (row.val_top1, -row.val_loss))
    assert [row.best for row in rows] != [True] * len(rows)


def test_the_test_split_is_not_read_while_training(ground, source):
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError(f"the loop read {name} of the test split")

    watched = dataclasses.replace(source, splits={**source.splits, "test": Untouchable()})
    assert run(loop_for(ground, watched, quick(epochs=1))).rows


# ---------------------------------------------------------------- rule 8: resume


@pytest.mark.parametrize(
    "settings",
    [
        quick(epochs=3),
        quick(epochs=2, optimizer="adamw", weight_decay=1e-2, flip=True),
        quick(epochs=2, precision="16-mixed"),
        quick(epochs=2, method="clr"),
        quick(epochs=2, method="piggyback", lr=1e-2),
        quick(epochs=2, pick=True, lr=5e-2),
        quick(epochs=1, method="finetune"),
    ],
    ids=["packnet", "adamw", "16-mixed", "clr", "piggyback", "pick", "finetune"],
)
def test_a_run_stopped_after_any_step_and_resumed_gives_the_same_bits(ground, source, settings, tmp_path):
    whole = run(loop_for(ground, source, settings))
    total = sum(phase.epochs for phase in loop_for(ground, source, settings).plan.phases) * 6
    for stop_after in range(0, total, 5):
        kept = Kept(stop_after)
        with pytest.raises(Interrupted):
            run(loop_for(ground, source, settings, keeper=kept.keeper()))
        write_checkpoint(tmp_path / "checkpoint", kept.checkpoints[-1])
        torch.manual_seed(12345 + stop_after)  # a new process has other random state
        resumed = run(loop_for(ground, source, settings), read_checkpoint(tmp_path / "checkpoint"))
        assert state_bits(resumed.network.state_dict()) == state_bits(whole.network.state_dict()), stop_after
        assert [_timeless(row) for row in resumed.rows] == [_timeless(row) for row in whole.rows]
        masks = {n: m for n, m in resumed.trainable.items() if m is not None}
        assert state_bits(masks) == state_bits({n: m for n, m in whole.trainable.items() if m is not None})


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stop_that_is_asked_for_while_an_epoch_is_validated_keeps_that_epoch(ground, source, epoch):
    settings, kept = quick(method="clr"), Kept()
    whole = run(loop_for(ground, source, settings))
    asked: list[int] = []

    def validated(rows):
        asked.extend([len(rows)] if len(rows) == epoch else [])

    keeper = dataclasses.replace(kept.keeper(), results=validated, stop=lambda: bool(asked))
    with pytest.raises(Interrupted):
        run(loop_for(ground, source, settings, keeper=keeper))
    assert asked == [epoch]
    assert kept.checkpoints[-1].position.epoch == epoch
    resumed = run(loop_for(ground, source, settings), kept.checkpoints[-1])
    assert state_bits(resumed.network.state_dict()) == state_bits(whole.network.state_dict())


def test_the_cpu_time_of_an_epoch_is_that_of_all_its_sittings(ground, source):
    kept = Kept(4)
    with pytest.raises(Interrupted):
        run(loop_for(ground, source, quick(), keeper=kept.keeper()))
    before = kept.checkpoints[-1].position.cpu_seconds
    assert before > 0
    spent = before + 1000.0  # as if the first sitting had been long
    kept.checkpoints[-1].position.cpu_seconds = spent
    resumed = run(loop_for(ground, source, quick()), kept.checkpoints[-1])
    assert resumed.rows[0].cpu_seconds > spent
    assert 0 < resumed.rows[1].cpu_seconds < 1000
    assert resumed.cpu_seconds == pytest.approx(sum(row.cpu_seconds for row in resumed.rows))


def test_how_often_checkpoints_are_written_changes_nothing(ground, source):
    rare, often = Kept(), Kept()
    a = run(loop_for(ground, source, quick(), keeper=rare.keeper()))
    b = run(loop_for(ground, source, quick(), keeper=often.keeper(interval=0.0)))
    assert len(often.checkpoints) > len(rare.checkpoints) + 10
    assert state_bits(a.network.state_dict()) == state_bits(b.network.state_dict())


def test_dropout_goes_on_from_its_random_state(source, ground):
    """With dropout in the network, only a restored generator gives the same bits."""
    settings = quick(epochs=2, method="linear")

    def with_dropout(keeper):
        loop = loop_for(ground, source, settings, keeper=keeper)
        loop.network.head = torch.nn.Sequential(torch.nn.Dropout(0.5), loop.network.head)
        loop.method = _HeadOf(loop.method)
        return loop

    whole = run(with_dropout(Kept().keeper()))
    kept = Kept(stop_after=3)
    with pytest.raises(Interrupted):
        run(with_dropout(kept.keeper()))
    torch.manual_seed(99)
    resumed = run(with_dropout(Kept().keeper()), kept.checkpoints[-1])
    assert state_bits(resumed.network.state_dict()) == state_bits(whole.network.state_dict())


def test_the_gradient_scaler_goes_on_from_its_scale(ground, source):
    kept = Kept(stop_after=3)
    with pytest.raises(Interrupted):
        run(loop_for(ground, source, quick(precision="16-mixed"), keeper=kept.keeper()))
    saved = kept.checkpoints[-1]
    saved = dataclasses.replace(saved, scaler={**saved.scaler, "scale": 256.0})
    resumed = loop_for(ground, source, quick(precision="16-mixed"))
    run(resumed, saved)
    assert resumed.fabric.strategy.precision.scaler.get_scale() == 256.0


class _HeadOf:
    """A method as given, for a network whose head stands behind a dropout."""

    def __init__(self, method):
        self._method = method

    def settle(self, *arguments):
        return self._method.settle(*arguments)

    def set_up(self, *arguments):
        return self._method.set_up(*arguments)

    def before_phase(self, *arguments):
        return self._method.before_phase(*arguments)

    def enter(self, *arguments):
        return {name.replace("head.", "head.1."): mask for name, mask in self._method.enter(*arguments).items()}


def test_the_same_seed_gives_the_same_bits_and_another_one_others(ground, source):
    first, second = (run(loop_for(ground, source, quick(seed=3))) for _ in range(2))
    other = run(loop_for(ground, source, quick(seed=4)))
    assert state_bits(first.network.state_dict()) == state_bits(second.network.state_dict())
    assert state_bits(other.network.state_dict()) != state_bits(first.network.state_dict())


def test_the_callers_random_state_is_left_alone(ground, source):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(loop_for(ground, source, quick(epochs=1)))
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_holds_no_pickle_and_reads_back(ground, source, tmp_path):
    kept = Kept()
    run(loop_for(ground, source, quick(epochs=1), keeper=kept.keeper(interval=0.0)))
    path = tmp_path / "checkpoint"
    write_checkpoint(path, kept.checkpoints[-1])
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {name.split("/")[0] for name in header} >= {"network", "mask", "best", "optimizer", "random", "__metadata__"}
    back = read_checkpoint(path)
    assert back.position == kept.checkpoints[-1].position
    assert state_bits(back.network) == state_bits(kept.checkpoints[-1].network)
    assert list(back.trainable) == list(kept.checkpoints[-1].trainable)


def test_a_checkpoint_takes_the_place_of_the_last_one_whole(ground, source, tmp_path):
    """Whoever has the old file open goes on reading the old bytes: at no moment does the name stand for half a file."""
    kept, path = Kept(), tmp_path / "checkpoint"
    run(loop_for(ground, source, quick(epochs=1), keeper=kept.keeper(interval=0.0)))
    write_checkpoint(path, kept.checkpoints[0])
    old = path.read_bytes()
    with path.open("rb") as reader:
        write_checkpoint(path, kept.checkpoints[-1])
        assert reader.read() == old
    assert path.read_bytes() != old


# ---------------------------------------------------------------- phases


def test_learning_rates_follow_the_published_steps():
    def rates(schedule, epochs):
        phase = Phase("x", epochs, 1.0, schedule)
        return [round(learning_rate(phase, epoch, 0, 10), 6) for epoch in range(epochs)]

    assert rates("constant", 3) == [1.0, 1.0, 1.0]
    assert rates("half", 10) == [1.0] * 5 + [0.1] * 5
    assert rates("thirds", 60) == [1.0] * 20 + [0.1] * 20 + [0.01] * 20
    assert rates("thirds", 2) == [1.0, 0.1]


def test_the_cosine_rises_then_falls_to_nearly_nothing():
    phase = Phase("x", 10, 0.5, "cosine")
    rates = [learning_rate(phase, step // 20, step % 20, 20) for step in range(200)]
    top = int(np.argmax(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[top] == pytest.approx(0.5)
    assert 0 < rates[0] < 0.1
    assert 0 <= rates[-1] < 1e-3


def test_a_phase_stops_after_more_than_its_patience_without_a_better_accuracy(ground, source):
    loop = loop_for(ground, source, quick(method="linear", epochs=30, lr=1e-12))
    loop.plan = dataclasses.replace(loop.plan, phases=(dataclasses.replace(loop.plan.phases[0], patience=3),))
    kept = Kept()
    loop.keeper = kept.keeper(interval=0.0)
    rows = len(run(loop).rows)
    assert rows == 1 + 4  # the first is the best; then more than three that are not better
    again = loop_for(ground, source, quick(method="linear", epochs=30, lr=1e-12))
    again.plan = loop.plan
    middle = next(c for c in kept.checkpoints if c.position.stale == 2 and c.position.batch)
    assert len(run(again, middle).rows) == rows, "a resumed run has as much patience left"


@pytest.mark.parametrize(
    "settings",
    [
        quick(lr=1e-2),
        quick(prune=0.5, norm="shared", lr=1e-12),
        quick(pick=True, lr=5e-2),
        quick(method="clr", lr=1e-2),
        quick(method="bn", recipe="paper"),
        quick(method="piggyback", lr=1e-2),
        quick(method="finetune", lr=0.05),
    ],
    ids=["packnet", "still", "pick", "clr", "paper", "piggyback", "finetune"],
)
def test_the_patience_that_is_asked_for_ends_every_phase_of_every_method(ground, source, settings):
    loop = loop_for(ground, source, dataclasses.replace(settings, epochs=12, patience=1))
    rows = run(loop).rows
    assert sum(not row.epoch for row in rows) == sum(phase.start_counts for phase in loop.plan.phases)
    for phase in loop.plan.phases:
        accuracies = [row.val_top1 for row in rows if row.phase == phase.name]
        epochs = len(accuracies) - phase.start_counts
        assert epochs == phase.epochs or _without_a_better(accuracies) == 2
        assert all(_without_a_better(accuracies[:n]) < 2 for n in range(1, len(accuracies))), "no epoch too many"
    assert len([row for row in rows if row.epoch]) < sum(phase.epochs for phase in loop.plan.phases)


def _without_a_better(accuracies: list[float]) -> int:
    """How many epochs ago the best accuracy was reached first."""
    return len(accuracies) - 1 - accuracies.index(max(accuracies))


def test_a_run_with_patience_that_is_stopped_and_resumed_ends_where_the_whole_one_ends(ground, source, tmp_path):
    settings = quick(epochs=8, patience=1, lr=5e-2, prune=0.5)
    counted = Kept()
    whole = run(loop_for(ground, source, settings, keeper=counted.keeper()))
    assert len([row for row in whole.rows if row.epoch]) < 8 + 4, "it ends early"
    for stop_after in range(0, counted.steps, 7):
        kept = Kept(stop_after)
        with pytest.raises(Interrupted):
            run(loop_for(ground, source, settings, keeper=kept.keeper()))
        write_checkpoint(tmp_path / "checkpoint", kept.checkpoints[-1])
        resumed = run(loop_for(ground, source, settings), read_checkpoint(tmp_path / "checkpoint"))
        assert state_bits(resumed.network.state_dict()) == state_bits(whole.network.state_dict()), stop_after
        assert [_timeless(row) for row in resumed.rows] == [_timeless(row) for row in whole.rows]


def test_without_patience_every_recipe_is_as_it_was(ground, source):
    def chosen(**changes):
        return [phase.patience for phase in loop_for(ground, source, quick(**changes)).plan.phases]

    assert chosen() == [None, None]
    assert chosen(recipe="paper") == [None, None]
    assert chosen(method="clr") == [None]
    assert chosen(method="clr", recipe="paper") == [21]
    assert chosen(method="clr", recipe="paper", patience=0) == [0]


def test_a_loss_that_is_no_number_is_told_with_what_to_do(ground, source):
    loop = loop_for(ground, source, quick(lr=1e18, epochs=3))
    loop.plan = dataclasses.replace(loop.plan, phases=(dataclasses.replace(loop.plan.phases[0], clip=None),))
    with pytest.raises(Diverged, match=r"diverged.*try --lr 3.3e\+17"):
        run(loop)


def test_a_retraining_that_diverges_is_told_with_the_flag_of_its_own_rate(ground, source):
    loop = loop_for(ground, source, quick(retrain_lr=3e18, epochs=2))
    train, retrain = loop.plan.phases
    loop.plan = dataclasses.replace(loop.plan, phases=(train, dataclasses.replace(retrain, clip=None)))
    with pytest.raises(Diverged, match=r"of 'retrain'; try --retrain-lr 1e\+18"):
        run(loop)
