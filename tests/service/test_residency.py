"""What a replica holds: claims that come and go in order, leases, and memory that does not grow."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from masks_store import NotFound, Recent, Store, StoreCorrupt
from service.engine import Engine, VersionFailed
from service.engine.layout import Weights
from service.residency import Residency

from .. import zoo
from . import live, rig


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return live.empty_store(tmp_path / "store")


class Replica:
    """A residency and its engine, without workers: forwards are run where the test says so."""

    def __init__(self, store: Store, *, host_bytes: int = 1 << 24, slot_bytes: int = 1 << 22) -> None:
        self.store = store
        self.engine = Engine(store.backbone, slot_bytes=slot_bytes)
        self.residency = Residency(store, self.engine, host_bytes=host_bytes, overlay_bytes=1 << 24)
        self.residency.start()
        self.images = rig.pictures(store.backbone, 2, 5)

    def answer(self, version: str) -> bytes:
        """The logits' bytes, or the error that a request would get."""
        record = self.residency.lease(version)
        try:
            task = self.residency.load(record, "fp32")
            return self.engine.run(record.sight, "fp32", [self.images], [task])[0].tobytes()
        finally:
            self.residency.release(record)

    def check(self, version: str) -> None:
        """Raise unless the version answers as the reference does."""
        got = torch.frombuffer(bytearray(self.answer(version)), dtype=torch.float32).reshape(2, -1)
        rig.check(live.expected(self.store, version, self.images), got.numpy(), version)


def forget(store: Store, task: str) -> None:
    """Delete a task."""
    store.delete_task(task)


