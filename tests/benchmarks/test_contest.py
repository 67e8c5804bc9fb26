"""Experiments that train several methods on several sets, cut down to seconds."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.learning import (
    cifar_then_tiny,
    contest,
    eight_domains,
    exhaustion,
    few_images,
    findings,
    large_task,
    many_small_tasks,
    sizes,
    unknown_task,
)
from benchmarks.learning.contest import mean_difference, run_variant
from benchmarks.learning.joint import mixed_batches
from benchmarks.learning.ledger import Ledger
from benchmarks.learning.photographs import sources_of
from benchmarks.learning.subsets import classes_of, per_class_of, subset
from benchmarks.learning.variants import VARIANTS, Protocol, settings_of
from masks_store import Preprocess, Store
from trainer import init, train
from trainer.data import load_source

SIDE = 16


def _jpeg(digit, inverted=False):
    pixels = (digit * 15).astype(np.uint8)
    picture = Image.fromarray(255 - pixels if inverted else pixels).resize((SIDE, SIDE)).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sets of digits: two .zip, one of them dark on light, and three .npz of the same pictures; ten classes each."""
    folder = tmp_path_factory.mktemp("sets")
    digits = load_digits()
    pictures = {label: digits.images[digits.target == label] for label in range(10)}
    for name, inverted in (("flowers89", False), ("clothing", True)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for label, own in pictures.items():
                for i, digit in enumerate(own[:24]):
                    split = "train" if i < 16 else "test"
                    archive.writestr(f"{name}/{split}/{label:02d}_digit/{i:03d}.jpg", _jpeg(digit, inverted))
    grey = np.stack(
        [np.asarray(Image.fromarray((d * 15).astype(np.uint8)).resize((SIDE, SIDE))) for d in digits.images]
    )
    np.savez(
        folder / "omniglot28.npz",
        train_images=grey[:300, :, :, None],
        train_labels=digits.target[:300].astype(np.int64),
        test_images=grey[300:400, :, :, None],
        test_labels=digits.target[300:400].astype(np.int64),
        class_names=np.array([f"sign{i}" for i in range(10)]),
    )
    for other in ("cifar10", "tiny_imagenet32_100"):
        (folder / f"{other}.npz").write_bytes((folder / "omniglot28.npz").read_bytes())
    return folder


def test_a_subset_of_a_zip_holds_the_asked_classes_whole_test_split_and_few_training_pictures(data, tmp_path):
    classes = ["03_digit", "07_digit"]
    smaller = subset(data / "flowers89.zip", tmp_path, classes, per_class=5)
    assert classes_of(smaller) == classes
    assert subset(data / "flowers89.zip", tmp_path, classes, per_class=5) == smaller
    assert len({smaller, *(subset(data / "flowers89.zip", tmp_path, classes, per_class=n) for n in (6, None))}) == 3
    with zipfile.ZipFile(smaller) as few, zipfile.ZipFile(data / "flowers89.zip") as whole:
        names = few.namelist()
        assert [sum(f"/{split}/" in name for name in names) for split in ("train", "test")] == [10, 16]
        assert all(few.read(name) == whole.read(name) for name in names)


def test_a_set_is_cut_to_a_number_of_pictures_at_the_cost_of_its_large_classes(data, tmp_path):
    labels = np.repeat([0, 1, 2], [3, 10, 20])
    images = np.arange(33, dtype=np.uint8).reshape(-1, 1, 1, 1)
    np.savez(tmp_path / "uneven.npz", train_images=images, train_labels=labels, class_names=np.array(["a", "b", "c"]))
    cuts = {pictures: per_class_of(tmp_path / "uneven.npz", pictures) for pictures in (3, 13, 14, 15, 24, 32, 33)}
    # 3 + 5 + 5 of at most 5 a class, 3 + 6 + 6 of at most 6, 3 + 10 + 11 and 3 + 10 + 19 where only one class is cut
    assert cuts == {3: 1, 13: 5, 14: 5, 15: 6, 24: 11, 32: 19, 33: None}
    assert per_class_of(data / "flowers89.zip", 45) == 4, "a .zip of 16 training pictures for each of ten classes"
    assert sources_of(data, ["flowers89"], tmp_path, None, 160) == {"flowers89": data / "flowers89.zip"}
    few = sources_of(data, ["flowers89"], tmp_path, None, 45)
    assert few == {"flowers89": subset(data / "flowers89.zip", tmp_path, per_class=4)}
    assert sources_of(data, ["flowers89"], tmp_path, 2, 45) == sources_of(data, ["flowers89"], tmp_path, 2)
    with pytest.raises(SystemExit, match="10 classes: 9 training pictures are too few"):
        per_class_of(data / "flowers89.zip", 9)


def test_a_subset_of_an_npz_numbers_its_classes_anew_and_keeps_their_pictures(data, tmp_path):
    smaller = subset(data / "omniglot28.npz", tmp_path, ["sign8", "sign2"], per_class=4)
    with np.load(smaller) as few, np.load(data / "omniglot28.npz") as whole:
        assert few["class_names"].tolist() == ["sign8", "sign2"]
        assert few["train_labels"].tolist() == [0] * 4 + [1] * 4
        assert len(few["test_labels"]) == np.isin(whole["test_labels"], (2, 8)).sum()
        eights = whole["train_images"][whole["train_labels"] == 8]
        assert all((eights == image).all(axis=(1, 2, 3)).any() for image in few["train_images"][:4])


def test_a_subset_of_jpeg_bytes_cuts_each_picture_out_whole(tmp_path):
    scans = [b"zero", b"one!!", b"", b"three"]
    np.savez(
        tmp_path / "whole.npz",
        class_names=np.array(["a", "b"]),
        jpeg_header=np.frombuffer(b"head", np.uint8),
        train_labels=np.array([0, 1, 0, 1]),
        train_scans=np.frombuffer(b"".join(scans), np.uint8),
        train_offsets=np.cumsum([0, *map(len, scans)]),
    )
    with np.load(subset(tmp_path / "whole.npz", tmp_path, ["b"])) as few:
        ends = few["train_offsets"]
        found = [few["train_scans"].tobytes()[a:b] for a, b in itertools.pairwise(ends)]
        assert found == [b"one!!", b"three"]
        assert few["jpeg_header"].tobytes() == b"head"


def test_a_training_picture_that_stands_in_the_test_split_too_is_left_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "twins.zip", "w") as archive:
        for name, data in (("train/a/1", b"one"), ("train/a/2", b"two"), ("test/a/3", b"two"), ("test/a/4", b"two")):
            archive.writestr(f"twins/{name}.jpg", data)
    with zipfile.ZipFile(subset(tmp_path / "twins.zip", tmp_path / "few")) as few:
        assert few.namelist() == ["twins/test/a/3.jpg", "twins/test/a/4.jpg", "twins/train/a/1.jpg"]
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    labels = np.zeros(4, np.int64)
    np.savez(
        tmp_path / "twins.npz",
        class_names=np.array(["a"]),
        train_images=images,
        train_labels=labels,
        test_images=images[2:3],
        test_labels=labels[:1],
    )
    with np.load(subset(tmp_path / "twins.npz", tmp_path / "few")) as few:
        assert few["train_images"].ravel().tolist() == [0, 1, 3]
        assert few["test_images"].ravel().tolist() == [2]


