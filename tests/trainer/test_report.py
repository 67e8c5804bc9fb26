"""`taskpack report`: what the page says is what the store holds, and what others wrote into names stays text."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import taskpack
from masks_store import InvalidInput, Store, StoreCorrupt
from tests import zoo
from tests.masks_store.stores import same_logits
from trainer.capacity import capacity_of
from trainer.compare import compare
from trainer.evaluate import evaluate
from trainer.pipeline import train
from trainer.predictions import Predictions, from_csv
from trainer.predictions import as_csv as predictions_csv
from trainer.report import write_report
from trainer.report.confusion import MOST_PAIRS, confusion_of, matrix, worst_pairs
from trainer.report.drawing import THEMES
from trainer.report.facts import gather
from trainer.report.figures import _least_shown, _shares, draw_all
from trainer.report.history import read_history
from trainer.report.page import render
from trainer.report.weights import count_used, pack_used, sharing

from .pages import Page, text_of
from .rig import new_store, quick, shapes

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A closed store: `one` (packnet, a canary besides), `two` (clr on it), a comparison for `one`."""
    folder = tmp_path_factory.mktemp("made")
    data = _hostile(shapes(folder / "shapes.npz"))
    with new_store(folder / "store") as store:
        train(store, "one", data, quick(batch_size=20))
        train(store, "two", data, quick(method="clr", on="one", epochs=1, batch_size=20))
        compare(store, "one", data, ["linear", "packnet"], quick(epochs=1, batch_size=30))
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made, tmp_path / "store")
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def written(made, tmp_path_factory) -> Path:
    """The folder of its report; for tests that only read."""
    out = tmp_path_factory.mktemp("written") / "out"
    with Store.open(made) as store:
        write_report(store, out)
    return out


def _hostile(path: str) -> str:
    """The same source, a class of which has markup for a name."""
    arrays = dict(np.load(path))
    arrays["class_names"] = np.array([HOSTILE, "plain", "x" * 200])
    np.savez(path, **arrays)
    return path


def _page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- the page


def test_the_page_loads_nothing_runs_nothing_and_is_well_formed(written):
    page = _page(written)
    assert page.open == []
    assert page.named("script", "link", "iframe", "object") == []
    for attributes in page.named("img", "source", "a", "meta"):
        for name in ("src", "srcset", "href"):
            assert re.match(r"data:image/png;base64,|#", attributes.get(name) or "#"), name
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_every_figure_has_words_a_dark_twin_and_a_file(written):
    page = _page(written)
    pictures = page.named("img")
    files = {file.name for file in (written / "figures").iterdir()}
    names = ("accuracy", "capacity", "owners", "sharing", "bytes", "curves", "pruning")
    assert files == {f"{name}-{theme}.png" for name in names for theme in ("light", "dark")}
    assert len(pictures) == len(page.named("source")) == len(names)
    assert all(len(attributes["alt"]) > 20 for attributes in pictures)
    for theme, bright in (("light", True), ("dark", False)):
        png = (written / "figures" / f"owners-{theme}.png").read_bytes()
        corner = Image.open(io.BytesIO(png)).convert("L").getpixel((0, 0))
        assert (corner > 128) is bright


def test_headings_go_down_by_one_and_links_lead_to_them(written):
    page = _page(written)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    identities = {attributes.get("id") for _, attributes in page.tags}
    assert {a["href"][1:] for a in page.named("a")} <= identities


def test_names_of_classes_are_text_and_never_markup(written):
    page = _page(written)
    assert page.named("script") == []
    assert HOSTILE in page.text


# ---------------------------------------------------------------- what it says


def test_the_verdict_is_of_the_newest_task(store):
    facts = gather(store)
    test = store.resolve("two").manifest.metrics.test_top1
    left = capacity_of(store.capacity_left().values())
    assert facts.verdict == (
        f"two: {100 * test:.1f} % test, 0 of 1 earlier tasks changed, {100 * left.share:.1f} % capacity left, "
        f"about {left.tasks_left(0.75)} tasks left at this rate"
    )


