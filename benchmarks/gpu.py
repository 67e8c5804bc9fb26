"""The engine on a GPU: that it is right there, and the five rows of its targets, in one run of under eight minutes.

    python benchmarks/gpu.py [--rounds 7] [--seconds 450] [--no-tests]
    python benchmarks/gpu.py --rehearse          the same steps, tiny, on the CPU: to try the script, not to measure

It needs torch 2.11 or newer with CUDA, torchvision, numpy, Pillow, safetensors, pydantic and sqlalchemy; no web
framework, and pytest with hypothesis for the tests. For a machine without network, fetch what it lacks elsewhere:

    python -m pip install --target gpu-packages --only-binary=:all: --platform manylinux_2_17_x86_64 \
        --python-version 3.12 pydantic sqlalchemy
    PYTHONPATH=gpu-packages python benchmarks/gpu.py

ResNet-50 at 224 in bfloat16, random weights. First `pytest tests/gpu`, then the engine's answers against torch's
float32; nothing is measured before both are right. `through the engine` is the wall time of a call, from pixels on the
host to logits on the host; `on the device` what the GPU needs for the forward alone. The rival is torch.compile over
the same weights in channels_last bfloat16, from the same pixels, the contestants taking turns within each round.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed
REHEARSE = "--rehearse" in sys.argv
if REHEARSE:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

try:
    from serve_engine import claim_some, overlay

    from masks_store import (
        adapted,
        adapter_sites,
        create,
        normalise,
        probe_faults,
        read_backbone,
    )
    from service.engine import DTYPES, DeviceOverlay, Engine, Sight
    from service.engine.stages import Recorded
    from service.engine.ways import Ways
except ModuleNotFoundError as error:
    print(f"{error.name} is missing here; `head -20 {__file__}` says what is needed and how to bring it.")
    sys.exit(3)

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One target: `value` must be at most (`at_most`) or at least `target`."""

    name: str
    target: float
    value: float
    unit: str
    at_most: bool

    @property
    def passes(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Bench:
    """What is measured with."""

    engine: Engine
    rounds: int
    small: int
    large: int
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, float | str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.engine.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def row(self, name: str, target: float, value: float, unit: str, *, at_most: bool = False) -> None:
        """Note a target's value and print it."""
        made = Row(name, target, value, unit, at_most)
        self.rows.append(made)
        sign = "<=" if at_most else ">="
        found = "tried" if REHEARSE else "pass " if made.passes else "SHORT"
        print(f"{found} {name:<52} {value:>9.3f} {unit:<4} target {sign} {target:g}")

    def note(self, name: str, value: float | str) -> None:
        """Note and print what is no target."""
        self.notes[name] = round(value, 4) if isinstance(value, float) else value
        print(f"      {name:<52} {self.notes[name]:>9}")

    def walls(self, calls: Mapping[str, Call], each: int) -> dict[str, float]:
        """Median microseconds of one call of each, with everything awaited; `each` calls in a row, taking turns."""
        return self._median(calls, each, self._wall)

    def devices(self, calls: Mapping[str, Call], each: int) -> dict[str, float]:
        """Median microseconds that the device needs for one call of each; the host's own time is hidden."""
        return self._median(calls, each, self._device if self.on_gpu else self._wall)

    def _median(self, calls: Mapping[str, Call], each: int, measure: Callable[[Call, int], float]) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in calls}
        warm_ups, each = (0, 1) if REHEARSE else (1, each)
        for turn in range(self.rounds + warm_ups):
            for name, call in calls.items():
                took = measure(call, each)
                if turn >= warm_ups:
                    taken[name].append(took)
        return {name: statistics.median(times) for name, times in taken.items()}

    def _wall(self, call: Call, each: int) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(each):
            call()
        self.wait()
        return (time.perf_counter() - started) / each * 1e6

    def _device(self, call: Call, each: int) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        torch.cuda._sleep(4_000_000)  # about 2 ms in which the host gets ahead
        before.record()
        for _ in range(each):
            call()
        after.record()
        self.wait()
        return before.elapsed_time(after) / each * 1e3


@dataclass(frozen=True)
class Tasks:
    """Tasks on the device, and what they see."""

    base: Sight
    sights: Sequence[Sight]
    packnet: Sequence[DeviceOverlay]
    clr: Sequence[DeviceOverlay]


DTYPE = "bf16"


def make_engine(arch: str, size: int) -> Engine:
    """An engine on the GPU; rehearsing, on the CPU with the interpreter, replaying from Python."""
    args = {"width": 4, "blocks": [1, 1]} if arch == "tinyresnet" else {}
    backbone = read_backbone(create(arch, image_size=size, keep=0.5, seed=0, arch_args=args).data)
    if not REHEARSE:
        return Engine(backbone, device="cuda", slot_bytes=8 << 30, readers=3)
    from service.engine.gpu.masking import write_view
    from service.engine.gpu.operators import KERNELS

    ways = Ways(masking=write_view, kernels=KERNELS, capture=lambda work, stream: Recorded(work, 0))
    return Engine(backbone, slot_bytes=1 << 24, readers=3, onednn=False, ways=ways, graph_bytes=1 << 26)