def test_a_subset_without_its_test_split_has_the_training_pictures_that_it_has_with_it(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "twins.zip", "w") as archive:
        for name, picture in (
            ("train/a/1", b"one"),
            ("train/a/2", b"two"),
            ("test/a/3", b"two"),
            ("validation/a/4", b"four"),
        ):
            archive.writestr(f"twins/{name}.jpg", picture)
    training = ["twins/train/a/1.jpg", "twins/validation/a/4.jpg"]
    for test, names in ((True, ["twins/test/a/3.jpg", *training]), (False, training)):
        with zipfile.ZipFile(subset(tmp_path / "twins.zip", tmp_path / "few", test=test)) as few:
            assert sorted(few.namelist()) == names
    signs = data / "omniglot28.npz"
    with np.load(subset(signs, tmp_path, per_class=4, test=False)) as without, np.load(
        subset(signs, tmp_path, per_class=4)
    ) as whole:  # fmt: skip
        assert set(whole.files) - set(without.files) == {"test_images", "test_labels"}
        assert np.array_equal(without["train_images"], whole["train_images"])


def test_a_ledger_is_of_its_setting_before_its_first_step(tmp_path):
    Ledger(tmp_path / "work", {"size": 16})
    Ledger(tmp_path / "work", {"size": 16})
    with pytest.raises(SystemExit, match="holds a run with another size; give --work another folder"):
        Ledger(tmp_path / "work", {"size": 32})


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_shows_the_pictures_as_often_as_the_others_at_a_rate_of_its_optimiser(name, data, tmp_path):
    variant = VARIANTS[name]
    protocol = Protocol("tinyresnet", None, SIDE, 15)
    settings = settings_of(variant, protocol, 8, variant.rates[1], 0)
    store = init(tmp_path / "store", "tinyresnet", image_size=SIDE, keep=variant.keep, capacity=variant.capacity)
    with store:
        report = train(store, "digits", str(data / "flowers89.zip"), **vars(replace(settings, dry_run=True)))
    phases = [phase for phase in report.plan["phases"] if phase["fold"] is None]
    if name == "packnet auto":  # its trials come on top
        phases = [phase for phase in phases if phase["start"] is None or phase is phases[-1]]
    assert sum(phase["epochs"] for phase in phases) == protocol.epochs
    adam = phases[0]["optimizer"] != "sgd"
    assert variant.first or (variant.rates[1] < 0.005) == adam, "a rate of SGD is some times one of Adam"