def test_the_verdict_counts_tasks_and_beside_them_versions_where_a_task_has_several(store):
    one = store.resolve("one").version
    for seed in (1, 2):
        again = zoo.task(store.backbone, "one", "clr", ancestors=store.lineage(one), seed=seed)
        store.register(again, prober=same_logits)
        if seed == 1:
            assert ", 0 of 1 earlier tasks changed (0 of 2 earlier versions), " in gather(store).verdict
    store.register(zoo.task(store.backbone, "three", "linear"), prober=same_logits)
    assert ", 0 of 2 earlier tasks changed (0 of 4 earlier versions), " in gather(store).verdict


def test_tasks_that_share_equally_leave_room_for_the_rest_of_them(tmp_path):
    data = shapes(tmp_path / "shapes.npz")
    with new_store(tmp_path / "store") as store:
        for done, task in enumerate(("one", "two"), 1):
            report = train(store, task, data, quick(prune="equal:3", epochs=1, batch_size=30))
            facts = gather(store)
            assert (facts.turn, facts.tasks_left) == ((done, 3), 3 - done) == ((done, 3), report.tasks_left)
        assert facts.verdict.endswith("capacity left, 1 task left of 3 equal ones")
        assert "1 more packnet task of 3 that share equally" in text_of(facts)
        store.delete_task("two")
        assert gather(store).tasks_left == 2
        train(store, "two", data, quick(epochs=1, batch_size=30))
        assert (gather(store).turn, gather(store).rate) == (None, 0.75)


def test_a_task_that_took_nothing_is_no_measure_of_what_is_left(store):
    before = gather(store)
    data = shapes(store.path.parent / "more.npz")
    report = train(store, "three", data, quick(on="one", train_layers="head", epochs=1, batch_size=30))
    facts = gather(store)
    assert (report.claimed, report.prune) == (0, 0.0)
    assert (facts.rate, facts.tasks_left) == (before.rate, before.tasks_left)
    assert facts.rate > 0


def test_weights_per_layer_are_the_backbones_the_claims_and_the_free(store):
    facts = gather(store)
    version = store.resolve("one").version
    claim = store.claim(version)
    for layer in facts.layers:
        assert layer.claimed == {version: int(claim[layer.name].sum())}
        assert layer.kept == int(store.backbone.kept[layer.name].sum())
        assert layer.weights == layer.kept + layer.free + sum(layer.claimed.values())
    assert [(owner.task, owner.weights) for owner in facts.owners] == [
        ("one", sum(int(m.sum()) for m in claim.values()))
    ]


def test_tasks_of_one_lineage_share_all_and_the_matrix_is_its_definition(store):
    facts = gather(store)
    assert facts.shared == ("one", "two")
    assert facts.sharing == [[1.0, 1.0], [1.0, 1.0]]
    used = [{1, 2, 3, 9}, {2, 3}, set[int]()]
    packed = [np.packbits([n in numbers for n in range(11)]) for numbers in used]
    expected = [[len(a & b) / len(a) if a else 0.0 for b in used] for a in used]
    assert sharing(packed) == expected


def test_used_weights_are_those_that_are_not_zero(store):
    view = store.view(store.resolve("one").version)
    assert count_used(pack_used(view.weights)) == sum(int((w != 0).sum()) for w in view.weights.values())


def test_other_methods_on_the_same_pictures_stand_beside_a_task(store):
    (comparison,) = read_history(store.runs).compared[:1]
    facts = {task.task: task for task in gather(store).tasks}
    (baseline,) = facts["one"].baselines
    assert (baseline.method, baseline.test_top1) == ("linear", comparison.test_top1)
    assert facts["two"].baselines == ()


def test_curves_and_the_prune_curve_are_the_runs(store):
    facts = {task.task: task for task in gather(store).tasks}
    rows = facts["one"].rows
    assert [(row.phase, row.epoch) for row in rows] == [("train", 1), ("train", 2), ("retrain", 0), ("retrain", 1)]
    curve = facts["one"].prune
    assert (curve.share, curve.pruned) == (0.75, rows[2].val_top1)
    assert curve.before == max(rows[0].val_top1, rows[1].val_top1)
    assert curve.retrained == max(rows[2].val_top1, rows[3].val_top1)
    assert facts["two"].prune is None


