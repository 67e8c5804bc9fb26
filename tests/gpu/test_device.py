"""On a real GPU: every fast way in use, the same answers as the reference, in order whatever runs beside.

    python -m pytest tests/gpu -m 'gpu or not gpu'

needs torch, torchvision, pydantic and sqlalchemy, and no web framework.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator

import numpy as np
import pytest
import torch

from masks_store import probe_faults

from .. import zoo
from ..service import rig

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """Nothing may fall back to the plain way."""
    with caplog.at_level(logging.WARNING, "taskpack.service"):
        yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []  # `messages` is of the teardown by now


def on_gpu(dtype: str = "fp32", keep: float = 0.5) -> rig.Rig:
    return rig.rig(zoo.backbone(keep=keep), device="cuda", dtype=dtype)


def test_every_fast_way_agrees_with_plain_torch_on_this_device() -> None:
    ways = on_gpu().engine.ways
    assert None not in (ways.masking, ways.kernels, ways.capture)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_method_gives_the_reference_s_logits_alone_and_mixed(dtype: str) -> None:
    """Twice each: recorded, then replayed; sizes that fill a batch up and that do not.

    By the probes' bounds, with the spread of a task's logits over many pictures: a single one may have next to none.
    """
    made = on_gpu(dtype)
    many = rig.pictures(made.backbone, 16, 99)
    spread = {name: rig.reference(made.backbone, task, many).std(correction=0) for name, task in made.tasks.items()}
    for images in (1, 3, 2, 4, 3):
        asked = {name: rig.pictures(made.backbone, images, seed) for seed, name in enumerate(made.tasks)}
        expected = {name: rig.reference(made.backbone, made.tasks[name], asked[name]) for name in asked}
        for sight in {made.sight(name) for name in asked}:
            names = [name for name in asked if made.sight(name) == sight]
            for group in [[name] for name in names] + [names]:
                for name, got in zip(group, made.run(group, [asked[name] for name in group]), strict=True):
                    off = float((torch.from_numpy(got) - expected[name]).abs().max() / spread[name])
                    assert off < {"fp32": 1e-4, "bf16": 0.25}[dtype], f"{name} among {group}"
    assert made.engine.recorded_bytes > 0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_view_has_the_bits_that_the_cpu_writes(dtype: str) -> None:
    gpu, cpu = on_gpu(dtype), rig.rig(zoo.backbone(keep=0.5), dtype=dtype, onednn=False)
    for name in ("packnet", "packnet-child", "packnet-norm-child", "picked", "piggyback-on-child"):
        views: list[torch.Tensor] = []
        for made in (cpu, gpu):
            weights, task = made.engine.shared.layout(dtype).new(), made.loaded[name]
            scales, table = task.layers.scales, task.layers.scale_table
            made.engine.shared.fill(weights, dtype, task.shown, scales, scale_table=table)
            torch.cuda.synchronize()
            assert weights.flat is not None
            views.append(weights.flat.cpu().view(torch.uint8))
        off = int((views[0] != views[1]).sum())
        assert off <= len(views[0]) * 1e-3, f"{name}: {off} bytes differ; a scale may round otherwise on a GPU, no more"


def test_threads_that_ask_many_views_at_once_get_their_own_answers() -> None:
    """More views than slots, in four threads: writing, recording and computing go on beside one another."""
    made = on_gpu()
    names = [name for name in made.tasks if made.loaded[name].folds or "clr" in name]
    pictures = {name: rig.pictures(made.backbone, 4 + seed % 3, seed) for seed, name in enumerate(names)}
    expected = {name: rig.reference(made.backbone, made.tasks[name], pictures[name]) for name in names}
    wrong: list[str] = []

    def ask(seed: int) -> None:
        for at in np.random.default_rng(seed).integers(0, len(names), 100):
            name = names[at]
            got = made.run([name], [pictures[name]])[0]
            wrong.extend(probe_faults(expected[name], torch.from_numpy(got)))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ten_thousand_swaps_leave_the_device_s_memory_flat() -> None:
    made = on_gpu()
    names = ("packnet", "packnet-child", "packnet-norm", "picked")
    pictures = rig.pictures(made.backbone, 2, 0)

    def swap() -> None:
        for name in names:
            made.engine.slots.drop(made.sight(name).key)
            made.run([name], [pictures])

    for _ in range(10):
        swap()
    before = torch.cuda.memory_reserved()
    for _ in range(2500):
        swap()
    assert torch.cuda.memory_reserved() <= before