def test_a_packnet_task_that_finds_nothing_free_trains_a_head_and_says_so(data, tmp_path):
    sources = {"first": data / "flowers89.zip", "second": data / "omniglot28.npz"}
    protocol = Protocol("tinyresnet", None, SIDE, 1, keep=0.0)
    first, second = run_variant("packnet equal", sources, protocol, 0.01, 0, tmp_path, tasks=1)
    assert (first["free"], first.get("starved"), second["starved"], second["claimed"]) == (0, None, True, 0)
    ledger = tmp_path / "ledger.json"
    kept = json.loads(ledger.read_text())
    del kept["found"]["packnet second"]
    ledger.write_text(json.dumps(kept))  # as if killed after the run and before noting it
    assert run_variant("packnet equal", sources, protocol, 0.01, 0, tmp_path, tasks=1)[1]["starved"] is True


def test_a_run_of_piggyback_on_the_first_is_not_taken_for_one_at_another_learning_rate(data, tmp_path):
    sources, protocol = {"first": data / "flowers89.zip"}, Protocol("tinyresnet", None, SIDE, 1, per_class=4)
    run_variant("piggyback on the first", sources, protocol, 3e-4, 0, tmp_path)
    with pytest.raises(SystemExit, match=r"another later\.lr; give --work another folder"):
        run_variant("piggyback on the first", sources, protocol, 3e-3, 0, tmp_path)


def test_the_mean_difference_is_that_of_the_tasks_and_its_interval_spreads_with_few_pictures():
    def result(hits):
        return {"hits": hits}

    ours, theirs = [result("11110000"), result("10")], [result("11000000"), result("00")]
    mean, low, high = mean_difference(ours, theirs)
    assert mean == pytest.approx((2 / 8 + 1 / 2) / 2)
    assert low < mean < high
    assert mean_difference(ours, ours) == (0.0, 0.0, 0.0)
    many = mean_difference([result("1100" * 500)], [result("1000" * 500)])
    assert many[2] - many[1] < 0.05 < high - low