def test_confusion_counts_every_test_picture_and_agrees_with_the_accuracy(store):
    for task in gather(store).tasks:
        counts = task.confusion.counts
        assert task.confusion.split == "test"
        assert sum(count for *_, count in counts) == task.images["test"]
        right = sum(count for label, answer, count in counts if label == answer)
        assert right / task.images["test"] == pytest.approx(task.test_top1)


def test_report_json_is_the_facts(written, made):
    told = json.loads((written / "report.json").read_text())
    with Store.open(made) as store:
        facts = gather(store)
    assert told == json.loads(json.dumps({**facts.as_json(), "made": told["made"]}))
    assert (told["kind"], told["schema"], told["changed_bits"]) == ("taskpack-report", 1, 0)


def test_no_path_of_this_machine_is_in_the_report(written, made):
    for name in ("index.html", "report.json"):
        assert str(made.parent) not in (written / name).read_text()


# ---------------------------------------------------------------- odd stores


def test_an_empty_store_has_a_page_and_the_python_api_writes_it(tmp_path):
    new_store(tmp_path / "store").close()
    written = taskpack.open(tmp_path / "store").report()
    assert written.page == tmp_path / "store" / "report" / "index.html"
    assert written.facts.verdict == "no tasks yet, 50.0 % of the shared weights free"
    assert written.facts.compared == 0
    page = _page(written.page.parent)
    assert "no version yet" in page.text
    assert len(page.named("img")) == 2


def test_a_store_that_keeps_its_whole_backbone_is_not_said_to_be_full(tmp_path):
    with new_store(tmp_path / "store", keep=1.0) as store:
        store.register(zoo.task(store.backbone, "one", "clr"), prober=same_logits)
        facts = gather(store)
        assert facts.tasks_left is None
        assert "tasks left" not in facts.verdict
        assert "take no shared weights" in text_of(facts)


def test_unfinished_and_broken_runs_are_told_and_the_rest_is_shown(store, tmp_path):
    whole = gather(store)
    (run, *_) = [store.runs / task.run for task in whole.tasks]
    for name, file, text in (
        ("20200101-000000-aaaaaa", "settings.json", "{"),
        ("20200101-000000-bbbbbb", "settings.json", '{"task": "three"}'),
        ("20200101-000000-cccccc", "compare.json", "[]"),
        ("20200101-000000-dddddd", "settings.json", "\xff\x00"),
    ):
        (store.runs / name).mkdir()
        (store.runs / name / file).write_bytes(text.encode("latin-1"))
    shutil.copytree(run, store.runs / "20200101-000000-eeeeee")
    (store.runs / "20200101-000000-eeeeee" / "report.json").unlink()
    shutil.copytree(run, store.runs / "20200101-000000-ffffff")
    (store.runs / "20200101-000000-ffffff" / "predictions-test.csv").write_text("nonsense")
    (store.runs / "empty").mkdir()
    (store.runs / "a file").write_text("")
    facts = gather(store)
    assert [fault[:22] for fault in facts.faults] == [f"20200101-000000-{6 * letter}" for letter in "abcdf"]
    assert facts.unfinished == ("20200101-000000-eeeeee: one",)
    assert facts.tasks == whole.tasks
    text = text_of(facts)
    assert "20200101-000000-bbbbbb: cannot be read ('method' is missing)" in text
    assert str(tmp_path) not in text