def make_tasks(engine: Engine, clr: int) -> Tasks:
    """Eight views of one claim each, and `clr` tasks of the base; one CLR task has no adapter but the identity."""
    backbone = engine.backbone
    claim = claim_some(backbone)
    engine.claim("packnet", claim, {name: torch.randn(int(mask.sum())) * 0.01 for name, mask in claim.items()})
    bits, packnet, sights = engine.shared.shown(DTYPE, ("packnet",)), [], []
    for i in range(8):
        packnet.append(
            engine.load(f"packnet {i}", overlay(backbone, "linear", i), DTYPE, folds=True, shown=bits.clone())
        )
        sights.append(Sight(f"packnet {i}", ("packnet",)))
    tasks = [engine.load(f"clr {i}", overlay(backbone, "clr", i), DTYPE, folds=False) for i in range(clr)]
    return Tasks(Sight(backbone.digest, ()), sights, packnet, tasks)


def pictures(engine: Engine, count: int) -> np.ndarray:
    """uint8 [count, size, size, 3] of noise."""
    size = engine.backbone.manifest.image_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def replay_of(engine: Engine, sight: Sight, images: int, task: DeviceOverlay) -> Call:
    """What the engine launches for a batch of so many: the recorded forward alone."""
    engine.run(sight, DTYPE, [pictures(engine, images)], [task])
    found = [recording for _, (_, bucket), recording in engine._stages._all() if bucket == images]
    newest = max(found, key=lambda recording: recording.used_at)
    replay = newest.replay
    assert replay is not None

    def call() -> object:
        with torch.inference_mode():  # as the engine does
            return replay()

    return call


class Rival:
    """torch.compile over a network in channels_last bfloat16, normalisation included.

    Args:
        engine: whose backbone it is.
        overlay_seed: of the CLR task that it computes; None: the backbone under `head`.
    """

    def __init__(self, engine: Engine, head: torch.Tensor, overlay_seed: int | None = None) -> None:
        body = engine.backbone.body()
        if overlay_seed is not None:
            own = overlay(engine.backbone, "clr", overlay_seed)
            body = adapted(body, adapter_sites(body).keys())
            state = body.state_dict()
            state |= {f"{site}.adapter": taps for site, taps in own.adapter.items()}
            body.load_state_dict(state | dict(own.norm))
        self.body = body.eval().to(engine.device, DTYPES[DTYPE], memory_format=torch.channels_last)
        self.head = head.to(engine.device, DTYPES[DTYPE])
        self.device = engine.device
        preprocess = engine.backbone.manifest.preprocess
        self.mean, self.std = (
            torch.tensor(values, device=engine.device).view(3, 1, 1) for values in (preprocess.mean, preprocess.std)
        )
        backend = "eager" if REHEARSE else "inductor"
        self.forward = torch.compile(self._forward, backend=backend, dynamic=False)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std
        return torch.nn.functional.linear(self.body(images.to(self.head.dtype)), self.head)

    def on_device(self, images: np.ndarray) -> Call:
        """The forward of pixels that are on the device already."""
        pixels = torch.from_numpy(images).to(self.device)

        def call() -> object:
            with torch.inference_mode():
                return self.forward(pixels)

        call()
        return call

    def through(self, images: np.ndarray) -> Call:
        """From pixels on the host to logits on the host, through pinned memory."""
        pinned = torch.from_numpy(images.copy())
        pinned = pinned.pin_memory() if self.device.type == "cuda" else pinned
        pixels = pinned.to(self.device)

        def call() -> object:
            with torch.inference_mode():
                pinned.numpy()[:] = images
                pixels.copy_(pinned, non_blocking=True)
                return self.forward(pixels).float().cpu()

        call()
        return call