def test_small_tasks_of_several_sets_go_into_one_store_and_change_nothing(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "2", "--sets", "flowers89", "omniglot28"]
    found = many_small_tasks.main([*flags, "--tasks", "2"])
    tasks = found["variants"]["clr"]["seeds"][0]["tasks"]
    assert [one["task"] for one in tasks] == [
        "flowers89-01",
        "omniglot28-01",
        "flowers89-02",
        "omniglot28-02",
    ]
    assert [one["compared"] for one in tasks] == [0, 1, 2, 3]
    assert not any(one["changed_bits"] for one in tasks)
    assert [one["images"]["test"] for one in tasks[::2]] == [40, 40], "eight of each of five classes"
    assert json.loads((tmp_path / "many_small_tasks.json").read_text()) == found
    assert "| all | 4 |" in capsys.readouterr().out
    rows = sizes.main([str(tmp_path / "work" / "clr-0" / "store"), "--most", "3"])
    assert [row["last"] for row in rows] == ["flowers89-01", "omniglot28-01", "flowers89-02"]
    grown = [after["shared"] - before["shared"] for before, after in itertools.pairwise(rows)]
    assert grown == [one["bytes"] for one in tasks[1:3]]
    assert rows[2]["separate"] == 3 * rows[0]["separate"], "five classes each"
    (noted,) = sizes.main(["--out", str(tmp_path)])
    assert (noted["experiment"], noted["variant"], noted["tasks"]) == ("many_small_tasks", "clr", 4)
    assert noted["shared"] == rows[2]["shared"] + tasks[3]["bytes"]


@pytest.mark.slow
def test_eight_domains_compares_variants_and_order_matters_to_packnet_alone(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "2", "--sets", "flowers89", "omniglot28"]
    flags += ["--variants", "linear", "packnet equal", "--per-class", "4"]
    found = eight_domains.main(flags)
    turned = eight_domains.main([*flags, "--reverse"])
    assert turned["same_versions"] == {"linear": True, "packnet equal": False}
    shown = {
        name: {task["presentations"] for task in mine["seeds"][0]["tasks"]} for name, mine in found["variants"].items()
    }
    assert shown["linear"] == shown["packnet equal"]
    printed = capsys.readouterr().out.splitlines()
    row = next(line for line in printed if line.startswith("| linear |"))
    tasks = found["variants"]["linear"]["seeds"][0]["tasks"]
    assert row.split(" | ")[1:3] == [f"{100 * task['test_top1']:.1f}" for task in tasks]
    of_task = next(line for line in printed if line.startswith("| omniglot28 | linear |")).split(" | ")
    assert of_task[4:6] == [f"{100 * tasks[1][name]:.1f}" for name in ("macro_f1", "calibration_error")]
    assert of_task[7].startswith(f"{tasks[1]['milliseconds']['own']:.2f} (")


def test_eight_domains_tells_what_a_method_gives_up_against_fine_tuning(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "1", "--sets", "omniglot28"]
    found = eight_domains.main([*flags, "--variants", "finetune", "linear"])
    tops = [mine["seeds"][0]["tasks"][0]["test_top1"] for mine in found["variants"].values()]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| linear |"))
    assert f" {100 * (tops[1] - tops[0]):+.1f} (" in row
    taken = [mine["seeds"][0]["tasks"][0]["milliseconds"] for mine in found["variants"].values()]
    assert min(time for both in taken for time in both.values()) > 0
    assert f"| {taken[1]['own']:.2f} ({taken[1]['own'] / taken[1]['plain']:.2f}) |" in row
    mean, low, high = found["differences"]["linear - finetune"]["omniglot28"]
    assert mean == pytest.approx(tops[1] - tops[0])
    assert low <= mean <= high