def test_a_search_for_the_share_and_a_network_outside_the_store_are_read(store):
    """A run whose share was `auto`, with what it tried; and a finished run that makes no version."""
    run = store.runs / next(task.run for task in gather(store).tasks if task.task == "one")
    settings = json.loads((run / "settings.json").read_text())
    report = json.loads((run / "report.json").read_text())
    trials = [{"share": 0.95, "val_top1": 0.25}, {"share": 0.5, "val_top1": 0.75}]
    (run / "settings.json").write_text(json.dumps(settings | {"prune": "auto"}))
    (run / "report.json").write_text(json.dumps(report | {"prune": 0.5, "trials": trials}))
    other = store.runs / "20990101-000000-aaaaaa"
    other.mkdir()
    (other / "settings.json").write_text(json.dumps(settings | {"method": "finetune", "prune": None}))
    (other / "report.json").write_text(json.dumps(report | {"version": None, "test_top1": 0.875}))
    facts = gather(store)
    task = next(task for task in facts.tasks if task.task == "one")
    assert (task.prune.share, task.prune.trials) == (0.5, ((0.95, 0.25), (0.5, 0.75)))
    assert task.prune.judged_from is None, "the drop of these trials was not noted"
    trials[0]["drop"] = 0.5
    (run / "report.json").write_text(json.dumps(report | {"prune": 0.5, "trials": trials}))
    assert next(one for one in gather(store).tasks if one.task == "one").prune.judged_from == 0.75
    assert {baseline.method: baseline.test_top1 for baseline in task.baselines}["finetune"] == 0.875
    assert (facts.faults, facts.unfinished, facts.orphans, facts.rate) == ((), (), (), 0.5)
    assert "one: 95 % given back, 25.0 %; 50 % given back, 75.0 %" in text_of(facts)
    pictures = draw_all(facts)
    assert "shares" in pictures
    for theme in THEMES:
        (panel,) = (axes for axes in _shares([task], theme).axes if axes.get_visible())
        curve, taken, *_ = panel.get_lines()
        assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0.5, 0.95], [0.75, 0.25])
        assert (list(taken.get_xdata()), list(taken.get_ydata())) == ([0.5], [0.75]), "the share that was taken"
    judged = dataclasses.replace(task, prune=dataclasses.replace(task.prune, judged_from=0.625))
    for one, level in ((task, task.prune.before), (judged, 0.625)):
        (panel,) = (axes for axes in _shares([one], THEMES[0]).axes if axes.get_visible())
        assert set(panel.get_lines()[2].get_ydata()) == {level}


@pytest.mark.parametrize(
    ("apart", "least"), [(0.0, 0.0), (0.49, 0.0), (0.5, 0.5), (0.874, 0.85), (0.996, 0.95), (1.0, 0.95)]
)
def test_the_colours_of_what_tasks_share_begin_under_the_least_of_it(apart, least):
    assert _least_shown([[1.0, apart], [0.999, 1.0]]) == pytest.approx(least)


def test_tasks_stand_in_the_order_that_people_number_them(tmp_path):
    with new_store(tmp_path / "store", keep=1.0) as store:
        for name in ("task-10", "task-2", "b", "task-1", "10", "9-a"):
            store.register(zoo.task(store.backbone, name, "linear", seed=len(name)), label="stable")
        assert [task.task for task in gather(store).tasks] == ["9-a", "10", "b", "task-1", "task-2", "task-10"]


def test_a_run_without_predictions_has_no_confusion(store):
    """Runs of before predictions were kept."""
    for file in store.runs.glob("*/predictions-*.csv"):
        file.unlink()
    assert [task.confusion for task in gather(store).tasks] == [None, None]


def test_runs_of_deleted_tasks_are_told_apart(store):
    run = next(task.run for task in gather(store).tasks if task.task == "two")
    store.delete_task("two")
    facts = gather(store)
    assert facts.orphans == (f"{run}: two",)
    assert [task.task for task in facts.tasks] == ["one"]


def test_a_retired_task_keeps_its_claim_and_is_not_computed(store):
    store.delete_task("one", retire=True)
    facts = gather(store)
    assert (facts.compared, facts.shared) == (1, ("two",))
    assert [(owner.task, owner.state) for owner in facts.owners] == [("one", "retired")]
    assert "(retired)" in text_of(facts)


def test_a_task_that_computes_something_else_is_told(store, monkeypatch):
    """A patch, because the store refuses to hold such a version: one that reads its manifest with another digest."""
    versions = store.versions()
    manifest = versions[0].manifest.model_copy(update={"task_digest": zoo.NOWHERE})
    spoilt = [v if v.task != "one" else v.__class__(**{**v.__dict__, "manifest": manifest}) for v in versions]
    monkeypatch.setattr(store, "versions", lambda: spoilt)
    facts = gather(store)
    assert facts.changed == (f"one {versions[0].version}",)
    assert facts.changed_bits is None
    assert "1 of 1 earlier tasks changed" in facts.verdict
    assert "1 of 2 versions no longer compute" in text_of(facts)


