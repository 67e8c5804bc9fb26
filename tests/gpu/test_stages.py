"""Forwards in static memory: the same answers as without, whatever ran there before, and nothing wrong is kept.

On the CPU what is "recorded" is run again from Python, over the same static memory.
"""

from __future__ import annotations

import gc
import inspect
import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from service.engine.stages import LARGEST, Recorded, RecordingBroken, bucket_of
from service.engine.ways import Ways

from .. import zoo
from ..service import rig

ROOM = 1 << 30
FOLDED = ("packnet", "packnet-child", "linear", "packnet-norm", "picked", "piggyback")


class Again:
    """Records nothing: replays by running the work again. Counts both."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Callable[[], None], stream: torch.cuda.Stream | None) -> Recorded:
        assert stream is None
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return Recorded(replay, 1000)


def staged(capture: object = None, *, room: int = ROOM, arch: str = "tinyresnet") -> rig.Rig:
    backbone = zoo.backbone(keep=0.5) if arch == "tinyresnet" else zoo.light_backbone(arch, size=32, keep=0.5)
    ways = Ways(capture=capture or Again())  # pyright: ignore[reportArgumentType]
    kinds = rig.KINDS if arch == "tinyresnet" else rig.BRIEF
    return rig.rig(backbone, kinds, ways=ways, graph_bytes=room)


def answer(made: rig.Rig, name: str, images: int, seed: int) -> None:
    """Ask one task, and compare with its reference."""
    pictures = rig.pictures(made.backbone, images, seed)
    expected = rig.reference(made.backbone, made.tasks[name], pictures)
    rig.check(expected, made.run([name], [pictures])[0], f"{name}, {images} images")


@pytest.mark.parametrize(("images", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64), (64, 64), (255, 256)])
def test_a_batch_is_filled_up_to_the_next_power_of_two(images: int, bucket: int) -> None:
    assert bucket_of(images) == bucket


def test_every_task_answers_as_its_reference_in_batches_of_every_size() -> None:
    """Shrinking and growing: what an earlier batch left in the rows behind must not show."""
    capture = Again()
    made = staged(capture)
    for seed, images in enumerate((4, 3, 1, 2, 3)):
        for name in made.tasks:
            answer(made, name, images, seed)
    assert capture.recorded
    assert capture.replayed > capture.recorded, "a later batch of a size was recorded again, or none was replayed"


def test_tasks_that_take_turns_in_one_slot_share_its_recordings() -> None:
    """Their norms, and so the biases, differ."""
    capture = Again()
    made = staged(capture)
    for name in ("packnet", "packnet-norm", "linear-on-child"):
        answer(made, name, 2, 0)
    before = capture.recorded
    made.engine.slots.drop(made.sight("packnet").key)
    answer(made, "packnet-child", 2, 1)
    assert capture.recorded == before
    assert capture.replayed == before + 1, "one for each comparison with the plain forward, and this one"


def test_a_recording_that_computes_something_else_is_dropped_loudly(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(work: Callable[[], None], stream: object) -> Recorded:
        static = inspect.getclosurevars(work).nonlocals["static"]  # where the features are written

        def replay() -> None:
            work()
            static.mul_(1.5)

        return Recorded(replay, 0)

    made = staged(wrong)
    with caplog.at_level(logging.WARNING, "taskpack.service"):
        for seed in range(2):
            answer(made, "packnet", 3, seed)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "batches of 4 run without a recording on cpu"
    ]


def test_what_cannot_be_recorded_is_computed_plainly(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(work: Callable[[], None], stream: object) -> Recorded:
        raise RuntimeError("operation not permitted when stream is capturing")

    made = staged(refuses)
    with caplog.at_level(logging.WARNING, "taskpack.service"):
        answer(made, "packnet", 3, 0)
        answer(made, "packnet", 4, 1)
    assert "not permitted" in caplog.text
    assert len(caplog.records) == 1, "told once, not with every batch"


def test_after_a_recording_that_broke_nothing_is_recorded_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """What torch leaves behind then may let two recordings share memory."""
    asked = 0

    def breaks(work: Callable[[], None], stream: object) -> Recorded:
        nonlocal asked
        asked += 1
        raise RecordingBroken("operation not permitted when stream is capturing")

    made = staged(breaks)
    with caplog.at_level(logging.WARNING, "taskpack.service"):
        for seed, images in enumerate((3, 4, 2, 1)):
            answer(made, "packnet", images, seed)
            answer(made, "clr-a", images, seed)
    assert asked == 1
    assert "nothing is recorded on cpu any more" in caplog.text


def test_no_forward_that_is_not_recorded_runs_while_another_is_recorded() -> None:
    """On a GPU cuDNN's search in the one would break the other."""
    beside: list[str] = []
    entered, done = threading.Event(), threading.Event()

    def slow(work: Callable[[], None], stream: object) -> Recorded:
        entered.set()
        assert not done.wait(0.3), "computed meanwhile"
        return Recorded(work, 0)

    made = staged(slow)
    pictures = rig.pictures(made.backbone, LARGEST + 1, 0)  # too many to be recorded

    def ask() -> None:
        entered.wait()
        beside.extend(str(len(made.run(["clr-a"], [pictures])[0])))
        done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    answer(made, "packnet", 2, 0)
    thread.join()
    assert beside


def test_recordings_stay_within_their_bytes_and_the_least_recently_used_goes() -> None:
    capture = Again()
    one = staged(Again())
    answer(one, "packnet", 4, 0)
    made = staged(capture, room=one.engine.recorded_bytes)
    for images in (1, 4, 1, 2):
        answer(made, "packnet", images, images)
        assert 0 < made.engine.recorded_bytes <= one.engine.recorded_bytes
    assert capture.recorded > 2


def test_a_network_of_a_task_s_own_is_recorded_and_goes_with_the_task() -> None:
    made = rig.rig(
        zoo.backbone(keep=0.0), [("clnp", "clnp", None, False)], ways=Ways(capture=Again()), graph_bytes=ROOM
    )
    answer(made, "clnp", 2, 0)
    assert made.engine.recorded_bytes > 0
    made.loaded.clear()
    gc.collect()
    assert made.engine.recorded_bytes == 0


def test_threads_that_ask_the_same_view_do_not_mix_their_batches() -> None:
    made = staged()
    pictures = [rig.pictures(made.backbone, 2, seed) for seed in range(4)]
    expected = [made.run(["packnet"], [images])[0] for images in pictures]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(8):
            got = made.run(["packnet"], [pictures[index]])[0]
            if not np.array_equal(got, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_norms_before_their_convolutions_are_each_task_s_own() -> None:
    """DenseNet: such a norm is in no weight, so a task that brings one is not recorded."""
    capture = Again()
    made = staged(capture, arch="densenet121")
    answer(made, "packnet-norm", 1, 0)
    assert not capture.recorded
    for name in made.tasks:
        answer(made, name, 1, 0)