def test_what_another_machine_found_the_same_way_is_taken_over_and_anything_else_run(data, tmp_path):
    common = ["--data", str(data), "--out", str(tmp_path), "--arch", "tinyresnet", "--weights", "none"]
    common += ["--size", str(SIDE), "--sets", "omniglot28"]
    here, there = ["--work", str(tmp_path / "here")], ["--work", str(tmp_path / "there")]
    first = eight_domains.main([*common, *here, "--epochs", "1", "--variants", "linear"])
    path = tmp_path / "eight_domains.json"
    noted = json.loads(path.read_text())
    noted["variants"]["linear"]["seeds"][0]["ran"] = "another machine"
    assert noted["variants"]["linear"]["seeds"][0]["setting"]["settings"].pop("patience") is None, "a younger choice"
    path.write_text(json.dumps(noted))
    both = eight_domains.main([*common, *there, "--epochs", "1", "--variants", "linear", "bn"])
    assert both["variants"]["linear"] == noted["variants"]["linear"]
    assert not (tmp_path / "there" / "linear-0").exists(), "trained once"
    alone = eight_domains.main([*common, *there, "--epochs", "1", "--variants", "bn"])
    assert alone["variants"] == both["variants"], "what was not asked for stays"
    kept = path.read_text()
    for other in (["--epochs", "2"], ["--epochs", "1", "--precision", "bf16-mixed"]):
        with pytest.raises(SystemExit, match=f"run with another .*{other[-2].strip('-')}.*--out another folder"):
            eight_domains.main([*common, *there, *other, "--variants", "linear"])
    assert path.read_text() == kept
    more = eight_domains.main([*common, *there, "--epochs", "1", "--variants", "bn", "finetune", "--seeds", "1", "0"])
    assert [run["seed"] for run in more["variants"]["bn"]["seeds"]] == [0, 1]
    assert "all else is of the first seed alone" in eight_domains.shown(more)
    assert "all else is of the first seed alone" not in eight_domains.shown(both)
    assert more["variants"]["bn"]["seeds"][0] == both["variants"]["bn"]["seeds"][0]
    timed = more["variants"]["bn"]["seeds"][1]["tasks"]
    assert all("milliseconds" in task for task in timed), "each, where it was trained"
    tops = [{run["seed"]: run["tasks"] for run in more["variants"][name]["seeds"]} for name in ("linear", "finetune")]
    paired = tops[0][0][0]["test_top1"] - tops[1][0][0]["test_top1"]
    assert more["differences"]["linear - finetune"]["mean"][0] == pytest.approx(paired), "both of seed 0"
    assert first["variants"]["linear"]["seeds"][0]["tasks"] == both["variants"]["linear"]["seeds"][0]["tasks"]


def test_a_task_that_was_cut_otherwise_for_another_variant_is_not_compared_with_it():
    def run(*counts):
        images = [dict(zip(("train", "val", "test"), own, strict=True)) for own in counts]
        return {"seeds": [{"tasks": [{"task": f"{place}", "images": own} for place, own in enumerate(images)]}]}

    contest.require_same_pictures({"clr": run((8, 2, 3), (5, 1, 1)), "bn": run((8, 2, 3))})
    with pytest.raises(SystemExit, match=r"^1 has .*'train': 5.* for 'clr' and .*'train': 4.* for 'bn': "):
        contest.require_same_pictures({"clr": run((8, 2, 3), (5, 1, 1)), "bn": run((8, 2, 3), (4, 2, 1))})


def test_a_stopped_result_is_not_taken_for_a_whole_one(flags, tmp_path):
    found = findings.main([*flags, "--variants", "linear pruned"])["variants"]["linear pruned"]["seeds"]
    path = tmp_path / "findings.json"
    noted = json.loads(path.read_text())
    noted["variants"]["linear pruned"]["seeds"][0] |= {"whole": False, "tasks": []}
    path.write_text(json.dumps(noted))
    again = findings.main([*flags, "--variants", "linear pruned"])["variants"]["linear pruned"]["seeds"]
    assert again[0]["tasks"] == found[0]["tasks"]


def test_a_learning_rate_is_chosen_on_validation_once_and_kept(data, tmp_path):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "1", "--sets", "flowers89", "--choose"]
    found = eight_domains.main([*flags, "--variants", "linear"])
    means = {float(rate): tops["flowers89"] for rate, tops in found["choices"]["linear"]["tried"].items()}
    assert len(means) == 3
    assert means[found["variants"]["linear"]["lr"]] == max(means.values())
    rates = tmp_path / "work" / "rates" / "linear"
    tried = [json.loads(path.read_text())["found"]["linear flowers89"] for path in rates.glob("*/ledger.json")]
    assert [run["test_top1"] for run in tried] == [None] * 3, "nothing that was tried for it saw the test split"
    ledger = tmp_path / "work" / "rates" / "linear" / "ledger.json"
    kept = ledger.stat().st_mtime_ns
    again = eight_domains.main([*flags, "--variants", "linear"])["variants"]["linear"]
    assert again["seeds"] == found["variants"]["linear"]["seeds"]
    assert ledger.stat().st_mtime_ns == kept
    elsewhere = ["--work", str(tmp_path / "another machine"), *flags[:2], *flags[4:]]
    assert eight_domains.main([*elsewhere, "--variants", "linear"])["choices"] == found["choices"]
    assert not (tmp_path / "another machine" / "rates").exists(), "chosen once"