def check_answers(bench: Bench, tasks: Tasks) -> list[str]:
    """The engine's logits for one task of each kind against float32 in plain torch."""
    engine, faults = bench.engine, list[str]()
    images = pictures(engine, 1 if REHEARSE else 3)
    pixels = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), engine.backbone.manifest.preprocess)
    own = overlay(engine.backbone, "clr", 0)
    sites, body = adapter_sites(engine.backbone.shape_only()).keys(), engine.backbone.body()
    with torch.inference_mode():
        network = adapted(body, sites)
        network.load_state_dict(
            network.state_dict() | {f"{site}.adapter": taps for site, taps in own.adapter.items()} | dict(own.norm)
        )
        alone = torch.nn.functional.linear(network.eval()(pixels), own.head_weight, own.head_bias)
    for name, batch, asked in (
        ("alone", [images], [tasks.clr[0]]),
        ("mixed", [images, images[:1]], [tasks.clr[0], tasks.clr[1]]),
    ):
        got = engine.run(tasks.base, DTYPE, batch, asked)
        for at, logits in enumerate(got):
            if asked[at] is tasks.clr[0]:
                faults += [f"clr {name}: {fault}" for fault in probe_faults(alone, torch.from_numpy(logits), DTYPE)]
    cold = engine.run(tasks.sights[0], DTYPE, [images], [tasks.packnet[0]])[0]
    engine.slots.drop(tasks.sights[0].key)
    again = engine.run(tasks.sights[0], DTYPE, [images], [tasks.packnet[0]])[0]
    if not np.allclose(cold, again, rtol=1e-3, atol=1e-3 * float(np.abs(cold).max())):
        faults.append("packnet: a view written again gives other logits")
    return faults


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
    for name, time_us in took.items():
        bench.note(f"batch {bench.large}, {name}, thousand images/s", bench.large / time_us * 1e3)
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


def run_tests() -> int:
    """`pytest tests/gpu`; the exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", "-m", "not slow"]
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False, timeout=240).returncode


def main() -> int:
    """Check, measure, print the rows and end in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=450.0, help="Nothing new is begun after so long.")
    parser.add_argument("--rehearse", action="store_true", help="Tiny, on the CPU.")
    parser.add_argument("--no-tests", action="store_true", help="Without `pytest tests/gpu`.")
    args = parser.parse_args()
    started = time.monotonic()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not (REHEARSE or torch.cuda.is_available()):
        print("There is no usable NVIDIA GPU here, so nothing was measured; --rehearse tries the script on the CPU.")
        return 2
    torch.set_num_threads(1 if REHEARSE else 8)
    if not args.no_tests and run_tests() != 0:
        print("The tests fail here: nothing was measured.")
        return 1
    arch, size, small, large = ("tinyresnet", 8, 8, 2) if REHEARSE else ("resnet50", 224, 64, 256)
    bench = Bench(make_engine(arch, size), 1 if REHEARSE else args.rounds, small, large)
    ways = bench.engine.ways
    for name in ("masking", "kernels", "capture"):
        bench.note(f"fast way: {name}", "in use" if getattr(ways, name) is not None else "NOT IN USE, see the log")
    tasks = make_tasks(bench.engine, small)
    faults = check_answers(bench, tasks)
    if faults:
        print("The engine's answers are wrong here, so nothing was measured:", *faults, sep="\n  ")
        return 1
    print(f"answers agree with float32 ({time.monotonic() - started:.0f} s)\n", flush=True)

    def left() -> bool:
        return time.monotonic() - started < args.seconds

    head = torch.randn(10, bench.engine.backbone.features)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("swap", lambda: measure_swap(bench, tasks)),
        ("batch 1", lambda: measure_single(bench, tasks)),
        ("packnet", lambda: measure_packnet(bench, tasks)),
        ("large batch", lambda: measure_batch(bench, tasks, Rival(bench.engine, head))),
        ("clr", lambda: measure_mixed(bench, tasks, Rival(bench.engine, head, 0) if left() else None)),
    ]
    if bench.on_gpu:
        single = replay_of(bench.engine, tasks.sights[0], 1, tasks.packnet[0])
        many = replay_of(bench.engine, tasks.sights[0], large, tasks.packnet[0])
        mixed = replay_of(bench.engine, tasks.base, small, tasks.clr[0])
        steps += [(f"profile {n}", lambda n=n, c=c: profile(n, c)) for n, c in
                  (("batch 1", single), (f"batch {large}", many), ("clr mixed", mixed))]  # fmt: skip
    missing: list[str] = []
    for name, step in steps:
        if not left():
            missing.append(f"{name}: out of time")
            continue
        try:
            step()
        except Exception as error:  # the other rows are still worth their minutes
            missing.append(f"{name}: {type(error).__name__}: {error}")
        print(f"      ({name}: at {time.monotonic() - started:.0f} s)", flush=True)
    for line in missing:
        print("NOT MEASURED", line)
    rows = [vars(row) | {"value": round(row.value, 3), "pass": None if REHEARSE else row.passes} for row in bench.rows]
    summary = {
        "benchmark": "gpu",
        "rehearsed": REHEARSE,
        "arch": arch,
        "size": size,
        "dtype": DTYPE,
        "rows": rows,
        "notes": bench.notes,
        "rounds": bench.rounds,
        "missing": missing,
        "recorded_mib": bench.engine.recorded_bytes >> 20,
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "triton")},
        "device": bench.engine.device_name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))
    return 0 if not missing else 1


if __name__ == "__main__":
    sys.exit(main())
