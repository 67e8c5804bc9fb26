"""`taskpack bench`: what it compares with what, what it leaves out, and how it ends."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import taskpack
from masks_store import Store, create, read_artifact, write_artifact
from service import cli_bench
from service.bench import BenchFailed, Found, LeftOut, Options, Row, measure
from service.bench.children import Child, answer_or_tell, serve_models
from service.bench.load import Loaded, proportional_memory
from service.bench.rows import side_by_side
from service.bench.separate import SeparateModel

from .. import zoo
from . import live, rig

pytestmark = pytest.mark.timeout(600)  # each child process imports torch: long on a machine that is busy

CPU = torch.device("cpu")
QUICK = ("--seconds", "0.05", "--threads", "1", "--clients", "2", "--batch", "1,3", "--device", "cpu")
TASKS = ("bn", "clr-a", "clr-b", "packnet", "packnet-child", "piggyback")


@pytest.fixture(scope="module")
def told(made_full_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run over a store with every method but clnp prints as JSON."""
    path = shutil.copytree(made_full_store, tmp_path_factory.mktemp("bench") / "store")
    with redirect_stdout(io.StringIO()) as out:
        assert taskpack.run(["bench", str(path), "--json", "--tasks", ",".join(TASKS), *QUICK]) == 0
    return json.loads(out.getvalue())


def without_load(store: Store, **options: Any) -> list[Found]:
    """All that is measured in this process."""
    chosen = {"seconds": 0.01, "batches": (2,), "device": "cpu", "threads": 1, **options}
    found: list[Found] = []

    def stop(what: str) -> None:
        if what.startswith("load"):
            raise _Enough

    with suppress(_Enough):
        found.extend(measure(store, Options(**chosen), stop))
    return found


class _Enough(Exception):
    """What is asked for is measured."""


# ---------------------------------------------------------------- what is measured


def test_every_comparison_is_there_once(told: dict[str, Any]) -> None:
    alone = ["the backbone alone", "bn (bn)", "clr-a (clr)", "packnet (packnet)", "piggyback (piggyback)"]
    assert [(row["measure"], row["what"], row["subject"], row["batch"]) for row in told["rows"]] == [
        *(("forward", "engine", subject, batch) for subject in alone for batch in (1, 3)),
        *(("swap", "not in a slot", "packnet (packnet)", batch) for batch in (1, 3)),
        ("mixed", "an image each", "3 tasks", 3),
        *(("load", what, "6 tasks, 2 callers", None) for what in ("requests", "p50", "p99", "memory")),
    ]
    assert told["left_out"] == []
    assert told["complete"] is True


def test_values_are_positive_and_ratios_their_quotients_the_better_way_round(told: dict[str, Any]) -> None:
    for row in told["rows"]:
        assert row["value"] > 0
        assert row["other"] > 0
        better = row["value"] / row["other"] if row["what"] == "requests" else row["other"] / row["value"]
        assert row["ratio"] == pytest.approx(better)
    assert {row["unit"] for row in told["rows"]} == {"ms", "requests/s", "MiB"}


def test_half_of_the_requests_wait_no_longer_than_ninety_nine_in_a_hundred(told: dict[str, Any]) -> None:
    waits = {row["what"]: row for row in told["rows"] if row["measure"] == "load"}
    for side in ("value", "other"):
        assert waits["p50"][side] <= waits["p99"][side]


def test_the_numbers_tell_what_they_depend_on(told: dict[str, Any]) -> None:
    expected = {
        "backbone": "tinyresnet",
        "image_size": 16,
        "device": "cpu",
        "dtype": "fp32",
        "threads": 1,
        "clients": 2,
    }
    assert expected.items() <= told.items()


def test_a_separate_model_answers_as_the_reference_in_memory_of_its_own(
    full_store: tuple[Store, dict[str, str]],
) -> None:
    store, versions = full_store
    pictures = rig.pictures(store.backbone, 2, 0)
    for name, version in versions.items():
        separate = SeparateModel(store.backbone, store.view(version), "fp32", CPU)
        rig.check(live.expected(store, version, pictures), separate(pictures), name)
    shared = {tensor.data_ptr() for tensor in store.backbone.tensors.values()}
    assert not shared & {tensor.data_ptr() for tensor in separate._body.state_dict().values()}


