"""The command `taskpack check`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from masks_store import InvalidInput
from trainer.cli_check import check

from .samples import classes_tree, png, write_folder


def run(*arguments: str):
    return CliRunner().invoke(check, arguments, catch_exceptions=False)


def test_a_sound_source_exits_with_0_and_shows_its_counts(tmp_path):
    result = run(write_folder(tmp_path, classes_tree(each=20)))
    assert result.exit_code == 0
    assert "2 classes, 28 train, 6 val, 6 test pictures" in result.stdout
    assert [row.split() for row in result.stdout.splitlines() if "cat" in row][-1] == [
        "│",
        "cat",
        "│",
        "14",
        "│",
        "3",
        "│",
        "3",
        "│",
    ]
    assert "all 12x10 pixels" in result.stdout
    assert "stored as PNG RGB (40)" in result.stdout
    assert result.stdout.endswith("sound: a run may start\n")


def test_a_faulty_source_exits_with_1_and_shows_every_fault_and_warning(tmp_path):
    tree = {**classes_tree("train/"), "train/cat/x.jpg": b"", "test/dog/0.png": png(1000), "train/notes.txt": b""}
    result = run(write_folder(tmp_path, tree))
    assert result.exit_code == 1
    assert "fault: broken pictures (1): train/cat/x.jpg (" in result.stdout
    assert "fault: pictures in two splits (1): train/dog/0.png = test/dog/0.png" in result.stdout
    assert "warning: stray files that are no pictures (1): train/notes.txt" in result.stdout
    assert result.stdout.endswith("not sound: mend the faults before training\n")


def test_a_hundred_classes_and_more_are_shown_by_their_ends(tmp_path):
    tree = {
        f"train/c{label:03}/{n}.png": png(100 * label + n, (8, 8)) for label in range(101) for n in range(3 + label % 3)
    }
    result = run(write_folder(tmp_path, tree))
    rows = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    assert rows[:5] == ["c000", "c003", "c006", "c009", "c012"]
    assert rows[-1] == "c098"


@pytest.mark.parametrize("each", [4, 1])
def test_json_is_the_only_thing_on_stdout_and_says_whether_it_is_sound(tmp_path, each):
    result = run(write_folder(tmp_path, classes_tree(each=each)), "--json")
    report = json.loads(result.stdout)
    assert report["sound"] is (result.exit_code == 0) is (each == 4)


def test_class_names_reach_the_terminal_as_text_and_not_as_markup(tmp_path):
    result = run(write_folder(tmp_path, classes_tree(classes=("[red]cat", "[bold"))))
    assert "[red]cat" in result.stdout
    assert "[bold" in result.stdout


def test_a_source_that_is_not_there_is_wrong_input(tmp_path):
    with pytest.raises(InvalidInput, match="there is no source"):
        run(str(tmp_path / "nowhere"))


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path, classes_tree()))
    with pytest.raises(InvalidInput, match="the source's name is empty; a source is a folder"):
        run("")


def test_a_file_that_cannot_be_read_is_a_fault_not_a_crash(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    result = run(str(tmp_path / "a.zip"))
    assert result.exit_code == 1
    assert "fault: source that cannot be read" in result.stdout


def test_the_seed_chooses_the_splits_that_are_drawn(tmp_path):
    source = write_folder(tmp_path, classes_tree(each=20))
    digests = {json.loads(run(source, "--json", "--seed", seed).stdout)["digest"] for seed in ("0", "1", "0")}
    assert len(digests) == 2
