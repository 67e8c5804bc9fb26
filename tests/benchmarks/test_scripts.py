"""Scripts of benchmarks/ on tiny arguments: each ends in one line of JSON whose ratios are of the times beside them.

What they would find is not asked here, only that it is told whole: no figure is judged by its size.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import clnp_cut, hot_path, many_tables, many_tasks, masks, request_path, runtimes, serve_engine, swap
from benchmarks.server import stored_png
from benchmarks.targets import Target, judged, verdict
from masks_store import create, open_image, probe_faults

Main = Callable[[Sequence[str]], None]
TINY = "--arch tinyresnet --size 16 --batch 2 --rounds 2"


@pytest.fixture
def summary(capsys: pytest.CaptureFixture[str]) -> Callable[[Main, str], Any]:
    """Runs a script; what its last line says."""

    def run(main: Main, flags: str) -> Any:
        main(flags.split())
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def is_told(summary: Any, benchmark: str) -> None:
    """What every summary has."""
    assert summary["benchmark"] == benchmark
    assert (summary["workers"], summary["threads"]) == (1, 1)
    assert summary["versions"]
    assert "cores" in summary["machine"]


def is_judged(figure: Any, *, at_most: bool = False) -> None:
    """A figure with a target says whether that is met; one without says nothing."""
    value, target = figure["value"], figure["target"]
    met = None if target is None else value <= target if at_most else value >= target
    assert figure["met"] == met


def test_serve_engine_tells_the_price_of_mixing_with_and_without_the_c_functions(
    summary: Callable[[Main, str], Any],
) -> None:
    found = summary(serve_engine.main, f"{TINY} --dtype fp32")
    is_told(found, "serve_engine")
    (row,) = found["rows"]
    assert set(row["cpu_ms"]) == set(serve_engine.CONTESTANTS)
    assert row["x_eager"]["eager"] == 1.0
    for name, ms in row["cpu_ms"].items():
        assert row["x_eager"][name] == pytest.approx(row["cpu_ms"]["eager"] / ms, rel=0.01)
    targets = {"mixed": 0.95, "torch mixed": 0.85, "torch mixed / torch clr": None}
    assert {name: figure["target"] for name, figure in row["mixed"].items()} == targets
    for figure in row["mixed"].values():
        is_judged(figure)


def test_serve_engine_tells_no_price_of_what_it_left_out(summary: Callable[[Main, str], Any]) -> None:
    found = summary(serve_engine.main, f"{TINY} --dtype fp32 --only eager hot")
    (row,) = found["rows"]
    assert set(row["cpu_ms"]) == {"eager", "hot"}
    assert row["mixed"] == {}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"clr": [9.0, 8.0, 7.0], "clr folded": [6.0, 8.0, 8.0], "clr mixed": [10.0, 8.0, 8.0]}, {"mixed": 0.9}),
        ({"clr": [4.0], "clr folded": [5.0], "torch clr": [6.0], "torch mixed": [8.0]},
         {"torch mixed": 0.5, "torch mixed / torch clr": 0.75}),
    ],
)  # fmt: skip
def test_mixing_stands_beside_the_fastest_way_of_one_task_round_by_round(
    times: dict[str, list[float]], expected: dict[str, float]
) -> None:
    assert {name: ratio for name, (ratio, _) in serve_engine.mixed(times, 8).items()} == expected


def test_swap_sets_a_cold_view_beside_the_forward_and_the_copy_of_the_same_round(
    summary: Callable[[Main, str], Any],
) -> None:
    found = summary(swap.main, "--networks tinyresnet:16 --dtype fp32 bf16 --rounds 3")
    is_told(found, "swap")
    assert [row["dtype"] for row in found["rows"]] == ["fp32", "bf16"]
    for row in found["rows"]:
        assert {len(times) for times in row["cpu_ms"].values()} == {3}
        assert list(row["ratios"]) == ["swap / forward", "swap / copy", "hot / forward"]
        for name, figure in row["ratios"].items():
            part, whole = (row["cpu_ms"][one] for one in name.split(" / "))
            quotient = statistics.median(a / b for a, b in zip(part, whole, strict=True))
            assert figure["value"] == pytest.approx(quotient, rel=0.01)
            is_judged(figure, at_most=True)


def test_a_swap_is_judged_by_the_forward_for_a_resnet50_at_224_pixels_and_by_the_copy_elsewhere() -> None:
    taken = {"forward": [100.0], "swap": [9.0], "copy": [6.0], "hot": [0.01]}
    at_224, elsewhere = (swap.ratios(taken, of_a_forward=which) for which in (True, False))
    bounds = [[target and target.bound for _, target in found.values()] for found in (at_224, elsewhere)]
    assert bounds == [[0.10, None, 0.001], [None, 1.2, 0.001]]


def test_clnp_cut_sets_half_the_units_beside_the_faster_of_the_whole_network(
    summary: Callable[[Main, str], Any],
) -> None:
    found = summary(clnp_cut.main, TINY)
    is_told(found, "clnp_cut")
    (row,) = found["rows"]
    quotient = min(row["ms"]["whole"], row["ms"]["eager"]) / row["ms"]["half"]
    assert row["ratio"]["value"] == pytest.approx(quotient, rel=0.01)
    assert row["ratio"]["target"] == 2.5
    is_judged(row["ratio"])


def test_hot_path_sorts_a_forward_into_rows(summary: Callable[[Main, str], Any]) -> None:
    found = summary(hot_path.main, "--arch tinyresnet --size 16 --dtype fp32 --forwards 2 --rounds 2")
    is_told(found, "hot_path")
    (row,) = found["rows"]
    assert list(row["eager"]) == list(row["by step"]) == list(hot_path.ROWS)
    assert list(row["taskpack"]) == ["in one call"]
    assert row["by step"]["convolutions"] > 0


def test_masks_tells_size_and_speed_of_every_share(summary: Callable[[Main, str], Any]) -> None:
    found = summary(masks.main, "--bits 8000 --arch tinyresnet --rounds 1")
    is_told(found, "masks")
    assert list(found["rows"]) == [str(share) for share in masks.SHARES]
    dense = [row["ratio"] for share, row in found["rows"].items() if float(share) >= 0.1]
    assert found["worst_ratio_from_0.1"] == max(dense)
    for sizes in found["claims"].values():
        assert sizes["ratio"] == pytest.approx(sizes["coded_mb"] / sizes["bound_mb"], rel=0.01)
        assert sizes["coded_mb"] < sizes["separate_bitmaps_mb"]


def test_many_tasks_tells_and_judges_every_stage(tmp_path: Path) -> None:
    backbone, rows = create("tinyresnet", image_size=16, keep=1.0, seed=0), list[dict[str, Any]]()
    for count in (1, 3):  # as `stage`, but in this process
        made = many_tasks.grow(tmp_path / "store", backbone, count)
        served = asyncio.run(many_tasks.serve(tmp_path / "store", time.time(), requests=4, rounds=1))
        rows.append({**made, **served, "tasks": count, "first_start": {"ready_s": 1.0, "probed_s": 1.0}})
    found = json.loads(json.dumps(many_tasks.summary_of(rows, many_tasks.parse(["--size", "16"]))))
    is_told(found, "many_tasks")
    assert [row["registered"] for row in found["rows"]] == [1, 2]
    ratios = [f"3 tasks: {heat}: {load}, x one task" for heat in ("warm", "cold") for load in ("uniform", "zipf")]
    memory = "3 tasks: memory a task, all asked, x its artifact"
    ready = [f"{count} tasks: ready, all probed before, s beyond torch" for count in (1, 3)]
    assert set(found["figures"]) == {*ratios, memory, *ready}
    for name, figure in found["figures"].items():
        is_judged(figure, at_most=name in (memory, *ready))
    for name in ratios:
        heat, load = name.removeprefix("3 tasks: ").removesuffix(", x one task").split(": ")
        assert found["figures"][name]["value"] == found["rows"][1][heat][load]
    more = (rows[1]["rss_asked"] - rows[0]["rss_asked"]) / 2 / rows[1]["artifact_bytes"]
    assert found["figures"][memory]["value"] == pytest.approx(more, rel=0.01, abs=1e-3)
    assert many_tables.table(rows).splitlines()[0].split() == ["tasks", "1", "3"]
    assert len(many_tables.verdicts(rows).splitlines()) == len(found["figures"])


def test_many_tasks_asks_less_of_more_than_a_thousand() -> None:
    ratios = {"uniform": 1.0, "zipf": 1.0}
    row = {"ready_s": 1.0, "rss_asked": 0, "artifact_bytes": 1, "warm": ratios, "cold": ratios}
    found = many_tables.figures([{**row, "tasks": count} for count in (1, 1000, 5000)])
    warm = {name: target.bound for name, (_, target) in found.items() if "warm: uniform" in name}
    assert list(warm.values()) == [0.95, 0.9]


@pytest.mark.parametrize("name", ["taskpack", "eager"])
def test_runtimes_contestants_answer_as_torch_does(name: str) -> None:
    setting = runtimes.Setting("tinyresnet", "fp32", batch=2, size=16, threads=1)
    found = runtimes.prepared(name, setting, Path(), calls=1)()
    with torch.inference_mode():
        expected = runtimes.task_alone(setting)(runtimes.inputs_of(setting))
    assert probe_faults(expected, torch.tensor(found["logits"])) == []
    assert json.loads(json.dumps(found)).keys() == {"ms", "logits"}


def test_a_stored_png_is_its_pixels_and_little_more() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    file = stored_png(picture)
    assert np.array_equal(np.asarray(open_image(file)), picture)
    assert picture.nbytes < len(file) < picture.nbytes + 40 + 100  # a byte a row, and chunks


def test_samples_of_the_request_path_belong_to_the_innermost_function_with_a_phase() -> None:
    def stack(*files: str) -> str:
        return ";".join(f"f ({file}:1)" for file in files)

    outer = ("uvicorn/server.py", "service/edge/middleware.py")
    lines = [
        f"{stack(*outer, 'service/edge/bodies.py')} 3",
        f"{stack(*outer, 'service/edge/bodies.py', 'starlette/requests.py')} 1",
        f"{stack('threading.py', 'service/images.py', 'PIL/Image.py', '/usr/lib/python3.11/contextlib.py')} 5",
        f"{stack('threading.py', 'service/workers.py', 'service/engine/engine.py')} 20",
        f"{stack('threading.py')} 2",
        "",
    ]
    found = {phase: count for phase, count in request_path.sorted_by_phase(lines).items() if count}
    assert found == {
        "reading the body": 3,
        "decoding": 5,
        "engine": 20,
        "the rest of the framework": 1,
        "not sorted": 2,
    }


@pytest.mark.parametrize(("value", "at_most", "met"), [(0.5, False, True), (0.49, False, False), (0.51, True, False)])
def test_a_figure_is_judged_before_it_is_rounded(value: float, at_most: bool, met: bool) -> None:
    target = Target(0.5, at_most)
    assert judged(value, target)["met"] is met
    assert verdict(value, target).endswith("met" if met else "MISSED")
    assert Target(0.95).met(0.94999) is False
    assert verdict(value, None) == "no target"