def test_a_smaller_network_is_measured_beside_the_whole_one(tmp_path: Path) -> None:
    bare = create("tinyresnet", image_size=16, keep=0.0, seed=0, arch_args={"width": 4})
    with Store.create(tmp_path / "store", bare, capacity="units") as store:
        founder = live.add(store, "founder", "clnp")
        live.add(store, "heir", "linear", on=founder)
        found = without_load(store)
    assert [(one.subject, one.batch) for one in found if isinstance(one, Row)] == [("founder (clnp)", 2)]
    assert [one.measure for one in found if isinstance(one, LeftOut)] == ["swap", "mixed"]


def test_a_store_without_tasks_gives_the_backbone_and_says_what_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    live.empty_store(tmp_path / "store").close()
    assert taskpack.run(["bench", str(tmp_path / "store"), *QUICK]) == 0
    said = capfd.readouterr().out
    assert said.count("the backbone alone") == 2
    assert [line.split(":")[1].strip() for line in said.splitlines() if line.startswith("left out")] == [
        "swap",
        "mixed",
        "load",
    ]


def test_a_task_whose_self_test_fails_is_left_out_and_named(full_store: tuple[Store, dict[str, str]]) -> None:
    store, _ = full_store
    sound = read_artifact(zoo.task(store.backbone, "changed", "linear", seed=5))
    claimed = sound.tensors["probe.logits"] + 1.0
    changed = write_artifact(sound.manifest, {**sound.tensors, "probe.logits": claimed})
    store.register(changed, label="stable", prober=lambda *_: claimed)
    found = without_load(store, tasks=("clr-a", "changed"))
    assert [one.subject for one in found if isinstance(one, Row)] == ["clr-a (clr)"]
    left_out = [one.why for one in found if isinstance(one, LeftOut) and one.measure == "forward"]
    assert len(left_out) == 1
    assert left_out[0].startswith("changed (linear): probe: a logit is off by")


def test_two_works_take_turns_and_the_first_turn_does_not_count() -> None:
    turns: list[str] = []
    side_by_side(lambda: turns.append("one"), lambda: turns.append("other"), 0.0)
    assert turns == ["one", "other", "other", "one"] * 2


def test_waits_are_told_by_nearest_rank() -> None:
    loaded = Loaded(waits=[n / 1000 for n in range(100, 0, -1)])
    assert loaded.wait_ms(0.5) == pytest.approx(50.0)
    assert loaded.wait_ms(0.99) == pytest.approx(99.0)


def test_memory_is_what_the_kernel_calls_proportional(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").write_text("Rss:      9000 kB\nPss:      3000 kB\nPss_Anon:    1 kB\n")
    assert proportional_memory(7, tmp_path) == 3000 * 1024
    assert proportional_memory(8, tmp_path) is None


# ---------------------------------------------------------------- how it refuses and ends


def test_tasks_that_cannot_be_measured_are_all_named(
    full_store: tuple[Store, dict[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    store, _ = full_store
    live.add(store, "draft", "linear", label="canary", seed=77)
    assert taskpack.run(["bench", str(store.path), "--tasks", "nosuch, draft,bn"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "there is no task 'nosuch'" in err
    assert "task 'draft' has no stable version" in err
    assert "'bn'" not in err


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (("--batch", "1,none"), "numbers of images"),
        (("--batch", "0"), "numbers of images"),
        (("--seconds", "0"), "--seconds"),
        (("--threads", "0"), "--threads"),
        (("--dtype", "fp8"), "--dtype"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_wrong_options_are_refused_by_name(
    wrong: tuple[str, str], word: str, made_full_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert taskpack.run(["bench", str(made_full_store), *wrong]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert word in err


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    models = Child("the separate models", os.getpid(), ours)
    answer_or_tell(serve_models, theirs, str(tmp_path / "nowhere"), [], "fp32", "cpu", 1, 1)
    with pytest.raises(BenchFailed, match=r"the separate models failed: NotFound: .*nowhere"):
        models.receive()
    theirs.close()
    with pytest.raises(BenchFailed, match="the separate models ended before"):
        models.receive()
    ours.close()


def test_ctrl_c_tells_the_rows_so_far_ends_the_server_and_is_exit_code_130(
    full_store: tuple[Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store, _ = full_store

    def interrupt(what: str) -> None:
        if "separate models start" in what:  # the server runs by then
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli_bench, "_say", interrupt)  # to strike at that very moment
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert taskpack.run(["bench", str(store.path), "--json", "--tasks", "packnet", *QUICK]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert [row["measure"] for row in printed["rows"]] == [*["forward"] * 4, *["swap"] * 2]
    assert printed["complete"] is False
    assert err.split() == ["interrupted"]
    assert multiprocessing.active_children() == []
