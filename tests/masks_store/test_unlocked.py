"""A registry beside which nothing may be written: read all the same, and never wrongly."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from masks_store import RegistryLocked, StoreReplaced, StoreUnwritable, unlocked
from masks_store.registry import Registry
from tests.read_only import full, mounted

from .stores import artifact, new_store, same_logits


@pytest.fixture
def writing(tmp_path: Path) -> Registry:
    """The registry as somebody else has it open."""
    made = Registry(tmp_path / "registry.sqlite3")
    made.create()
    log(made, "first")
    made.close()
    return made


@pytest.fixture
def reading(writing: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The same registry where nothing may be written beside it."""
    monkeypatch.setattr(unlocked, "is_needed", lambda path: True)
    registry = Registry(writing.path)
    registry.check()
    monkeypatch.undo()
    return registry


def log(registry: Registry, actor: str) -> None:
    with registry.write() as transaction:
        transaction.log(actor, "label", None, None)


def actors(registry: Registry) -> list[str]:
    with registry.read() as transaction:
        return [event.actor for event in transaction.events(0, 100)]


def test_it_is_read_and_no_file_is_made_beside_it(reading: Registry):
    assert actors(reading) == ["first"]
    assert reading.faults() == []
    assert [path.name for path in reading.path.parent.iterdir()] == ["registry.sqlite3"]


def test_what_others_commit_is_seen_while_they_have_it_open_and_after(reading: Registry, writing: Registry):
    log(writing, "second")
    assert Path(f"{writing.path}-wal").exists()
    assert actors(reading) == ["first", "second"]
    writing.close()
    assert not Path(f"{writing.path}-wal").exists()
    assert actors(reading) == ["first", "second"]
    assert reading.last_event() == 2


def test_a_reading_during_which_the_file_was_written_is_told_and_not_trusted(reading: Registry, writing: Registry):
    def read_while_others_write() -> None:
        with reading.read() as transaction:
            transaction.events(0, 100)
            log(writing, "second")
            writing.close()  # only now does the file itself change

    with pytest.raises(RegistryLocked, match="changed while it was read; try again"):
        read_while_others_write()
    assert actors(reading) == ["first", "second"]


def test_what_is_found_in_a_file_that_was_written_meanwhile_says_nothing_of_the_store(
    reading: Registry, writing: Registry
):
    def read_on() -> None:
        with reading.read() as transaction:
            with writing.write() as other:
                for _ in range(3_000):
                    other.log("many", "label", None, None)
            writing.close()
            transaction.events(0, 10_000)

    with pytest.raises(RegistryLocked, match="changed while it was read"):
        read_on()
    assert len(actors(reading)) == 100, "the first hundred of 3,001"


def test_a_file_that_is_taken_away_meanwhile_is_told(reading: Registry):
    def read_on() -> None:
        with reading.read() as transaction:
            reading.path.rename(reading.path.with_name("moved"))
            transaction.events(0, 100)

    with pytest.raises(RegistryLocked):
        read_on()
    with pytest.raises(StoreReplaced):
        actors(reading)


def test_others_may_open_and_close_it_at_any_moment(reading: Registry, writing: Registry):
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            log(writing, "other")
            writing.close()

    other = threading.Thread(target=come_and_go)
    other.start()
    read = 0
    try:
        while read < 30:
            with suppress(RegistryLocked):
                assert actors(reading)[0] == "first"
                read += 1
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_nothing_can_be_written(reading: Registry, writing: Registry, open_elsewhere: bool):
    if open_elsewhere:
        log(writing, "first")
    before = actors(reading)
    with pytest.raises(StoreUnwritable, match="cannot be opened for writing"):
        log(reading, "second")
    assert actors(reading) == before


def test_a_store_on_a_read_only_mount_is_listed_and_verified_and_refuses_changes(tmp_path: Path):
    store = new_store(tmp_path / "store")
    store.register(artifact(store, "birds"), prober=same_logits)
    store.close()
    before = files(store.path)

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = mounted(store.path, sys.executable, "-m", "taskpack", *words)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    listed, sound = typed("ls", str(store.path)), typed("verify", str(store.path))
    assert (listed.returncode, sound.returncode) == (0, 0), listed.stderr + sound.stderr
    assert "birds" in listed.stdout
    assert typed("export", str(store.path), "birds", "-o", str(tmp_path / "birds")).returncode == 0
    removed = typed("rm", str(store.path), "birds")
    assert removed.returncode == 1
    assert "cannot be opened for writing" in removed.stderr
    assert "Traceback" not in removed.stderr
    assert files(store.path) == before
    store.register(artifact(store, "owls"), prober=same_logits)  # open here from now on
    assert "owls" in typed("ls", str(store.path)).stdout
    store.close()


def test_a_store_on_a_full_disk_is_listed_and_verified_and_refuses_changes_as_full(tmp_path: Path):
    store = new_store(tmp_path / "disk" / "store")
    registered = store.register(artifact(store, "birds"), prober=same_logits)
    store.close()

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = full(tmp_path / "disk", sys.executable, "-m", "taskpack", *words)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    listed, sound = typed("ls", str(store.path)), typed("verify", str(store.path))
    assert (listed.returncode, sound.returncode) == (0, 0), listed.stderr + sound.stderr
    assert "birds" in listed.stdout
    changed = typed("label", str(store.path), "birds", "canary", registered.version.version)
    assert changed.returncode == 1
    assert "the disk of the store's registry is full; free some space, then try again" in changed.stderr


def test_a_store_that_others_have_open_is_read_on_a_full_disk_by_their_locks(tmp_path: Path):
    """What they committed is in the log, which the registry's file alone has not."""
    made = Registry(tmp_path / "registry.sqlite3")
    made.create()
    script = (
        "import pathlib, subprocess, sys; from masks_store.registry import Registry\n"
        "one = Registry(pathlib.Path(sys.argv[1]))\n"
        "with one.write() as transaction: transaction.log('second', 'label', None, None)\n"
        "subprocess.run(['dd', 'if=/dev/zero', f'of={sys.argv[1]}.filled'], stderr=-3)\n"
        "with Registry(one.path).read() as transaction: print([event.actor for event in transaction.events(0, 9)])\n"
    )
    command = full(tmp_path, "sh", "-c", 'rm "$0/filled" && exec "$@"', tmp_path, sys.executable, "-c", script)
    done = subprocess.run([*command, str(made.path)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "['second']\n", done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
