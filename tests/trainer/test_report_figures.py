"""The figures of `taskpack report`: drawn for few tasks and for many, each task with a look of its own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from masks_store import Store, Version
from tests import zoo
from tests.masks_store.stores import same_logits
from trainer.report import write_report
from trainer.report.drawing import THEMES, Theme, looks, to_png
from trainer.results import Row, as_csv

from .rig import new_store

FIGURES = ("accuracy", "capacity", "owners", "sharing", "bytes", "curves", "pruning")


def row(phase: str, epoch: int, top1: float) -> Row:
    trained = (1.0, top1 / 2) if epoch else (None, None)
    return Row(phase, epoch, 0.01, *trained, 1.0, top1, best=True, seconds=1.0, images_per_second=1.0)


def write_run(store: Store, version: Version, number: int) -> None:
    """A finished run of a version, as `train` leaves it, without predictions."""
    folder = store.runs / f"20260101-{number:06d}-abcdef"
    folder.mkdir(parents=True)
    settings = {"task": version.task, "method": version.method, "data": "sha256:x", "prune": 0.75}
    report = {"version": version.version, "prune": 0.75, "claimed": 1, "val_top1": 0.5, "test_top1": 0.5}
    rows = [row("train", epoch, 0.5 + number / 100) for epoch in (1, 2, 3)]
    rows += [row("retrain", 0, 0.3), row("retrain", 1, 0.45 + number / 100)]
    folder.joinpath("settings.json").write_text(json.dumps(settings))
    folder.joinpath("report.json").write_text(json.dumps(report))
    folder.joinpath("results.csv").write_text(as_csv(rows))


def packed(path: Path, count: int) -> Store:
    """A store of so many packnet tasks, each with weights of its own and a run."""
    store = new_store(path)
    for number in range(count):
        taken = list(store.claims().values())
        data = zoo.task(store.backbone, f"task-{number}", taken=taken, seed=number, share=1 / (count + 1 - number))
        write_run(store, store.register(data, prober=same_logits).version, number)
    return store


@pytest.mark.parametrize("count", [2, 40])
def test_every_figure_is_drawn_for_few_tasks_and_for_many(tmp_path, count):
    with packed(tmp_path / "store", count) as store:
        written = write_report(store, tmp_path / "out")
    assert len(written.facts.owners) == len(written.facts.tasks) == count
    files = {file.name: file for file in (tmp_path / "out" / "figures").iterdir()}
    assert files.keys() == {f"{name}-{theme.name}.png" for name in FIGURES for theme in THEMES}
    for name, file in files.items():
        with Image.open(file) as picture:
            assert picture.format == "PNG", name
        assert len(colours(file)) > 10, f"{name} is empty"
    drawn = colours(files["owners-light.png"])
    assert set(THEMES[0].cycle[:count]) <= drawn


def colours(file: Path) -> set[str]:
    """All colours of a picture, as #RRGGBB."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.uint32)  # [height, width, 3]
    return {f"#{number:06X}" for number in np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32))}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_forty_tasks_have_forty_looks(theme):
    """Each look drawn by itself: no two give the same picture."""

    def swatch(number: int) -> bytes:
        def draw(theme: Theme) -> Figure:
            figure = Figure(figsize=(0.5, 0.5))
            figure.add_subplot().barh([0], [1], edgecolor=theme.paper, **looks(40)[number])
            return figure

        return Image.open(io.BytesIO(to_png(draw, theme))).convert("RGB").tobytes()

    assert len({swatch(number) for number in range(40)}) == 40


def test_looks_differ_for_any_number_of_owners():
    for count in (1, 2, 36, 37, 40, 48, 49, 200):
        found = looks(count)
        assert len({(str(look["color"]), look.get("hatch", "")) for look in found}) == len(found) == count
    assert all("hatch" in look for look in looks(48))
