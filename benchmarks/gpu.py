"""The engine on a GPU: that it is right there, and the rows of its targets, in one run of under eight minutes.

    python benchmarks/gpu.py [--rounds 7] [--seconds 450] [--no-tests]
    python benchmarks/gpu.py --rehearse          the same steps, tiny, on the CPU: to try the script, not to measure

It needs torch 2.11 or newer with CUDA, torchvision, numpy, Pillow, safetensors, pydantic and sqlalchemy; no web
framework, and pytest with hypothesis and pytest-timeout for the tests. For a machine without network, fetch what it
lacks elsewhere:

    python -m pip install --target gpu-packages --only-binary=:all: --platform manylinux_2_17_x86_64 \
        --python-version 3.12 pydantic sqlalchemy
    PYTHONPATH=gpu-packages python benchmarks/gpu.py

ResNet-50 at 224 in bfloat16, random weights, one worker, eight threads of torch on the host. First `pytest tests/gpu`,
then the engine's answers against torch's float32; nothing is measured before both are right. `through the engine` is
the wall time of a call, from pixels on the host to logits on the host; `on the device` what the GPU needs for the
forward alone. The rival is torch.compile over the same weights in channels_last bfloat16, from the same pixels, the
contestants taking turns within each round. A large batch has a goal beyond its target, which need not be reached.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

MOST_TESTS_S = 240
COMPILE_S = 70.0
"""What torch.compile may take of a ResNet-50 under CLR."""
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed
if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is imported

try:
    import torch

    from benchmarks.gpu_rows.bench import REHEARSE, Bench
    from benchmarks.gpu_rows.rival import Rival
    from benchmarks.gpu_rows.rows import (
        measure_batch,
        measure_mixed,
        measure_packnet,
        measure_single,
        measure_swap,
        profile,
    )
    from benchmarks.gpu_rows.tasks import DTYPE, Tasks, check_answers, make_engine, make_tasks, replay_of
except ModuleNotFoundError as error:
    print(f"{error.name} is missing here; `head -20 {__file__}` says what is needed and how to bring it.")
    sys.exit(3)


def run_tests() -> int:
    """`pytest tests/gpu`; the exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", "-m", "not slow"]
    print("$", " ".join(command), flush=True)
    try:
        return subprocess.run(command, cwd=ROOT, check=False, timeout=MOST_TESTS_S).returncode
    except subprocess.TimeoutExpired:
        print(f"The tests were ended after {MOST_TESTS_S} s.")
        return 124


def steps_of(bench: Bench, tasks: Tasks, left: Callable[[float], bool]) -> list[tuple[str, Callable[[], None]]]:
    """What is measured, in this order, by name; `left` says whether there is time for so many seconds more."""
    head = torch.randn(10, bench.engine.backbone.features)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("swap", lambda: measure_swap(bench, tasks)),
        ("batch 1", lambda: measure_single(bench, tasks)),
        ("packnet", lambda: measure_packnet(bench, tasks)),
        ("large batch", lambda: measure_batch(bench, tasks, Rival(bench.engine, head))),
        ("clr", lambda: measure_mixed(bench, tasks, Rival(bench.engine, head, 0) if left(COMPILE_S) else None)),
    ]
    if bench.on_gpu:
        steps += [
            (f"profile {name}", lambda name=name, asked=asked: profile(name, replay_of(bench.engine, *asked)))
            for name, asked in (
                ("batch 1", (tasks.sights[0], 1, tasks.packnet[0])),
                (f"batch {bench.large}", (tasks.sights[0], bench.large, tasks.packnet[0])),
                ("clr mixed", (tasks.base, bench.small, tasks.clr[0])),
            )
        ]
    return steps


def measure(
    steps: Sequence[tuple[str, Callable[[], None]]], started: float, left: Callable[[float], bool]
) -> list[str]:
    """Take the steps; returns why some are missing."""
    missing: list[str] = []
    for name, step in steps:
        if not left(0.0):
            missing.append(f"{name}: out of time")
            continue
        try:
            step()
        except Exception as error:  # the other rows are still worth their minutes
            missing.append(f"{name}: {type(error).__name__}: {error}")
        print(f"      ({name}: at {time.monotonic() - started:.0f} s)", flush=True)
    for line in missing:
        print("NOT MEASURED", line)
    return missing


def summary_of(bench: Bench, missing: Sequence[str], started: float) -> dict[str, object]:
    """The last line."""
    rows = [vars(row) | {"value": round(row.value, 3), "pass": None if REHEARSE else row.passes} for row in bench.rows]
    return {
        "benchmark": "gpu",
        "rehearsed": REHEARSE,
        "arch": bench.engine.backbone.manifest.arch,
        "size": bench.engine.backbone.manifest.image_size,
        "dtype": DTYPE,
        "rows": rows,
        "notes": bench.notes,
        "rounds": bench.rounds,
        "workers": 1,
        "threads": torch.get_num_threads(),
        "missing": list(missing),
        "recorded_mib": bench.engine.recorded_bytes >> 20,
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "triton")},
        "device": bench.engine.device_name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(time.monotonic() - started),
    }


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

    def left(seconds: float) -> bool:
        return time.monotonic() - started + seconds < args.seconds

    missing = measure(steps_of(bench, tasks, left), started, left)
    print(json.dumps(summary_of(bench, missing, started)))
    return 0 if not missing else 1


if __name__ == "__main__":
    sys.exit(main())
