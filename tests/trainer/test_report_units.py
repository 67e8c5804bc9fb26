"""`taskpack report` on a store of units: what is left is told in units, and per layer."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from masks_store import Store, create, free_unit_counts
from tests import zoo
from tests.masks_store.stores import same_logits
from trainer.outcome import Report
from trainer.pipeline import train
from trainer.report.facts import Facts, gather
from trainer.report.figures import draw_all
from trainer.report.page import render
from trainer.sparsify import kept_of

from .pages import Page, text_of
from .rig import SIZE, quick, shapes


def unit_store(path: Path) -> Store:
    return Store.create(path, create("mlp-24-20", image_size=SIZE, keep=0.0), capacity="units")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[Report]]:
    """A closed store of two clnp tasks, and what their runs said."""
    folder = tmp_path_factory.mktemp("units")
    chosen = quick(method="clnp", lr=5e-3, margin=1.0, epochs=2, l1=0.0)
    with unit_store(folder / "store") as store:
        reports = [
            train(store, task, shapes(folder / f"{seed}.npz", seed=seed), chosen)
            for seed, task in enumerate(("one", "two"))
        ]
    return folder / "store", reports


@pytest.fixture
def store(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made[0], tmp_path / "store")
    with Store.open(tmp_path / "store") as opened:
        yield opened


def add(store: Store, task: str, method: str, *, share: float = 0.1, on: str | None = None, seed: int = 0) -> str:
    """Register a task of random values; on a task's stable version, else on the backbone."""
    ancestors = store.lineage(store.resolve(on).version) if on else ()
    taken = list(store.claims().values())
    data = zoo.task(store.backbone, task, method, ancestors=ancestors, taken=taken, share=share, seed=seed)
    return store.register(data, prober=same_logits).version.version


def verdict_end(facts: Facts) -> str:
    """What the verdict should say of the room."""
    free, total = sum(use.free for use in facts.units), sum(use.units for use in facts.units)
    text = f"{100 * free / total:.1f} % capacity left ({free} of {total} units)"
    left = facts.tasks_left
    if not free:
        return text
    count = f"about {left} task{'s' * (left != 1)} left" if left else "no further task"
    return f"{text}, {count} at this rate"


def rows(facts: Facts) -> list[list[str]]:
    """The page's table of units, without its heading: the layers are in no other table."""
    return [row for row in Page(render(facts, {})).rows if row[0] in ("fc1", "fc2")]


def test_verdict_and_table_have_the_units_that_the_newest_run_told(made, store):
    facts, report = gather(store), made[1][-1]
    assert facts.capacity == "units"
    assert facts.units == report.units
    assert all(sum(counts) > 0 for counts in zip(*((use.new, use.reused) for use in facts.units), strict=True))
    assert (facts.taker, facts.tasks_left, facts.rate) == ("two", report.tasks_left, None)
    assert facts.verdict.endswith(f"0 of 1 earlier tasks changed, {verdict_end(facts)}")
    assert rows(facts) == [
        [
            use.layer,
            *(str(n) for n in (use.units, use.new, use.reused, use.free)),
            f"{100 * use.free / use.units:.1f} %",
        ]
        for use in report.units
    ]


def test_the_page_speaks_of_clnp_tasks_and_of_no_packnet(store):
    text = text_of(gather(store))
    assert "packnet" not in text
    assert "units are free" in text
    assert "a unit, with all weights that lead into it, is one version's, or free" in text


def test_owners_have_the_units_that_they_added(made, store):
    owners = {owner.task: owner for owner in gather(store).owners}
    for report in made[1]:
        assert owners[report.task].units == sum(use.new for use in report.units)
        assert owners[report.task].weights == report.claimed


def test_what_is_free_is_what_is_free_now_whatever_the_runs_say(store):
    before = gather(store)
    shutil.rmtree(store.runs)
    assert gather(store).units == before.units
    add(store, "pushed", "clnp", on="two", share=1.0)
    grown = gather(store)
    assert grown.taker == "pushed"
    assert {use.layer: use.free for use in grown.units} == free_unit_counts(store)
    store.delete_task("pushed")
    store.delete_task("two")
    alone = gather(store)
    assert alone.taker == "one"
    assert sum(use.free for use in alone.units) > sum(use.free for use in before.units)
    assert alone.verdict.endswith(verdict_end(alone))


