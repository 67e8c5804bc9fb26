"""Many registered tasks: what they cost is asked of the store in as many queries, and read as often, as for few."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

import service.host_artifacts
from masks_store import Artifact, Store, StoreCorrupt, read_artifact, reread_artifact
from service.api import describe, tasks
from service.serving import Serving

from . import live
from .test_residency import Replica
from .web import Web, probed, running

pytestmark = pytest.mark.anyio


@contextmanager
def queries() -> Generator[list[str]]:
    """The statements that any registry runs meanwhile, but for those of the server's own thread."""
    ran: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if threading.current_thread().name != "probe":
            ran.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield ran
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def many(tmp_path: Path) -> Store:
    """A store of six clr tasks, task0 with two versions, over a backbone that keeps half."""
    store = live.empty_store(tmp_path / "many")
    for seed in range(6):
        live.add(store, f"task{seed}", "clr", seed=seed)
    live.add(store, "task0", "clr", seed=9, label="canary")
    return store


async def listed(web: Web, limit: int) -> tuple[int, list[str]]:
    """How many statements a page takes, and the names on it."""
    with queries() as ran:
        answer = (await web.client.get("/tasks", params={"limit": limit})).json()
    return len(ran), [task["task"] for task in answer["tasks"]]


async def test_a_page_of_tasks_takes_as_many_queries_however_many_are_on_it(many: Store) -> None:
    async with running(many, poll_s=60) as web:
        await probed(web)
        one, six = await listed(web, 1), await listed(web, 6)
    assert one[1] == ["task0"]
    assert six[1] == [f"task{i}" for i in range(6)]
    assert one[0] == six[0]


@pytest.mark.parametrize("read_at_once", [1, 2, 3, 128])
@pytest.mark.parametrize("page_bytes", [1, 400, 4 << 20])
async def test_long_entries_end_a_page_and_no_entry_is_lost_or_told_twice(
    many: Store, monkeypatch: pytest.MonkeyPatch, page_bytes: int, read_at_once: int
) -> None:
    async with running(many) as web:
        for path, member, key, expected in (
            ("/tasks", "tasks", "task", [f"task{i}" for i in range(6)]),
            ("/tasks/task0/versions", "versions", "version", list(many.task("task0").versions)),
        ):
            whole = (await web.client.get(path)).json()
            assert whole["next"] is None
            with monkeypatch.context() as patch:
                patch.setattr(describe, "PAGE_BYTES", page_bytes)
                patch.setattr(tasks, "READ_AT_ONCE", read_at_once)
                pages: list[list[dict[str, object]]] = []
                params: dict[str, object] = {"limit": 4}
                while True:
                    answer = (await web.client.get(path, params=params)).json()
                    pages.append(answer[member])
                    if answer["next"] is None:
                        break
                    params["cursor"] = answer["next"]
            assert [entry for page in pages for entry in page] == whole[member]
            assert [entry[key] for entry in whole[member]] == expected
            if page_bytes == 1:
                assert {len(page) for page in pages} == {1}


def test_a_page_is_what_the_tasks_tell_one_by_one(many: Store) -> None:
    def told(*names: str) -> list[object]:
        return [(many.task(name), many.versions(name)) for name in names]

    assert many.task_page(limit=2) == told("task0", "task1")
    assert many.task_page(limit=2, after="task1") == told("task2", "task3")
    assert many.task_page(limit=9, after="task3x", among=("task0", "task5", "none")) == told("task5")
    assert many.task_page(limit=9, among=()) == []


def test_a_server_that_starts_again_probes_nothing_and_asks_for_all_results_at_once(many: Store) -> None:
    first = serving_of(many)
    stats = first.stats()
    assert stats.versions == {"loading": 7, "ready": 0, "failed": 0, "retired": 0}
    found = many.versions()
    for version in found[1:]:
        many.record_probe(version.version, stats.build, stats.device, "fp32", True)
    many.record_probe(found[0].version, stats.build, stats.device, "fp32", False, "another winner")
    with queries() as ran:
        again = serving_of(many)
    assert again.stats().versions == {"loading": 0, "ready": 6, "failed": 1, "retired": 0}
    assert sum("FROM probes" in statement for statement in ran) == 1


def test_a_result_of_another_build_settles_nothing(many: Store) -> None:
    stats = serving_of(many).stats()
    for version in many.versions():
        many.record_probe(version.version, stats.build + " other", stats.device, "fp32", True)
    assert serving_of(many).stats().versions["loading"] == 7


def serving_of(store: Store) -> Serving:
    """A server as it is before its threads run."""
    serving = Serving(store, device="cpu", workers=1, slot_bytes=1 << 22, host_bytes=1 << 24)
    serving._prepare_device()
    return serving


def test_a_file_that_was_found_sound_is_not_checked_again_when_it_is_read_again(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def counted(data: bytes, where: str) -> Artifact:  # the real one, counted
        checked.append(where)
        return read_artifact(data, where)

    monkeypatch.setattr(service.host_artifacts, "read_artifact", counted)
    replica = Replica(many, host_bytes=0)
    version = many.versions()[0].version
    before = replica.answer(version)
    for _ in range(3):
        replica.residency._overlays.drop((version, "fp32"))
        assert replica.answer(version) == before
    assert checked == [version]


def test_a_file_that_is_damaged_after_it_was_found_sound_is_refused(many: Store) -> None:
    replica = Replica(many, host_bytes=0)
    version = many.versions()[0].version
    replica.check(version)
    replica.residency._overlays.drop((version, "fp32"))
    path = many.blobs.path(version)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt):
        replica.answer(version)


def test_an_artifact_read_again_is_the_artifact(many: Store) -> None:
    version = many.versions()[0].version
    data = many.artifact_bytes(version)
    once, again = read_artifact(data), reread_artifact(data, version)
    assert (again.manifest, again.version, again.size) == (once.manifest, once.version, once.size)
    assert again.tensors.keys() == once.tensors.keys()
    assert all(again.tensors[name].equal(tensor) for name, tensor in once.tensors.items())


def test_a_loaded_task_lies_in_a_cpu_s_memory_once(many: Store) -> None:
    version = many.versions()[0].version
    child = live.add(many, "child", "linear", on=version, seed=20)
    replica = Replica(many)
    replica.check(version)
    assert replica.residency.artifacts._kept.size == 0
    replica.check(child)
    replica.check(version)


def test_tasks_that_mask_nothing_share_the_backbone_s_weights(many: Store) -> None:
    one, other = (many.view(version.version) for version in many.versions()[:2])
    assert all(one.weights[name].data_ptr() == other.weights[name].data_ptr() for name in many.backbone.kept)
    own = {name: many.backbone.tensors[name] * kept for name, kept in many.backbone.kept.items()}
    assert all(one.weights[name].equal(weight) for name, weight in own.items())