def test_a_damaged_store_is_refused_and_the_old_report_stays(store, tmp_path, written):
    shutil.copytree(written, tmp_path / "out")
    before = (tmp_path / "out" / "report.json").read_bytes()
    digest = store.resolve("two").version.removeprefix("sha256:")
    (blob,) = store.path.glob(f"blobs/**/{digest}")
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with Store.open(store.path) as damaged, pytest.raises(StoreCorrupt):
        write_report(damaged, tmp_path / "out")
    assert (tmp_path / "out" / "report.json").read_bytes() == before


def test_a_thousand_classes_fall_back_to_the_most_confused_pairs(tmp_path):
    random = np.random.default_rng(0)
    with new_store(tmp_path / "store") as store:
        made = store.register(zoo.task(store.backbone, "many", "clr", classes=1000), prober=same_logits).version
        run = store.runs / "20260101-000000-abcdef"
        run.mkdir()
        run.joinpath("settings.json").write_text('{"task": "many", "method": "clr", "data": "x", "prune": null}')
        report = {"version": made.version, "val_top1": 0.5, "test_top1": 0.5}
        run.joinpath("report.json").write_text(json.dumps(report))
        labels, predicted = random.integers(0, 1000, (2, 3000))
        told = Predictions(labels, predicted, np.ones(3000, np.float32), np.ones(3000, np.float32))
        run.joinpath("predictions-test.csv").write_text(predictions_csv(told))
        page = Page(render(gather(store), {}))
    assert not [a for a in page.named("table") if a.get("class") == "confusion"]
    assert page.text.count("of the class") == 1
    assert len(page.named("tr")) < 2 * MOST_PAIRS


# ---------------------------------------------------------------- confusion


def test_matrix_and_pairs_are_counts_of_the_predictions():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]), np.array([0, 1, 1, 1, 0, 2, 0, 0, 0])
    ones = np.ones(len(labels), np.float32)
    found = confusion_of(Predictions(labels, predicted, ones, ones), "val", 3)
    assert matrix(found, 3) == [[1, 2, 0], [1, 1, 0], [3, 0, 1]]
    assert worst_pairs(found) == [(2, 0, 3, 4), (0, 1, 2, 3), (1, 0, 1, 2)]
    assert confusion_of(Predictions(labels, predicted, ones, ones), "val", 2) is None


def test_a_runs_predictions_are_what_eval_finds(store, made):
    (run,) = [store.runs / task.run for task in gather(store).tasks if task.task == "one"]
    kept = from_csv((run / "predictions-test.csv").read_text(), "it")
    (result,) = evaluate(store, "one", str(made.parent / "shapes.npz"), device="cpu", threads=1)
    assert (kept.top1, len(kept.labels)) == (result.score.top1, result.score.images)
    assert kept.loss == pytest.approx(result.score.loss, rel=1e-6)


# ---------------------------------------------------------------- the command and its folder


def test_the_command_writes_into_the_store_and_replaces_an_old_report_whole(tmp_path, written, capsys):
    with new_store(tmp_path / "store") as store:  # without tasks: fewer figures to draw
        folder = store.path / "report"
        shutil.copytree(written, folder)
        (folder / "left over").write_text("of an older report")
        old = (folder / "index.html").read_bytes()
        assert taskpack.run(["report", str(store.path)]) == 0
        out, _ = capsys.readouterr()
        assert out.splitlines()[1] == f"report: {folder / 'index.html'}"
        assert {file.name for file in folder.iterdir()} == {"index.html", "report.json", "figures"}
        assert (folder / "index.html").read_bytes() != old
        assert len(list((folder / "figures").iterdir())) < len(list((written / "figures").iterdir()))
        assert store.verify() == []


def test_json_names_page_and_verdict(tmp_path, capsys):
    new_store(tmp_path / "store").close()
    assert taskpack.run(["report", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err.splitlines() == ["reading the store's versions (0), each digest computed anew", "drawing the figures"]
    assert told["page"] == str(tmp_path / "out" / "index.html")
    assert told["verdict"].startswith("no tasks yet")


def test_a_folder_of_something_else_is_never_replaced(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="holds something that is not a report"):
        write_report(store, tmp_path / "mine")
    (tmp_path / "mine" / "report.json").write_text('{"kind": "other"}')
    with pytest.raises(InvalidInput, match="holds something that is not a report"):
        write_report(store, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