def test_the_scan_for_the_threshold_is_in_the_runs_report_and_on_the_page(made, store):
    facts, reports = gather(store), {report.task: report for report in made[1]}
    text = text_of(facts)
    for task in facts.tasks:
        report, curve = reports[task.task], task.prune
        assert report.run is not None
        told = json.loads((store.runs / Path(report.run).name / "report.json").read_text())
        assert curve is not None
        assert told["scan"] == [dataclasses.asdict(candidate) for candidate in report.scan]
        assert curve.scan == report.scan == Report.from_json(told).scan
        kept = kept_of(curve.scan)
        assert kept.units == sum(use.new + use.reused for use in report.units)
        assert curve.scan[0].units == kept.units + sum(gated(made[1], report))
        assert curve.share == 1 - kept.units / curve.scan[0].units
        assert curve.pruned == pytest.approx(kept.val_top1, abs=1e-6)  # results.csv has six digits
        assert curve.retrained is None  # as there is no --finetune
        assert f"{task.task}: threshold {kept.threshold:.4g}, {kept.units} of {curve.scan[0].units} units, " in text
    assert any(not candidate.accepted for candidate in reports["one"].scan)
    pictures = draw_all(facts)
    assert {"pruning", "scan"} <= pictures.keys()
    for png in pictures["scan"].png.values():
        Image.open(io.BytesIO(png)).verify()


def gated(reports: list[Report], report: Report) -> list[int]:
    """Per layer, the units that were there for a task of the chain and that it does not use."""
    before = reports[: reports.index(report)]
    owned = [sum(uses) for uses in zip(*([use.new for use in one.units] for one in before), strict=True)]
    return [use.free + (owned[n] if owned else 0) - use.reused for n, use in enumerate(report.units)]


def test_runs_without_a_scan_are_read_and_damaged_ones_are_told(made, store):
    """Runs of before the scan was kept; and one whose file was altered."""
    refused = {"threshold": 1.0, "val_top1": 0.5, "units": 3, "accepted": False}
    for report, scan in zip(made[1], (None, [refused]), strict=True):
        folder = store.runs / Path(report.run).name
        told = json.loads((folder / "report.json").read_text())
        del told["scan"]
        (folder / "report.json").write_text(json.dumps(told | ({} if scan is None else {"scan": scan})))
    facts = gather(store)
    assert [task.prune for task in facts.tasks] == [None, None]
    assert facts.tasks[0].rows
    assert len(facts.faults) == 1
    assert "cannot be read (the scan for a threshold does not begin with the network before it)" in facts.faults[0]
    assert draw_all(facts).keys() >= {"accuracy", "curves"}


@pytest.mark.parametrize("method", ["clr", "linear"])
def test_a_task_that_takes_nothing_is_not_the_measure(tmp_path, method):
    path = create("tinyresnet", image_size=SIZE, keep=0.0, arch_args={"width": 8, "blocks": [1, 1]})
    with Store.create(tmp_path / "store", path, capacity="units") as store:
        add(store, "one", "clnp", share=0.3)
        before = gather(store)
        add(store, "three", method, on="one")
        facts = gather(store)
    assert (facts.taker, facts.tasks_left, facts.units) == ("one", before.tasks_left, before.units)
    assert facts.verdict.startswith("three: 50.0 % test, 0 of 1 earlier tasks changed, ")
    assert facts.verdict.endswith(verdict_end(facts))
    assert [owner.task for owner in facts.owners] == ["one"]


def test_a_layer_that_is_full_leaves_room_for_no_task_like_the_last(tmp_path):
    with unit_store(tmp_path / "store") as store:
        add(store, "one", "clnp", share=0.6)
        facts = gather(store)
        assert facts.tasks_left == 0
        assert facts.verdict.endswith(verdict_end(facts))
        assert "No further clnp task would find as many of every layer as one took" in text_of(facts)
        add(store, "rest", "clnp", on="one", share=1.0)
        full = gather(store)
        assert full.verdict.endswith("0.0 % capacity left (0 of 44 units)")


def test_a_store_of_units_without_tasks_is_all_free(tmp_path):
    with unit_store(tmp_path / "store") as store:
        facts = gather(store)
    assert facts.verdict == "no tasks yet, 100.0 % of the units free"
    assert (facts.tasks_left, facts.taker) == (None, None)
    assert "44 of 44 units are free (100.0 %). No task has taken any yet." in text_of(facts)
    assert rows(facts) == [["fc1", "24", "24", "100.0 %"], ["fc2", "20", "20", "100.0 %"]]
    assert "units of each of 2 layers" in draw_all(facts)["capacity"].alt