def damage(store: Store, version: str) -> bytes:
    """Change a byte of a version's file; its bytes before."""
    path = store.blobs.path(version)
    data = path.read_bytes()
    os.chmod(path, 0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return data


def test_versions_come_and_go_with_the_events(store: Store) -> None:
    replica = Replica(store)
    birds = live.add(store, "birds", "packnet")
    with pytest.raises(NotFound):
        replica.answer(birds)
    replica.residency.refresh()
    replica.check(birds)
    forget(store, "birds")
    replica.check(birds)  # until the event is applied
    replica.residency.refresh()
    with pytest.raises(NotFound):
        replica.answer(birds)
    assert replica.engine.shared.claims() == frozenset()


def test_the_claim_of_a_registration_in_this_process_is_not_decoded_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    birds = live.add(store, "birds", "packnet")
    replica = Replica(store)
    with monkeypatch.context() as patch:
        patch.delattr("service.residency.decode_claim")
        owls = live.add(store, "owls", "packnet", on=birds)
        replica.residency.refresh()
        replica.check(owls)
        with Store.open(store.path) as elsewhere:  # another process's
            finches = live.add(elsewhere, "finches", "packnet", on=owls)
        with pytest.raises(NameError, match="decode_claim"):
            replica.residency.refresh()
    replica.residency.refresh()
    replica.check(finches)


def test_a_replica_that_starts_later_holds_the_same(full_store: tuple[Store, dict[str, str]]) -> None:
    store, versions = full_store
    replica = Replica(store)
    for version in versions.values():
        replica.check(version)


def test_a_claim_waits_for_the_requests_of_the_deleted_version_whose_weights_it_takes(store: Store) -> None:
    """A queued request of a deleted version must not find another's values, nor holes, in its weights."""
    old = live.add(store, "old", "packnet", share=1.0)
    replica = Replica(store, slot_bytes=0)
    before = replica.answer(old)
    record = replica.residency.lease(old)  # a request is accepted
    forget(store, "old")
    new = live.add(store, "new", "packnet", share=1.0, seed=1)
    other = live.add(store, "other", "clr")
    replica.residency.refresh()
    replica.engine.slots.drop(old)  # its view is not at hand: it must be made from the pool again
    task = replica.residency.load(record, "fp32")
    assert replica.engine.run(record.sight, "fp32", [replica.images], [task])[0].tobytes() == before
    with pytest.raises(NotFound):
        replica.answer(old)  # no new request gets in
    with pytest.raises(NotFound):
        replica.answer(new)  # and what takes its weights waits, with all that follows
    with pytest.raises(NotFound):
        replica.answer(other)
    replica.residency.release(record)
    replica.residency.refresh()
    replica.check(new)
    replica.check(other)


def test_a_deleted_version_that_is_registered_again_answers_again(store: Store) -> None:
    version = live.add(store, "birds", "packnet")
    data = store.artifact_bytes(version)
    replica = Replica(store)
    record = replica.residency.lease(version)
    forget(store, "birds")
    replica.residency.refresh()
    store.register(data)
    replica.residency.refresh()
    replica.check(version)
    replica.residency.release(record)
    replica.residency.refresh()
    replica.check(version)


def test_a_lease_on_a_child_holds_its_deleted_parent_s_claim(store: Store) -> None:
    parent = live.add(store, "parent", "packnet", share=0.5)
    child = live.add(store, "child", "clr", on=parent)
    replica = Replica(store, slot_bytes=0)
    before = replica.answer(child)
    record = replica.residency.lease(child)
    forget(store, "child")
    forget(store, "parent")
    replica.residency.refresh()
    assert parent in replica.engine.shared.claims()
    replica.engine.slots.drop(parent)
    task = replica.residency.load(record, "fp32")
    assert replica.engine.run(record.sight, "fp32", [replica.images], [task])[0].tobytes() == before
    replica.residency.release(record)
    replica.residency.refresh()
    assert parent not in replica.engine.shared.claims()


def test_a_retired_version_answers_no_more_and_what_is_built_on_it_does(store: Store) -> None:
    parent = live.add(store, "parent", "packnet", own_norm=True)
    child = live.add(store, "child", "linear", on=parent)
    replica = Replica(store)
    store.delete_task("parent", retire=True)
    replica.residency.refresh()
    with pytest.raises(NotFound, match="retired"):
        replica.answer(parent)
    replica.check(child)
    assert replica.residency.counts() == {"loading": 1, "ready": 0, "failed": 0, "retired": 1}
    again = Replica(store)
    again.check(child)
    with pytest.raises(NotFound, match="retired"):
        again.answer(parent)


@pytest.mark.parametrize("method", ["piggyback", "packnet"])
def test_selections_answer_come_and_go_and_free_no_more_than_they_took(store: Store, method: str) -> None:
    pick = 0.5 if method == "packnet" else None
    base = live.add(store, "base", "packnet")
    chooser = live.add(store, "chooser", method, on=base, pick=pick, seed=1)
    upon = live.add(store, "upon", "clr", on=chooser, seed=2)
    anew = live.add(store, "anew", "packnet", on=chooser, seed=3)
    replica, again = Replica(store), Replica(store, host_bytes=0, slot_bytes=0)
    before: dict[str, bytes] = {}
    for version in (base, chooser, upon, anew):
        for where in (replica, again):
            where.check(version)
            where.residency._forget_tensors(version)  # nothing at hand: its file, its bits and its view anew
            before[version] = where.answer(version)
    held = {base, anew} | ({chooser} if method == "packnet" else set())
    assert replica.engine.shared.claims() == held
    forget(store, "anew")
    forget(store, "upon")
    forget(store, "chooser")
    replica.residency.refresh()
    assert replica.engine.shared.claims() == {base}
    with pytest.raises(NotFound):
        replica.answer(chooser)
    assert replica.answer(base) == before[base]
    assert Replica(store).answer(base) == before[base]


def test_a_lease_on_what_stands_on_a_selection_holds_it_and_its_base(store: Store) -> None:
    base = live.add(store, "base", "packnet", share=0.5)
    wings = live.add(store, "wings", "piggyback", on=base)
    upon = live.add(store, "upon", "linear", on=wings)
    replica = Replica(store, slot_bytes=0)
    before = replica.answer(upon)
    record = replica.residency.lease(upon)
    for name in ("upon", "wings", "base"):
        forget(store, name)
    taker = live.add(store, "taker", "packnet", share=1.0, seed=4)
    replica.residency.refresh()
    replica.engine.slots.drop(wings)
    task = replica.residency.load(record, "fp32")
    assert replica.engine.run(record.sight, "fp32", [replica.images], [task])[0].tobytes() == before
    replica.residency.release(record)
    replica.residency.refresh()
    assert replica.engine.shared.claims() == {taker}
    replica.check(taker)


def test_a_retired_selection_still_decides_what_the_tasks_on_it_see(store: Store) -> None:
    wings = live.add(store, "wings", "piggyback")
    upon = live.add(store, "upon", "bn", on=wings)
    replica = Replica(store)
    before = replica.answer(upon)
    store.delete_task("wings", retire=True)
    replica.residency.refresh()
    assert replica.answer(upon) == Replica(store).answer(upon) == before
    with pytest.raises(NotFound, match="retired"):
        replica.answer(wings)


def test_tasks_on_one_selection_share_its_bits_which_count_as_memory_once(store: Store) -> None:
    wings = live.add(store, "wings", "piggyback")
    upon = [live.add(store, f"upon{n}", "linear", on=wings, seed=n) for n in range(2)]
    replica = Replica(store)
    tasks = []
    for version in (wings, *upon):
        record = replica.residency.lease(version)
        tasks.append(replica.residency.load(record, "fp32"))
        replica.residency.release(record)
    assert tasks[0].shown is tasks[1].shown is tasks[2].shown
    bits = replica.engine.shared.layout("fp32").total // 8
    assert tasks[0].shown is not None
    assert tasks[0].shown.numel() == bits
    assert replica.residency._overlays.size == sum(task.size for task in tasks) + bits
    plain = live.add(store, "plain", "linear", seed=1)
    replica.residency.refresh()
    alone = replica.residency.load(replica.residency.lease(plain), "fp32")
    assert alone.shown is None
    assert tasks[2].size == alone.size


def test_many_changes_between_two_looks_are_applied_in_order(store: Store) -> None:
    replica = Replica(store)
    for seed in range(5):  # each takes the weights that the one before it gave back
        last = live.add(store, f"task{seed}", "packnet", share=1.0, seed=seed)
        if seed < 4:
            forget(store, f"task{seed}")
    replica.residency.refresh()
    replica.check(last)
    assert replica.engine.shared.claims() == {last}


def test_a_damaged_file_fails_its_version_and_what_is_built_on_it_alone(store: Store) -> None:
    good = live.add(store, "good", "packnet")
    bad = live.add(store, "bad", "packnet", seed=1)
    child = live.add(store, "child", "linear", on=bad)
    damage(store, bad)
    replica = Replica(Store.open(store.path))
    replica.check(good)
    for version in (bad, child):
        with pytest.raises(VersionFailed):
            replica.answer(version)


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("method", ["packnet", "clr"])
def test_a_damaged_file_that_is_registered_again_answers_and_so_does_what_is_built_on_it(
    store: Store, method: str, follows: bool
) -> None:
    replica = Replica(Store.open(store.path))
    bad = live.add(store, "bad", method, seed=1)
    child = live.add(store, "child", "linear", on=bad)
    taker = live.add(store, "taker", "packnet", on=bad, seed=2)
    data = damage(store, bad)
    if not follows:
        replica = Replica(Store.open(store.path))
    replica.residency.refresh()
    for version in (bad, child, taker):
        with pytest.raises((VersionFailed, StoreCorrupt)):
            replica.answer(version)
    store.register(data)
    replica.residency.refresh()
    for version in (bad, child, taker):
        replica.check(version)
    assert replica.residency.artifacts._sound == {bad, child, taker}
    assert replica.residency.counts() == {"loading": 3, "ready": 0, "failed": 0, "retired": 0}, "to be probed"
    for task in ("taker", "child", "bad"):
        forget(store, task)
    replica.residency.refresh()
    assert replica.residency.artifacts._sound == set(), "nothing stays of what went"
    assert replica.engine.shared.claims() == frozenset()


@pytest.mark.parametrize("before", [True, False])
def test_what_is_retired_stays_so_when_the_file_under_it_is_mended(store: Store, before: bool) -> None:
    bad = live.add(store, "bad", "packnet", seed=1)
    middle = live.add(store, "middle", "packnet", on=bad, seed=2)
    leaf = live.add(store, "leaf", "linear", on=middle)
    if before:
        store.delete_task("middle", retire=True)
    data = damage(store, bad)
    replica = Replica(Store.open(store.path))
    if not before:
        store.delete_task("middle", retire=True)
    replica.residency.refresh()
    store.register(data)
    replica.residency.refresh()
    replica.check(bad)
    replica.check(leaf)
    with pytest.raises(NotFound, match="retired"):
        replica.answer(middle)
    assert replica.residency.counts() == {"loading": 2, "ready": 0, "failed": 0, "retired": 1}


def test_a_version_whose_damaged_file_was_never_mended_can_be_deleted(store: Store) -> None:
    bad = live.add(store, "bad", "packnet", share=1.0)
    damage(store, bad)
    replica = Replica(Store.open(store.path))
    forget(store, "bad")
    good = live.add(store, "good", "packnet", share=1.0)
    replica.residency.refresh()
    replica.check(good)


def test_artifacts_beyond_the_host_memory_are_read_again_and_answer_the_same(store: Store) -> None:
    versions = [live.add(store, f"task{i}", "clr", seed=i) for i in range(6)]
    plenty, tight = Replica(store), Replica(store, host_bytes=2 * 4000)
    for version in [*versions, *reversed(versions)]:
        assert plenty.answer(version) == tight.answer(version)
        tight.residency._overlays.drop((version, "fp32"))


def test_the_bounded_memory_drops_what_was_used_longest_ago() -> None:
    recent: Recent[str] = Recent(10)
    for key in "abc":
        recent.put(key, key.upper(), 3)
    assert recent.get("a") == "A"
    recent.put("d", "D", 4)
    assert [recent.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    recent.put("large", "L", 11)
    assert recent.get("large") is None
    assert recent.size <= 10


def test_what_values_have_in_common_counts_once_until_the_last_of_them_goes() -> None:
    recent: Recent[str] = Recent(20)
    for key in "abc":
        recent.put(key, key.upper(), 1, ("cut", 10))
    assert recent.size == 13
    recent.put("b", "B again", 2, ("cut", 10))
    assert recent.size == 14
    recent.put("d", "D", 1, ("other cut", 5))
    assert recent.size == 20
    recent.put("e", "E", 1)
    assert [recent.get(key) for key in "acbde"] == [None, "C", "B again", "D", "E"], "a alone made room"
    recent.drop("c")
    assert recent.size == 2 + 10 + 6 + 1
    recent.drop("b")
    assert recent.size == 6 + 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_loads_and_evictions_take_no_more_memory() -> None:
    """Slots for two of five views: every load evicts one, and its buffer is used again."""
    backbone = zoo.light_backbone("tinyresnet", size=32, keep=0.5)
    view_bytes = Engine(backbone).shared.layout("fp32").nbytes
    engine = Engine(backbone, slot_bytes=2 * view_bytes)
    shown = engine.shared.shown("fp32", ())

    def fill(out: Weights) -> None:
        engine.shared.fill(out, "fp32", shown, {})

    def loads(count: int) -> None:
        for i in range(count):
            with engine.slots.view((f"view {i % 5}", ""), "fp32", fill):
                pass

    loads(10)
    gc.collect()
    buffers = {id(slot.weights) for slot in engine.slots._slots}
    before = resident_bytes()
    loads(1000)
    gc.collect()
    assert engine.slots.misses == 1010
    assert {id(slot.weights) for slot in engine.slots._slots} == buffers
    assert engine.slots.used <= 2 * view_bytes
    assert resident_bytes() - before < 10 * view_bytes, "a thousand views would be a hundred times that"
