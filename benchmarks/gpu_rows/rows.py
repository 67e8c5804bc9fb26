"""The rows of a GPU's targets, and where the device's time goes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from .bench import Bench, Call, pictures
from .rival import Rival
from .tasks import DTYPE, Tasks, replay_of

PASSES, GOAL = 24_000, 34_000
"""Images a second of a ResNet-50 in batches of 256."""


def measure_swap(bench: Bench, tasks: Tasks) -> None:
    """A view of 23.5 million weights written from bits, the scales of a norm included."""
    engine, task = bench.engine, tasks.packnet[0]
    out = [engine.shared.layout(DTYPE).new() for _ in range(2)]
    at = 0

    def swap() -> None:
        nonlocal at
        at += 1
        layers = task.layers
        with torch.inference_mode():
            engine.shared.fill(
                out[at % 2], DTYPE, task.shown, layers.scales, scale_table=layers.scale_table
            )  # two views in turn: more than the caches hold

    nbytes = engine.shared.layout(DTYPE).nbytes
    flat = out[0].flat
    assert flat is not None
    copied = torch.empty_like(flat)
    took = bench.devices({"swap": swap, "copy": lambda: copied.copy_(flat)}, 20)
    bench.row("cold swap, on the device", 35, took["swap"], "us", at_most=True)
    bench.note("a plain copy of the weights, us", took["copy"])
    bench.note("swap, bytes moved, TB/s", 2 * nbytes / took["swap"] / 1e6)
    bench.note("cold swap, wall of one awaited call, us", bench.walls({"swap": swap}, 1)["swap"])


def measure_single(bench: Bench, tasks: Tasks) -> None:
    """One picture, its view in a slot."""
    engine, image = bench.engine, pictures(bench.engine, 1)
    task, sight = tasks.packnet[0], tasks.sights[0]
    call = lambda: engine.run(sight, DTYPE, [image], [task])  # noqa: E731 - timed as it stands
    replay = replay_of(engine, sight, 1, task)
    took = bench.walls({"engine": call}, 20)
    bench.row("batch 1, through the engine", 300, took["engine"], "us", at_most=True)
    bench.note("batch 1, on the device, us", bench.devices({"replay": replay}, 20)["replay"])


def measure_batch(bench: Bench, tasks: Tasks, rival: Rival) -> None:
    """A large batch of one task."""
    engine, images = bench.engine, pictures(bench.engine, bench.large)
    task, sight = tasks.packnet[0], tasks.sights[0]
    took = bench.devices(
        {"engine": replay_of(engine, sight, bench.large, task), "compiled": rival.on_device(images)}, 3
    )
    bench.row(f"batch {bench.large}, on the device, x torch.compile", 1.0, took["compiled"] / took["engine"], "x")
    rates = {name: bench.large / time_us * 1e6 for name, time_us in took.items()}
    bench.row(f"batch {bench.large}, on the device, images/s", PASSES, rates["engine"], "", goal=GOAL)
    bench.note(f"batch {bench.large}, torch.compile, images/s", rates["compiled"])
    through = bench.walls(
        {"engine": lambda: engine.run(sight, DTYPE, [images], [task]), "compiled": rival.through(images)}, 2
    )
    bench.note(f"batch {bench.large}, through the engine, x torch.compile", through["compiled"] / through["engine"])


def measure_mixed(bench: Bench, tasks: Tasks, rival: Rival | None) -> None:
    """As many CLR tasks as pictures, against the fastest way to run one of them alone."""
    engine, count = bench.engine, bench.small
    images = pictures(engine, count)
    calls: dict[str, Call] = {
        "mixed": lambda: engine.run(tasks.base, DTYPE, list(images[:, None]), list(tasks.clr)),
        "alone": lambda: engine.run(tasks.base, DTYPE, [images], [tasks.clr[0]]),
    }
    if rival is not None:
        calls["compiled"] = rival.through(images)
    took = bench.walls(calls, 3)
    fastest = min(time_us for name, time_us in took.items() if name != "mixed")
    bench.row(f"clr {count} of {count} tasks, x the fastest alone", 0.9, fastest / took["mixed"], "x")
    for name, time_us in took.items():
        bench.note(f"clr, {name}, us", time_us)
    replay = replay_of(engine, tasks.base, count, tasks.clr[0])
    bench.note("clr mixed, on the device, us", bench.devices({"replay": replay}, 3)["replay"])


def measure_packnet(bench: Bench, tasks: Tasks) -> None:
    """Eight views, an eighth of the batch each, one after the other; and in two threads."""
    engine, count = bench.engine, bench.small
    images, part = pictures(engine, count), count // 8
    each = [images[i * part : (i + 1) * part] for i in range(8)]

    def run(views: Sequence[int]) -> None:
        for i in views:
            engine.run(tasks.sights[i], DTYPE, [each[i]], [tasks.packnet[i]])

    def two_threads() -> None:
        threads = [threading.Thread(target=run, args=(views,)) for views in (range(0, 8, 2), range(1, 8, 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def cold() -> None:
        for sight in tasks.sights:
            engine.slots.drop(sight.key)
        run(range(8))

    calls: dict[str, Call] = {
        "one task": lambda: engine.run(tasks.sights[0], DTYPE, [images], [tasks.packnet[0]]),
        "eight": lambda: run(range(8)),
        "eight, cold": cold,
    }
    if bench.on_gpu:  # Triton's interpreter is for one thread
        calls["eight, two threads"] = two_threads
    took = bench.walls(calls, 3)
    bench.row(f"packnet, 8 tasks in {count}, x one task", 0.6, took["one task"] / took["eight"], "x")
    for name in [*calls][2:]:
        bench.note(f"packnet, {name}, x one task", took["one task"] / took[name])


def profile(name: str, call: Call) -> None:
    """Where the device's time goes, kernel by kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    table = found.key_averages().table(sort_by="self_device_time_total", row_limit=12, max_name_column_width=60)
    print(f"\n{name}, five runs\n{table}")
