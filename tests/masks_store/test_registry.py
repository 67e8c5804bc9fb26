"""The registry: transactions that come whole, in one order, for many threads and processes at once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text, update

from masks_store import Store, create
from masks_store.errors import InvalidInput, OutOfCapacity, RegistryLocked, StoreCorrupt, StoreReplaced, StoreUnwritable
from masks_store.registry import Registry
from masks_store.tables import events, meta, metadata
from tests import zoo
from tests.crash.children import context


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path / "registry.sqlite3")
    made.create()
    return made


def log(registry: Registry, actor: str, times: int = 1) -> None:
    for n in range(times):
        with registry.write() as transaction:
            transaction.log(actor, "label", None, None, {"n": n})


def all_events(registry: Registry) -> list[tuple[int, str, object]]:
    with registry.read() as transaction:
        return [(event.seq, event.actor, event.detail["n"]) for event in transaction.events(0, 10_000)]


def together(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_new_registry_is_one_sound_file_in_wal_mode_that_syncs_every_commit(registry: Registry):
    assert [path.name for path in registry.path.parent.iterdir()] == ["registry.sqlite3"]
    registry.check()
    assert registry.faults() == []
    with registry.read() as transaction:
        pragma = {
            name: transaction.connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_what_is_raised_inside_a_transaction_undoes_all_of_it(registry: Registry):
    def interrupted() -> None:
        with registry.write() as transaction:
            transaction.log("a", "label", None, None, {"n": 0})
            transaction.advance("generation")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    with registry.read() as transaction:
        assert (transaction.counter("events"), transaction.counter("generation")) == (0, 0)
        assert transaction.event_span() == (0, 0, 0)


def test_a_reading_sees_one_moment_though_others_write_meanwhile(registry: Registry):
    with registry.read() as transaction:
        before = transaction.counter("events")
        together(lambda: log(registry, "other"))
        assert transaction.counter("events") == before
    with registry.read() as transaction:
        assert transaction.counter("events") == before + 1


def test_events_of_many_threads_stand_in_one_order_without_a_gap(registry: Registry):
    together(*(lambda actor=f"thread {n}": log(registry, actor, 10) for n in range(6)))
    found = all_events(registry)
    assert [seq for seq, _, _ in found] == list(range(1, 61))
    for n in range(6):
        assert [count for _, actor, count in found if actor == f"thread {n}"] == list(range(10))


def _child(path: str, actor: str) -> None:
    log(Registry(Path(path)), actor, 10)


def test_events_of_many_processes_stand_in_one_order_without_a_gap(registry: Registry):
    forked = context()
    children = [forked.Process(target=_child, args=(str(registry.path), f"process {n}")) for n in range(2)]
    for child in children:
        child.start()
    log(registry, "parent", 10)
    for child in children:
        child.join()
        assert child.exitcode == 0
    found = all_events(registry)
    assert [seq for seq, _, _ in found] == list(range(1, 31))
    assert {actor for _, actor, _ in found} == {"parent", "process 0", "process 1"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_opens_its_own_connections(registry: Registry):
    log(registry, "parent")
    child = os.fork()
    if child == 0:
        try:
            log(registry, "child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    log(registry, "parent")
    assert [actor for _, actor, _ in all_events(registry)] == ["parent", "child", "parent"]
    assert registry.faults() == []


def test_events_after_a_number_come_in_order_up_to_a_limit(registry: Registry):
    log(registry, "a", 5)
    with registry.read() as transaction:
        assert [event.seq for event in transaction.events(2, 2)] == [3, 4]
        assert transaction.events(5, 10) == []


def test_a_newer_schema_is_refused_by_name(registry: Registry):
    with registry.write() as transaction:
        transaction.connection.execute(update(meta).where(meta.c.name == "schema").values(value="2"))
    with pytest.raises(InvalidInput, match="schema 2, this taskpack reads schema 1; update taskpack"):
        registry.check()


def test_a_missing_registry_is_told_and_not_made(tmp_path: Path):
    with pytest.raises(StoreCorrupt, match="is missing; restore it"):
        Registry(tmp_path / "registry.sqlite3").check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_registry_is_told(tmp_path: Path, content: bytes):
    path = tmp_path / "registry.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="restore it from a backup"):
        Registry(path).check()


def test_damaged_pages_and_rows_that_refer_to_nothing_are_faults(registry: Registry):
    registry.close()
    with sqlite3.connect(registry.path) as connection:  # without foreign_keys=ON, so that it lets us
        connection.execute("INSERT INTO labels VALUES ('ghost', 'stable', 'sha256:0')")
    connection.close()
    assert registry.faults() == [
        "registry.sqlite3: a row of labels refers to a missing row of versions",
        "registry.sqlite3: a row of labels refers to a missing row of tasks",
    ]
    registry.close()
    data = bytearray(registry.path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    registry.path.write_bytes(data)
    assert any("registry.sqlite3" in fault for fault in registry.faults())


def test_a_writer_that_waits_too_long_for_another_is_told(registry: Registry):
    impatient = Registry(registry.path, busy_seconds=0.05)
    with registry.write() as transaction:
        transaction.log("first", "label", None, None)
        with pytest.raises(RegistryLocked, match="locked; try again"), impatient.write():
            pass
    log(impatient, "second")
    assert registry.faults() == []


def test_a_store_that_waits_less_long_is_the_same_store(tmp_path: Path):
    backbone = create("tinyresnet", image_size=16, seed=0, arch_args={"width": 4})
    store = Store.create(tmp_path / "store", backbone)
    store.register(zoo.task(store.backbone, "birds", "clr"))
    impatient = store.waiting(0.05)
    with store.registry.write():
        with pytest.raises(RegistryLocked, match="locked; try again"):
            impatient.drop_label("birds", "stable")
        assert impatient.task("birds") == store.task("birds")
    impatient.drop_label("birds", "stable")
    assert store.task("birds").labels == {}
    impatient.close()
    store.close()


def test_a_full_disk_changes_nothing_and_is_told(registry: Registry):
    log(registry, "before")

    def write_much() -> None:
        with registry.write() as transaction:
            pages = transaction.connection.exec_driver_sql("PRAGMA page_count").scalar()
            transaction.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            transaction.log("during", "label", None, None, {"n": "x" * 100_000})

    with pytest.raises(OutOfCapacity, match="is full; free some space"):
        write_much()
    registry.close()
    log(registry, "after")
    assert [actor for _, actor, _ in all_events(registry)] == ["before", "after"]


def test_a_registry_that_may_only_be_read_is_told(registry: Registry):
    def write() -> None:
        with registry.write() as transaction:
            transaction.connection.exec_driver_sql("PRAGMA query_only=ON")
            transaction.log("a", "label", None, None)

    with pytest.raises(StoreUnwritable, match="cannot be opened for writing"):
        write()


def test_nothing_is_written_to_a_registry_that_was_replaced_until_it_is_back(tmp_path: Path):
    folder, older, moved = tmp_path / "store", tmp_path / "older", tmp_path / "moved"
    folder.mkdir()
    registry = Registry(folder / "registry.sqlite3")
    registry.create()
    log(registry, "before")
    registry.close()
    shutil.copytree(folder, older)
    log(registry, "later")  # its connection stays open
    folder.rename(moved)
    shutil.copytree(older, folder)
    for refused in (lambda: log(registry, "lost"), lambda: all_events(registry), registry.last_event):
        with pytest.raises(StoreReplaced, match="was replaced, moved or restored while it was open; start"):
            refused()
    assert [actor for _, actor, _ in all_events(Registry(registry.path))] == ["before"]
    shutil.rmtree(folder)
    moved.rename(folder)
    log(registry, "back")
    assert [actor for _, actor, _ in all_events(registry)] == ["before", "later", "back"]


def test_a_closed_registry_still_knows_which_file_it_had(registry: Registry, tmp_path: Path):
    log(registry, "before")
    registry.close()
    registry.path.rename(tmp_path / "moved")
    with pytest.raises(StoreReplaced):
        log(registry, "lost")
    assert not registry.path.exists(), "the database makes a file that is missing"
    shutil.copy(tmp_path / "moved", registry.path)
    with pytest.raises(StoreReplaced):
        log(registry, "lost")


def test_a_write_during_which_the_registry_is_replaced_is_undone(registry: Registry, tmp_path: Path):
    log(registry, "before")

    def write() -> None:
        with registry.write() as transaction:
            transaction.log("lost", "label", None, None, {"n": 0})
            registry.path.rename(tmp_path / "moved")

    with pytest.raises(StoreReplaced):
        write()
    (tmp_path / "moved").rename(registry.path)
    assert [actor for _, actor, _ in all_events(registry)] == ["before"]


@pytest.mark.parametrize("looks", [True, False])
def test_an_older_copy_restored_into_the_same_file_is_noticed_for_good(registry: Registry, tmp_path: Path, looks: bool):
    log(registry, "before")
    with sqlite3.connect(registry.path) as live, sqlite3.connect(tmp_path / "older") as older:
        live.backup(older)
        log(registry, "later", 2)
        older.backup(live)
    live.close()
    older.close()
    if looks:
        with pytest.raises(StoreReplaced):
            registry.last_event()
    with pytest.raises(StoreReplaced):
        log(registry, "lost")
    log(Registry(registry.path), "another's", 5)
    for refused in (lambda: log(registry, "lost"), registry.last_event):
        with pytest.raises(StoreReplaced):
            refused()  # its numbers are higher again, and it is still not what was opened


@pytest.mark.parametrize("restored", [True, False])
def test_connections_of_their_own_know_what_the_registry_was_opened_as(
    registry: Registry, tmp_path: Path, restored: bool
):
    """Those of a server's changes are not opened before the first of them."""
    log(registry, "before")
    other = tmp_path / "older"
    with sqlite3.connect(registry.path) as live, sqlite3.connect(other) as older:
        live.backup(older)
        log(registry, "later", 2)
        if restored:
            older.backup(live)
    live.close()
    older.close()
    if not restored:
        other.rename(registry.path)
    waiting = registry.waiting(10.0)
    with pytest.raises(StoreReplaced):
        log(waiting, "lost")
    assert "lost" not in [actor for _, actor, _ in all_events(Registry(registry.path))]