def test_a_choice_among_other_learning_rates_is_not_taken_over(data, tmp_path, monkeypatch):
    sources = sources_of(data, ["flowers89"], tmp_path / "sources", None, test=False)
    protocol = Protocol("tinyresnet", None, SIDE, 1)
    chosen = eight_domains.rate_of("linear", sources, protocol, tmp_path / "work", 8, {})
    assert eight_domains.rate_of("linear", sources, protocol, tmp_path / "other", 8, {"linear": chosen}) == chosen
    other = replace(VARIANTS["linear"], rates=(1e-5, 1e-4, 1e-3))
    monkeypatch.setattr(eight_domains, "VARIANTS", {**VARIANTS, "linear": other})
    monkeypatch.setattr(contest, "VARIANTS", {**VARIANTS, "linear": other})
    with pytest.raises(SystemExit, match="another rates"):
        eight_domains.rate_of("linear", sources, protocol, tmp_path / "work", 8, {"linear": chosen})
    again = eight_domains.rate_of("linear", sources, protocol, tmp_path / "other", 8, {"linear": chosen})
    assert again["tried"].keys() == {"1e-05", "0.0001", "0.001"}


def test_learning_rates_are_taken_from_a_result_that_chose_them(data, tmp_path):
    chosen = tmp_path / "eight_domains.json"
    chosen.write_text(json.dumps({"choices": {"packnet equal": {"rate": 0.03}, "bn": {"rate": 0.001}}}))
    flags = [
        "--data",
        str(data),
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
        "--rates",
        str(chosen),
    ]
    flags += ["--arch", "tinyresnet", "--weights", "none", "--size", str(SIDE), "--epochs", "1", "--sets", "flowers89"]
    with pytest.raises(SystemExit, match="no learning rate for clr, linear; "):
        few_images.main([*flags, "--variants", "linear", "bn", "clr"])
    with pytest.raises(SystemExit):
        eight_domains.main([*flags, "--variants", "bn", "--choose"])
    found = eight_domains.main([*flags, "--variants", "packnet 75", "bn"])["variants"]
    assert {name: variant["lr"] for name, variant in found.items()} == {"packnet 75": 0.03, "bn": 0.001}
    (run,) = found["packnet 75"]["seeds"]
    assert run["setting"]["settings"]["lr"] == 0.03


