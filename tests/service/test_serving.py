"""What the HTTP layer calls: right answers, clear refusals, nothing computed for who has gone."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from masks_store import InvalidInput, NotFound, Store, lacks_instructions, probe_faults, read_artifact, view_of
from service import probing
from service.engine import DeadlinePassed, Draining, Kernels, QueueFull, VersionFailed
from service.engine.behind import Behind, Mix
from service.loading import THREADS
from service.serving import Serving

from .. import zoo
from . import live, rig

pytestmark = pytest.mark.anyio

Full = tuple[Store, dict[str, str]]


class Gate:
    """The real convolution behind a gate that can be shut, and a count of the forwards that went through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def conv2d(self, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if weight.shape[1] == 3:  # the first layer: a forward begins
            self.entered.set()
            assert self.open.wait(30)
            self.batches.append(len(x))
        return Kernels().conv2d(x, weight, *rest)

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()
        self.batches.clear()

    async def reached(self) -> None:
        """Until a worker stands at the gate."""
        assert await asyncio.to_thread(self.entered.wait, 30)


def test_bfloat16_that_the_processor_only_imitates_is_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.serving.log", logging.getLogger("told at the start"))  # a server's is set up otherwise
    store = live.empty_store(tmp_path / "store")
    for dtype, lacking in (("fp32", False), ("bf16", lacks_instructions(torch.bfloat16, torch.device("cpu")))):
        caplog.clear()
        Serving(store, device="cpu", dtype=dtype, workers=1)
        told = [record for record in caplog.records if "no instructions for bfloat16" in record.getMessage()]
        assert len(told) == int(lacking), dtype


def made_of(own: Behind, kernel: Tensor) -> bool:
    """Whether an adapter's folded taps are these kernels [C, 1, 3, 3], each times a number, to bf16's precision."""
    taps = own.taps
    if own.table is not None and len(own.table) > 2:
        taps = own.table[1:10, : len(kernel)].T
    if taps is None or taps.numel() != kernel.numel():
        return False
    scaled = [t.float().reshape(len(kernel), 9) for t in (taps, kernel)]
    scaled = [t / t.norm(dim=1, keepdim=True) for t in scaled]
    return bool(((scaled[0] * scaled[1]).sum(dim=1).abs() > 0.9999).all())


@asynccontextmanager
async def gated(store: Store, **options: Any) -> AsyncGenerator[tuple[Serving, Gate]]:
    """A running engine with one worker and a gate, all probes done."""
    gate = Gate()
    async with live.serve(store, kernels=Kernels(conv2d=gate.conv2d), **options) as serving:
        await settled(serving)
        try:
            yield serving, gate
        finally:
            gate.open.set()


async def settled(serving: Serving) -> None:
    """Until no version waits for its probe."""
    async with asyncio.timeout(30):
        while serving.stats().versions["loading"]:
            await asyncio.sleep(0.01)


async def queued(serving: Serving, images: int) -> None:
    async with asyncio.timeout(30):
        while serving.stats().queue_images != images:
            await asyncio.sleep(0.01)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return live.empty_store(tmp_path / "store")


async def test_every_method_is_answered_with_the_logits_of_the_reference(full_store: Full) -> None:
    store, versions = full_store
    images = rig.pictures(store.backbone, 3, 5)
    async with live.serve(store, workers=2) as serving:
        answers = await asyncio.gather(*(serving.infer(version, images) for version in versions.values()))
        for (name, version), answer in zip(versions.items(), answers, strict=True):
            rig.check(live.expected(store, version, images), answer.logits, name)
            assert serving.state(version) == "ready"


async def test_a_request_with_more_images_than_a_batch_is_split_and_put_together_in_order(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    images = rig.pictures(store.backbone, 21, 5)
    async with live.serve(store, workers=2, max_batch=4) as serving:
        answer = await serving.infer(version, images)
        rig.check(live.expected(store, version, images), answer.logits)
        assert answer.queue_ms >= 0
        assert answer.infer_ms > 0
        assert serving.stats().batch_size.bounds[2] == 4
        assert sum(serving.stats().batch_size.counts[3:]) == 0, "no batch was larger than four"


async def test_requests_that_wait_together_share_a_forward(store: Store) -> None:
    versions = [live.add(store, f"task{i}", "clr", seed=i) for i in range(4)]
    async with gated(store) as (serving, gate):
        gate.shut()
        images = rig.pictures(store.backbone, 1, 5)
        first = asyncio.create_task(serving.infer(versions[0], images))
        await gate.reached()
        rest = [asyncio.create_task(serving.infer(version, images)) for version in versions]
        await queued(serving, 4)
        gate.open.set()
        await asyncio.gather(first, *rest)
        assert gate.batches == [1, 4]


async def test_the_next_task_s_view_is_written_while_another_worker_s_forward_is_under_way(store: Store) -> None:
    """Up to its own forward: the second worker stands at the gate, too, and the first has not come through it."""
    versions = [live.add(store, f"task{i}", "packnet", seed=i, share=0.2) for i in range(5)]
    images = rig.pictures(store.backbone, 1, 5)
    async with gated(store, workers=2, slot_bytes=0) as (serving, gate):
        for version in versions:  # into three slots: the first is in none of them any more
            await serving.infer(version, images)
        running, unwritten = versions[-1], versions[0]
        gate.shut()
        first = asyncio.create_task(serving.infer(running, images))
        await gate.reached()
        gate.entered.clear()
        before = serving.stats()
        second = asyncio.create_task(serving.infer(unwritten, images))
        await gate.reached()
        after = serving.stats()
        assert (after.slot_misses, after.slot_hits) == (before.slot_misses + 1, before.slot_hits)
        assert after.slot_load_seconds.count == before.slot_load_seconds.count + 1, "the view is whole"
        assert gate.batches == []
        gate.open.set()
        for version, answer in zip((running, unwritten), await asyncio.gather(first, second), strict=True):
            rig.check(live.expected(store, version, images), answer.logits)


async def test_cancelled_and_late_requests_cost_no_forward(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    async with gated(store) as (serving, gate):
        gate.shut()
        images = rig.pictures(store.backbone, 1, 5)
        first = asyncio.create_task(serving.infer(version, images))
        await gate.reached()
        cancelled = asyncio.create_task(serving.infer(version, rig.pictures(store.backbone, 8, 5)))
        late = asyncio.create_task(serving.infer(version, images, deadline=time.monotonic() + 0.2))
        await queued(serving, 9)
        cancelled.cancel()
        with pytest.raises(DeadlinePassed):
            await late  # told while the worker still stands at the gate
        assert serving.stats().queue_images == 0
        gate.open.set()
        await first
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await serving.infer(version, images)
        assert gate.batches == [1, 1]


async def test_a_request_that_is_late_on_arrival_costs_nothing(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    async with gated(store) as (serving, gate):
        gate.batches.clear()
        with pytest.raises(DeadlinePassed):
            await serving.infer(version, rig.pictures(store.backbone, 1, 5), deadline=time.monotonic() - 1)
        assert gate.batches == []


async def test_a_full_queue_says_when_to_come_back(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    async with gated(store, queue_limit_s=1e-9) as (serving, gate):
        gate.shut()
        images = rig.pictures(store.backbone, 1, 5)
        running = asyncio.create_task(serving.infer(version, images))
        await gate.reached()
        waiting = asyncio.create_task(serving.infer(version, images))
        await queued(serving, 1)
        with pytest.raises(QueueFull) as full:
            await serving.infer(version, images)
        assert full.value.retry_after_s > 0
        gate.open.set()
        await asyncio.gather(running, waiting)


async def test_a_flood_for_one_task_delays_another_by_a_batch_and_not_by_a_queue(store: Store) -> None:
    loud = live.add(store, "loud", "packnet", share=0.5)
    quiet = live.add(store, "quiet", "packnet", seed=1)
    async with gated(store, slot_bytes=0, max_batch=2) as (serving, gate):
        images = rig.pictures(store.backbone, 1, 5)
        await serving.infer(loud, images)
        gate.shut()
        order: list[str] = []

        async def ask(name: str, version: str) -> None:
            await serving.infer(version, images)
            order.append(name)

        first = asyncio.create_task(ask("loud", loud))
        await gate.reached()
        flood = [asyncio.create_task(ask("loud", loud)) for _ in range(40)]
        await queued(serving, 40)
        lone = asyncio.create_task(ask("quiet", quiet))
        await queued(serving, 41)
        await asyncio.sleep(0.25)  # longer than a loaded view may hold the others up
        gate.open.set()
        await asyncio.gather(first, *flood, lone)
        assert order.index("quiet") < 8, order


async def test_stopping_finishes_what_was_accepted_and_refuses_what_comes(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    async with gated(store) as (serving, gate):
        gate.shut()
        images = rig.pictures(store.backbone, 1, 5)
        accepted = [asyncio.create_task(serving.infer(version, images)) for _ in range(3)]
        await gate.reached()
        stopping = asyncio.create_task(serving.stop(30.0))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await serving.infer(version, images)
        gate.open.set()
        await stopping
        assert [len((await answer).logits) for answer in accepted] == [1, 1, 1]


async def test_what_outlasts_the_drain_timeout_is_told_so(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    async with gated(store) as (serving, gate):
        gate.shut()
        images = rig.pictures(store.backbone, 1, 5)
        running = asyncio.create_task(serving.infer(version, images))
        await gate.reached()
        waiting = asyncio.create_task(serving.infer(version, images))
        await queued(serving, 1)
        stopping = asyncio.create_task(serving.stop(0.05))
        with pytest.raises(Draining):
            await waiting
        gate.open.set()
        await stopping
        assert len((await running).logits) == 1, "a forward that runs is never cut off"


async def test_unknown_versions_and_wrong_images_are_refused_by_name(store: Store) -> None:
    version = live.add(store, "birds", "clr")
    good = rig.pictures(store.backbone, 1, 5)
    async with live.serve(store) as serving:
        with pytest.raises(NotFound, match="sha256:0000"):
            await serving.infer("sha256:" + "0" * 64, good)
        for wrong in (good[:, :8], good.astype(np.float32), good[0], good[:0]):
            with pytest.raises(InvalidInput, match="uint8 \\[N, 16, 16, 3\\]"):
                await serving.infer(version, wrong)


async def test_a_version_registered_by_another_process_is_found_when_it_is_first_asked_for(store: Store) -> None:
    images = rig.pictures(store.backbone, 2, 5)
    async with live.serve(store) as serving:
        version = live.add(Store.open(store.path), "birds", "packnet")
        answer = await serving.infer(version, images)
        rig.check(live.expected(store, version, images), answer.logits)


async def test_a_version_whose_probe_fails_here_never_answers_and_the_others_do(store: Store) -> None:
    good = live.add(store, "good", "clr")
    bad_bytes = zoo.task(store.backbone, "bad", "clr", seed=3)
    images = rig.pictures(store.backbone, 1, 5)
    kernel = read_artifact(bad_bytes).tensors["adapter/conv1"]

    def behind(y: Tensor, mix: Mix, *rest: Any, **options: Any) -> Tensor:
        """A device that computes one adapter wrongly."""
        out = Kernels().behind(y, mix, *rest, **options)
        for start, stop, own in mix.parts:
            out[start:stop] *= 1.5 if made_of(own, kernel) else 1.0
        return out

    bad = store.register(bad_bytes).version.version
    async with live.serve(store, kernels=Kernels(behind=behind)) as serving:
        with pytest.raises(VersionFailed, match="off by"):
            await serving.infer(bad, images)
        assert serving.state(bad) == "failed"
        rig.check(live.expected(store, good, images), (await serving.infer(good, images)).logits)
        found = store.probe_result(bad, serving.stats().build, serving.stats().device, "fp32")
        assert found is not None
        assert not found.ok
    async with live.serve(store, kernels=Kernels(behind=behind)) as serving:
        await settled(serving)
        assert serving.state(bad) == "failed", "the recorded result counts at the next start"


async def test_probes_run_once_and_their_results_are_kept(full_store: Full) -> None:
    store, versions = full_store
    gate = Gate()
    async with live.serve(store, kernels=Kernels(conv2d=gate.conv2d)) as serving:
        await settled(serving)
        assert {serving.state(version) for version in versions.values()} == {"ready"}
        forwards = len(gate.batches)
    assert forwards >= len(versions)
    gate = Gate()
    async with live.serve(store, kernels=Kernels(conv2d=gate.conv2d)) as serving:
        await settled(serving)
        assert {serving.state(version) for version in versions.values()} == {"ready"}
        assert len(gate.batches) == 2, "nothing but the warm-up"


async def test_registration_probes_on_this_engine_before_the_version_is_in_the_pool(full_store: Full) -> None:
    store, versions = full_store
    async with live.serve(store) as serving:
        await settled(serving)
        before = serving.stats().batches
        new: list[tuple[str, str, str | None, float | None]] = [
            ("new", "packnet", "packnet-norm-child", None),
            ("newer", "clr", "packnet", None),
            ("newest", "bn", None, None),
            ("wings", "piggyback", "packnet", None),
            ("picks", "packnet", "packnet-norm-child", 0.5),
            ("on-wings", "linear", "piggyback", None),
        ]
        for name, method, on, pick in new:
            ancestors = store.lineage(versions[on]) if on else ()
            taken = list(store.claims().values())
            data = zoo.task(store.backbone, name, method, ancestors=ancestors, taken=taken, seed=50, pick=pick)
            lineage = [*ancestors, read_artifact(data)]
            view = view_of(store.backbone, lineage)
            got = await asyncio.to_thread(serving.prober, store.backbone, lineage, view)
            assert not probe_faults(read_artifact(data).tensors["probe.logits"], got)
            registered = await asyncio.to_thread(lambda d=data: store.register(d, prober=serving.prober))
            await serving.refresh()
            images = rig.pictures(store.backbone, 2, 5)
            answer = await serving.infer(registered.version.version, images)
            rig.check(live.expected(store, registered.version.version, images), answer.logits)
        assert serving.stats().batches == before + 3 * len(new), "two probes and a request each: none is probed again"


async def test_in_bf16_a_version_is_computed_in_bf16_or_falls_back_to_fp32(store: Store) -> None:
    good = live.add(store, "good", "clr")
    coarse_bytes = zoo.task(store.backbone, "coarse", "clr", seed=3)
    coarse = store.register(coarse_bytes).version.version
    kernel = read_artifact(coarse_bytes).tensors["adapter/conv1"]
    images = rig.pictures(store.backbone, 2, 5)

    def behind(y: Tensor, mix: Mix, *rest: Any, **options: Any) -> Tensor:
        """A device whose bf16 is bad for one adapter."""
        out = Kernels().behind(y, mix, *rest, **options)
        for start, stop, own in mix.parts:
            out[start:stop] *= 3.0 if y.dtype == torch.bfloat16 and made_of(own, kernel) else 1.0
        return out

    async with live.serve(store, dtype="bf16", kernels=Kernels(behind=behind)) as serving:
        got = (await serving.infer(good, images)).logits
        reference = live.expected(store, good, images)
        off = (torch.from_numpy(got) - reference).abs().max() / reference.std(correction=0)
        assert 1e-4 < off < 0.25, "computed in bf16"
        rig.check(live.expected(store, coarse, images), (await serving.infer(coarse, images)).logits)
        assert serving.stats().dtype == "bf16"


async def test_a_version_that_breaks_a_forward_takes_no_other_down(store: Store) -> None:
    good = live.add(store, "good", "clr")
    bad_bytes = zoo.task(store.backbone, "bad", "clr", seed=3)
    bad = store.register(bad_bytes).version.version
    kernel = read_artifact(bad_bytes).tensors["adapter/conv1"]
    broken = threading.Event()
    gate = Gate()

    def behind(y: Tensor, mix: Mix, *rest: Any, **options: Any) -> Tensor:
        if broken.is_set() and any(made_of(own, kernel) for _, _, own in mix.parts):
            raise RuntimeError("the device gave up")
        return Kernels().behind(y, mix, *rest, **options)

    images = rig.pictures(store.backbone, 1, 5)
    async with live.serve(store, kernels=Kernels(conv2d=gate.conv2d, behind=behind)) as serving:
        await settled(serving)
        gate.shut()
        first = asyncio.create_task(serving.infer(good, images))
        await gate.reached()
        rest = [asyncio.create_task(serving.infer(version, images)) for version in (good, bad, good)]
        await queued(serving, 3)
        broken.set()
        gate.open.set()
        answers = await asyncio.gather(first, *rest, return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == ["Inference", "Inference", "RuntimeError", "Inference"]
        broken.clear()
        assert len((await serving.infer(bad, images)).logits) == 1, "it is tried again when it is asked for again"


async def test_what_takes_a_deleted_versions_weights_waits_for_its_requests_and_then_answers(store: Store) -> None:
    old = live.add(store, "old", "packnet", share=1.0)
    async with gated(store) as (serving, gate):
        gate.shut()
        images = rig.pictures(store.backbone, 1, 5)
        before = live.expected(store, old, images)
        running = asyncio.create_task(serving.infer(old, images))
        await gate.reached()
        store.delete_task("old")
        assert not await serving.unload(old, 0.05), "a request still uses it"
        new = live.add(store, "new", "packnet", share=1.0, seed=1)
        asked = asyncio.create_task(serving.infer(new, images))
        with pytest.raises(DeadlinePassed):
            await serving.infer(new, images, deadline=time.monotonic() + 0.2)
        gate.open.set()
        rig.check(before, (await running).logits)
        rig.check(live.expected(store, new, images), (await asked).logits)
        assert await serving.unload(old, 5.0)


async def test_two_workers_under_a_stress_of_mixed_tasks_give_every_request_its_own_answer(full_store: Full) -> None:
    store, versions = full_store
    slot = 4 * sum(t.numel() for n, t in store.backbone.tensors.items() if n in store.backbone.kept)
    pictures = [rig.pictures(store.backbone, 1 + n % 3, n) for n in range(2)]
    expected = {(v, n): live.expected(store, v, pictures[n]) for v in versions.values() for n in range(2)}
    async with live.serve(store, workers=2, slot_bytes=3 * slot, max_batch=4) as serving:

        async def client(number: int) -> None:
            random = np.random.default_rng(number)
            for _ in range(25):
                name = str(random.choice(sorted(versions)))
                n = int(random.integers(0, 2))
                answer = await serving.infer(versions[name], pictures[n])
                rig.check(expected[versions[name], n], answer.logits, name)

        await asyncio.gather(*(client(number) for number in range(12)))
        assert serving.stats().slot_misses > 3, "views were evicted and made again"


# ---------------------------------------------------------------- threads that wait


class Shut:
    """A function of the store's behind a gate: the real one, once it is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.open = threading.Event()
        self.calls: list[Any] = []
        self._real = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda store, asked: self._call(store, asked))

    def _call(self, store: Store, asked: Any) -> Any:
        self.calls.append(asked)
        assert self.open.wait(30)
        return self._real(store, asked)


async def test_those_who_wait_for_the_store_share_a_look_and_take_no_other_threads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live.serve(store) as serving:
        await settled(serving)
        gate = Shut(monkeypatch, "events")
        try:
            first = asyncio.create_task(serving.refresh())
            await until(lambda: len(gate.calls) == 1)
            version = live.add(store, "birds")  # the look that has begun may not see it
            asked = [asyncio.create_task(serving.infer(version, rig.pictures(store.backbone, 1, 5))) for _ in range(50)]
            await asyncio.sleep(0.05)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
            asked[0].cancel()  # and leaves the look to the others
        finally:
            gate.open.set()
        await first
        answers = await asyncio.gather(*asked[1:])
        assert len(answers) == 49
        assert len(gate.calls) <= 4, "each look asks until there is nothing more"


@asynccontextmanager
async def reading_shut(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Serving, Shut]]:
    """A running engine that has to read each version's file anew, and cannot until the gate is opened."""
    async with live.serve(store, host_bytes=0) as serving:
        await settled(serving)
        for version in store.versions():
            await serving.unload(version.version, 5.0)
        gate = Shut(monkeypatch, "artifact_bytes")
        try:
            yield serving, gate
        finally:
            gate.open.set()


async def test_a_load_that_many_wait_for_keeps_no_other_version_waiting(
    full_store: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, versions = full_store
    images = rig.pictures(store.backbone, 1, 5)
    async with reading_shut(store, monkeypatch) as (serving, gate):
        try:
            many = [asyncio.create_task(serving.infer(versions["clr-a"], images)) for _ in range(12)]
            await until(lambda: versions["clr-a"] in gate.calls)
            other = asyncio.create_task(serving.infer(versions["bn"], images))
            await until(lambda: versions["bn"] in gate.calls)
            assert gate.calls.count(versions["clr-a"]) == 1
        finally:
            gate.open.set()
        expected = live.expected(store, versions["clr-a"], images)
        for answer in await asyncio.gather(*many):
            rig.check(expected, answer.logits)
        rig.check(live.expected(store, versions["bn"], images), (await other).logits)
        assert serving.stats().versions["ready"] == len(versions)


async def test_a_load_that_nobody_waits_for_any_more_is_not_begun(
    full_store: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, versions = full_store
    images = rig.pictures(store.backbone, 1, 5)
    *busy, late, back = (versions[name] for name in ("packnet", "piggyback", "clr-a", "clr-b", "bn", "linear"))
    assert len(busy) == THREADS
    async with reading_shut(store, monkeypatch) as (serving, gate):
        try:
            loading = [asyncio.create_task(serving.infer(version, images)) for version in busy]
            await until(lambda: set(busy) <= set(gate.calls))
            gone = [asyncio.create_task(serving.infer(late, images)) for _ in range(3)]
            with pytest.raises(DeadlinePassed, match="loaded"):
                await serving.infer(back, images, deadline=time.monotonic() + 0.05)
            for task in gone:
                task.cancel()
            left = await asyncio.gather(*gone, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in left)
            again = asyncio.create_task(serving.infer(back, images))  # joins no load that was given up
            await asyncio.sleep(0)
        finally:
            gate.open.set()
        rig.check(live.expected(store, back, images), (await again).logits)
        await asyncio.gather(*loading)
        assert late not in gate.calls
        assert await serving.unload(late, 5.0), "it is leased no more"


async def test_memory_for_views_is_told_as_it_holds(full_store: Full) -> None:
    store, versions = full_store
    images = rig.pictures(store.backbone, 1, 5)
    async with live.serve(store, slot_bytes=1) as serving:
        await serving.infer(versions["packnet"], images)
        assert 1 < serving.stats().slot_bytes <= serving.chosen["slot_bytes"]


async def test_what_reading_files_leaves_behind_is_given_back(
    full_store: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []
    monkeypatch.setattr(probing, "TRIM_S", 0.0)
    monkeypatch.setattr(probing, "CHECK_S", 0.01)
    monkeypatch.setattr(probing, "trim", lambda: given_back.append(time.monotonic()))
    store, versions = full_store
    images = rig.pictures(store.backbone, 1, 5)
    async with live.serve(store) as serving:
        await settled(serving)
        await until(lambda: bool(given_back))
        await asyncio.sleep(0.1)
        before = len(given_back)
        await serving.infer(versions["bn"], images)
        await asyncio.sleep(0.1)
        assert len(given_back) == before, "no file was read for it"
        await serving.unload(versions["bn"], 5.0)
        await serving.infer(versions["bn"], images)
        await until(lambda: len(given_back) > before)