def test_writers_do_not_take_one_another_for_a_replaced_registry(registry: Registry):
    def look() -> None:
        for _ in range(60):
            registry.last_event()

    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(look) for _ in range(2)] + [pool.submit(log, registry, "thread", 15) for _ in range(3)]
    for call in calls:
        call.result()
    assert registry.last_event() == 45


def test_the_tables_are_those_of_schema_1(registry: Registry):
    """A change of these needs a new schema number and a migration."""
    with registry.read() as transaction:
        rows = transaction.connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars()
        assert sorted(rows) == sorted(metadata.tables)
        columns = {name: sorted(column.name for column in table.columns) for name, table in metadata.tables.items()}
    assert columns == {
        "counters": ["name", "value"],
        "events": ["actor", "detail", "kind", "seq", "task", "time", "version"],
        "labels": ["label", "task", "version"],
        "meta": ["name", "value"],
        "probes": ["detail", "device", "dtype", "engine", "ok", "time", "version"],
        "reservations": ["expires", "host", "name", "pid", "place", "purpose", "since", "started", "token"],
        "tasks": ["created", "name"],
        "versions": [
            "created",
            "digest",
            "holds_claim",
            "manifest",
            "method",
            "parent",
            "seq",
            "size",
            "state",
            "task",
        ],
    }
    assert events.c.seq.primary_key