def test_few_images_trains_with_few_and_with_all_and_measures_on_the_same_pictures(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "1", "--sets", "flowers89", "--variants", "bn"]
    found = few_images.main(flags)
    images = {
        count: part["sets"]["flowers89"]["variants"]["bn"]["seeds"][0]["tasks"][0]["images"]
        for count, part in found["counts"].items()
    }
    assert [own["train"] + own["val"] for own in images.values()] == [50, 160, 160]
    assert {own["test"] for own in images.values()} == {80}
    assert json.loads((tmp_path / "few_images.json").read_text()) == found
    assert "| bn |" in capsys.readouterr().out
    stopped = json.loads((tmp_path / "few_images.json").read_text())
    del stopped["counts"]["20"]["sets"]["flowers89"]
    (tmp_path / "few_images.json").write_text(json.dumps(stopped))
    elsewhere = ["--work", str(tmp_path / "another machine"), *flags[:2], *flags[4:-1]]
    both = few_images.main([*elsewhere, "linear", "--frozen"])["counts"]
    assert {count: part["frozen"]["setting"]["protocol"]["per_class"] for count, part in both.items()} == {
        "5": 5, "20": 20, "all": None
    }  # fmt: skip
    held = {count: sorted(part["sets"]["flowers89"]["variants"]) for count, part in both.items()}
    assert held == {"5": ["bn", "linear"], "20": ["linear"], "all": ["bn", "linear"]}
    told = {line.split("|")[1].strip(): line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert told["bn"][3].strip() == "", "there is none yet"
    means = [f"{100 * part['frozen']['nearest class mean']['flowers89']:.1f}" for part in both.values()]
    assert [cell.strip() for cell in told["nearest class mean"][2:5]] == means


@pytest.fixture
def flags(data, tmp_path):
    common = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    return [*common, "--weights", "none", "--size", str(SIDE), "--epochs", "2", "--per-class", "6"]


def test_a_large_task_after_a_small_one_changes_none_of_its_bits(flags, capsys):
    found = large_task.main([*flags, "--sets", "flowers89", "cifar10", "--variants", "packnet 75"])
    last = found["variants"]["packnet 75"]["seeds"][0]["tasks"][-1]
    assert (last["task"], last["compared"], last["changed_bits"]) == ("cifar10", 1, 0)
    assert "| 0, 1 versions compared |" in capsys.readouterr().out


def test_exhaustion_packs_classes_in_their_order_into_a_network_that_keeps_nothing(flags, capsys):
    found = exhaustion.main([*flags, "--tasks", "2", "--variants", "packnet 60"])
    first, second = found["variants"]["packnet 60"]["seeds"][0]["tasks"]
    assert first["claimed"] == pytest.approx(0.4 * first["total"], rel=0.01), "everything was free"
    assert second["claimed"] == pytest.approx(0.4 * first["free"], rel=0.01)
    assert "packnet 60" in capsys.readouterr().out
    so_far, left = exhaustion.panels_of(found)
    both = 50 * (first["test_top1"] + second["test_top1"])
    assert so_far.lines["packnet 60"] == [(1, 100 * first["test_top1"]), (2, pytest.approx(both))]
    assert left.lines["packnet 60"] == [(1, pytest.approx(60, abs=1)), (2, pytest.approx(36, abs=1))]
    with Image.open(Path(flags[flags.index("--out") + 1]) / "exhaustion.png") as drawn:
        assert drawn.width > 1000


def test_piggyback_from_scratch_stands_on_a_first_task_that_takes_the_whole_network(flags):
    found = exhaustion.main([*flags, "--tasks", "2", "--variants", "piggyback on the first"])
    first, second = found["variants"]["piggyback on the first"]["seeds"][0]["tasks"]
    assert (first["claimed"], first["free"]) == (first["total"], 0)
    assert second["claimed"] == 0
    assert "mask" in second["parts"]
    with Store.open(Path(flags[flags.index("--work") + 1]) / "piggyback-on-the-first-0" / "store") as store:
        (later,) = [one for one in store.versions() if one.task == "classes02"]
    assert later.manifest.parent == first["version"]
    assert first["presentations"] == first["images"]["train"] * int(flags[flags.index("--epochs") + 1])


@pytest.mark.slow
def test_clnp_on_pictures_tells_what_was_lost_and_what_is_free(flags, capsys):
    found = cifar_then_tiny.main([*flags, "--tasks", "1", "--variants", "clnp 4 finetuned"])
    first, later = found["variants"]["clnp 4 finetuned"]["seeds"][0]["tasks"]
    assert (first["task"], later["task"]) == ("cifar10", "classes01")
    free = ", ".join(f"{unit['free']} of {unit['units']}" for unit in later["units"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "| classes01 |" in line)
    assert row.endswith(f"| {free} |")
    assert row.split(" | ")[4] == f"{100 * later['pruning_loss']:.2f}"


def test_what_a_margin_costs_is_the_mean_over_the_tasks_beside_a_network_for_each():
    def run(*tops, free=0):
        layers = [{"free": free, "units": 10}, {"free": 0, "units": 30}]
        tasks = [{"task": str(number), "test_top1": top, "units": layers} for number, top in enumerate(tops)]
        return {"seeds": [{"tasks": tasks}]}

    variants = {"finetune adam": run(0.9, 0.8), "clnp 4": run(0.85, 0.7, free=4), "clnp 1": run(0.9)}
    costs, leaves = cifar_then_tiny.panels_of({"variants": variants | {"clnp 4 finetuned": run(0.9, 0.8)}})
    assert costs.lines["sparsified"] == [(1, 0), (4, pytest.approx(7.5))]
    assert costs.lines["and fine-tuned"] == [(4, 0)]
    assert leaves.lines["clnp 4"] == [(1, 10), (2, 10)]
    assert "finetune adam" not in leaves.lines


def test_findings_tells_accuracy_before_and_after_retraining(flags, capsys):
    found = findings.main([*flags, "--variants", "packnet 90", "packnet head"])
    task = found["variants"]["packnet 90"]["seeds"][0]["tasks"][0]
    (pruned,) = [row["val_top1"] for row in task["epochs"] if (row["phase"], row["epoch"]) == ("retrain", 0)]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| packnet 90 |"))
    assert row.split(" | ")[2:4] == [f"{100 * pruned:.1f}", f"{100 * task['val_top1']:.1f}"]
    assert found["variants"]["packnet head"]["seeds"][0]["tasks"][0]["claimed"] == 0


@pytest.mark.slow
def test_joint_training_learns_all_sets_in_one_network_and_stands_in_the_table(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "6", "--sets", "flowers89", "omniglot28"]
    found = eight_domains.main([*flags, "--variants", "linear", "--joint", "--reverse"])
    tasks = found["variants"]["joint"]["seeds"][0]["tasks"]
    assert [task["task"] for task in tasks] == ["omniglot28", "flowers89"], "in the table's order"
    assert all(task["test_top1"] > 0.3 for task in tasks), "learned: chance is 0.1"
    assert [task["hits"].count("1") / len(task["hits"]) for task in tasks] == [task["test_top1"] for task in tasks]
    assert "| joint |" in capsys.readouterr().out
    turned = eight_domains.main([*flags, "--variants", "linear", "--joint"])["variants"]["joint"]["seeds"][0]["tasks"]
    assert turned == tasks[::-1], "trained once, whatever the order"


def test_what_the_frozen_features_tell_stands_in_the_table(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "tinyresnet"]
    flags += ["--weights", "none", "--size", str(SIDE), "--epochs", "1", "--sets", "flowers89", "omniglot28"]
    found = eight_domains.main([*flags, "--variants", "linear", "--frozen"])["frozen"]
    lines = capsys.readouterr().out.splitlines()
    for name in ("nearest class mean", "linear probe"):
        tops = [found[name][task] for task in ("flowers89", "omniglot28")]
        assert all(top > 0.25 for top in tops), "random features tell digits apart: chance is 0.1"
        row = next(line for line in lines if line.startswith(f"| {name} |"))
        assert f"| {100 * tops[0]:.1f} | {100 * tops[1]:.1f} | {50 * sum(tops):.1f} |" in row
    assert eight_domains.main([*flags, "--variants", "linear"])["frozen"] == found, "taken over"


def test_an_epoch_of_mixed_batches_shows_every_picture_of_every_task_once(data):
    preprocess = Preprocess(resize=SIDE, size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    paths = [data / "flowers89.zip", data / "omniglot28.npz"]
    splits = [load_source(str(path), preprocess=preprocess, threads=1).splits["train"] for path in paths]
    seen = [[], []]
    for parts in mixed_batches(splits, preprocess, 0, 0):
        assert sum(len(labels) for _, _, labels in parts) <= 32
        for task, pixels, labels in parts:
            assert pixels.shape == (len(labels), 3, SIDE, SIDE)
            seen[task] += labels.tolist()
    assert [sorted(labels) for labels in seen] == [sorted(split.labels.tolist()) for split in splits]
    again = next(iter(mixed_batches(splits, preprocess, 0, 0)))
    other = next(iter(mixed_batches(splits, preprocess, 0, 1)))
    first = next(iter(mixed_batches(splits, preprocess, 0, 0)))
    assert torch.equal(again[0][1], first[0][1])
    assert other[0][1].shape != first[0][1].shape or not torch.equal(other[0][1], first[0][1])


def test_unknown_task_names_sets_that_differ_refuses_strangers_and_confuses_equal_ones(data, tmp_path, capsys):
    flags = ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--arch", "widecnn"]
    flags += ["--weights", "none", "--size", str(SIDE)]
    found = unknown_task.main([*flags, "--sets", "flowers89", "clothing"])["sets"]
    assert [one["asked"] for one in found.values()] == [80, 80]
    assert all(one["named"] == 1.0 for one in found.values()), "light on dark, and dark on light"
    assert all(one["stranger"] > 0.9 for one in found.values())
    assert all(one["refused"] < 0.5 for one in found.values())
    assert "| mean |" in capsys.readouterr().out
    twins = unknown_task.main([*flags, "--sets", "omniglot28", "cifar10"])["sets"]
    assert twins["cifar10"]["taken_for"] == {"omniglot28": 100}, "of two that are the same the first is named"
