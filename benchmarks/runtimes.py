"""The forward of a task whose weights can be swapped, beside OpenVINO and ONNX Runtime, which compile them in.

    python -m benchmarks.runtimes [--arch resnet50 resnet18] [--threads 1 2] [--batch 1] [--rounds 7] [--out FILE]

Wall milliseconds of one batch, a process per contestant, taking turns, each with the same number of threads: ours is
the engine's own call for a PackNet task whose view is in a slot, from uint8 pixels to logits, normalisation included;
the runtimes get normalised float32 pixels and the task's network as a plain one of its own, exported to ONNX. `eager`
is that network in torch, channels last; `operators` our engine with torch's operators instead of oneDNN's interface.
Every contestant's logits are compared with torch's float32 first. The ratio is the faster runtime's time over ours, the
median over the rounds; the targets are 0.80 and 0.85 (bf16; one thread, two) of OpenVINO, 0.88 and 0.95 (fp32) of the
better one.

The runtimes live in an environment of their own, made with pip the first time (`--venv`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.environments import python_with
from benchmarks.serve_engine import CLASSES, claim_some, overlay
from benchmarks.turns import ROOT, Contestant, answer
from masks_store import Backbone, create, free_positions, normalise, probe_faults, read_backbone
from service.engine import DTYPES, Engine, Kernels, Sight, onednn

REQUIREMENTS = ("openvino==2026.4.1", "onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2")
RIVALS = {"fp32": ("openvino", "onnxruntime"), "bf16": ("openvino",)}
TARGETS = {("bf16", 1): 0.80, ("bf16", 2): 0.85, ("fp32", 1): 0.88, ("fp32", 2): 0.95}
Forward = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """What all contestants of a row have in common."""

    arch: str
    dtype: str
    batch: int
    size: int
    threads: int

    def flags(self) -> list[str]:
        """As a contestant's process takes them."""
        return [str(part) for key, value in vars(self).items() for part in (f"--{key}", value)]


# ---------------------------------------------------------------- the task, the same in every process


def shared_network(setting: Setting) -> Backbone:
    """A network of random weights, half of them free."""
    return read_backbone(create(setting.arch, image_size=setting.size, keep=0.5, seed=0).data)


def values_of(claim: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the task learned, layer by layer."""
    random = torch.Generator().manual_seed(2)
    return {name: torch.randn(int(mask.sum()), generator=random) * 0.01 for name, mask in claim.items()}


def task_alone(setting: Setting) -> nn.Module:
    """The task as a network of its own, float32."""
    backbone, own = shared_network(setting), overlay(shared_network(setting), "linear", 1)
    body, claim = backbone.body(), dict(claim_some(backbone))
    values, weights = values_of(claim), dict(body.named_parameters())
    with torch.no_grad():
        for name, room in free_positions(backbone, []).items():
            weights[name][room] = 0.0
            weights[name][claim[name]] = values[name]
    head = nn.Linear(backbone.features, CLASSES)
    head.load_state_dict({"weight": own.head_weight, "bias": own.head_bias})
    return nn.Sequential(body, head).eval()


def pixels_of(setting: Setting) -> np.ndarray:
    """uint8 [batch, size, size, 3] of noise."""
    return np.random.default_rng(0).integers(0, 256, (setting.batch, setting.size, setting.size, 3), dtype=np.uint8)


def inputs_of(setting: Setting) -> torch.Tensor:
    """float32 [batch, 3, size, size]: the pixels normalised."""
    pixels = torch.from_numpy(pixels_of(setting)).permute(0, 3, 1, 2)
    return normalise(pixels, shared_network(setting).manifest.preprocess).contiguous()


# ---------------------------------------------------------------- the contestants: each returns its forward


def taskpack_forward(setting: Setting, model: Path, kernels: Kernels | None = None) -> Forward:
    """Our engine."""
    backbone = shared_network(setting)
    engine, claim, pixels = Engine(backbone, kernels=kernels), claim_some(backbone), pixels_of(setting)
    engine.claim("packnet", claim, values_of(dict(claim)))
    shown = engine.shared.shown(setting.dtype, ("packnet",))
    task = engine.load("packnet", overlay(backbone, "linear", 1), setting.dtype, folds=True, shown=shown)
    return lambda: engine.run(Sight("packnet", ("packnet",)), setting.dtype, [pixels], [task])[0]


def operators_forward(setting: Setting, model: Path) -> Forward:
    """Our engine where oneDNN's own interface is not found: each convolution is an operator of torch's."""
    onednn.found = lambda: (None, "left out")
    return taskpack_forward(setting, model)


def eager_forward(setting: Setting, model: Path) -> Forward:
    """Torch without anything."""
    dtype = DTYPES[setting.dtype]
    network = task_alone(setting).to(dtype, memory_format=torch.channels_last)
    inputs = inputs_of(setting).to(dtype, memory_format=torch.channels_last)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return network(inputs).float().numpy()

    return forward


def openvino_forward(setting: Setting, model: Path) -> Forward:
    """OpenVINO, one stream, the arithmetic that is asked for."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": setting.threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[setting.dtype],
    }
    request = openvino.Core().compile_model(str(model), "CPU", options).create_infer_request()
    inputs = inputs_of(setting).numpy()
    return lambda: np.array(request.infer([inputs], share_inputs=True)[0])


def onnxruntime_forward(setting: Setting, model: Path) -> Forward:
    """ONNX Runtime with all of its optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: inputs_of(setting).numpy()}
    return lambda: session.run(None, inputs)[0]


FORWARDS: dict[str, Callable[[Setting, Path], Forward]] = {
    "taskpack": taskpack_forward,
    "operators": operators_forward,
    "openvino": openvino_forward,
    "onnxruntime": onnxruntime_forward,
    "eager": eager_forward,
}


def prepared(name: str, setting: Setting, model: Path, calls: int) -> Callable[[], dict[str, object]]:
    """Prepared; each round gives milliseconds a call, and the logits."""
    torch.set_num_threads(setting.threads)
    forward = FORWARDS[name](setting, model)

    def one() -> dict[str, object]:
        logits = forward()
        started = time.perf_counter()
        for _ in range(calls):
            forward()
        return {"ms": (time.perf_counter() - started) * 1e3 / calls, "logits": logits.tolist()}

    return one


def export(setting: Setting, model: Path) -> None:
    """The task's network as ONNX, with its batch fixed."""
    torch.onnx.export(task_alone(setting), (inputs_of(setting),), str(model), dynamo=True, verbose=False)


# ---------------------------------------------------------------- the contest


def measured(setting: Setting, python: str, rounds: int, calls: int) -> dict[str, object]:
    """One row, printed as it is found.

    Raises:
        SystemExit: a contestant answers otherwise than torch does.
    """
    with tempfile.TemporaryDirectory(prefix="taskpack-runtimes-") as temporary:
        model = Path(temporary) / "task.onnx"
        command = [python, "-m", "benchmarks.runtimes", *setting.flags(), "--model", str(model)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        exported = subprocess.run([*command, "--contest", "export"], env=environment, capture_output=True, text=True)
        if exported.returncode:
            raise SystemExit(f"the network cannot be exported:\n{exported.stderr[-2000:]}")
        names = ("taskpack", "operators", *RIVALS[setting.dtype], "eager")
        contestants = [
            Contestant(name, [*command, "--contest", name, "--calls", str(calls)], setting.threads) for name in names
        ]
        taken: dict[str, list[float]] = {name: [] for name in names}
        with torch.inference_mode():
            expected = task_alone(setting)(inputs_of(setting))
        for turn in range(rounds + 1):
            for contestant in contestants:
                found = contestant.round()
                if turn:  # the first is for warming up, and for the answers
                    taken[contestant.name].append(found["ms"])
                elif faults := probe_faults(expected, torch.tensor(found["logits"]), setting.dtype):
                    raise SystemExit(f"{contestant.name} answers wrongly: {'; '.join(faults)}")
        for contestant in contestants:
            contestant.end()
    ratios = [
        min(taken[name][turn] for name in RIVALS[setting.dtype]) / taken["taskpack"][turn] for turn in range(rounds)
    ]
    ratio, target = statistics.median(ratios), TARGETS.get((setting.dtype, setting.threads))
    times = {name: round(statistics.median(ms), 2) for name, ms in taken.items()}
    what = f"{setting.arch} {setting.dtype} batch {setting.batch} threads {setting.threads}"
    verdict = "" if target is None else f" (target {target}: {'reached' if ratio >= target else 'missed'})"
    print(
        f"{what:36s} " + "  ".join(f"{name} {ms:.1f}" for name, ms in times.items()) + f"  ratio {ratio:.2f}{verdict}"
    )
    sys.stdout.flush()
    return vars(setting) | {
        "ms": times,
        "ratio": round(ratio, 3),
        "ratios": [round(one, 3) for one in ratios],
        "target": target,
    }


def contestant_process(arguments: argparse.Namespace) -> None:
    """`--contest`: a contestant's own process, or the one that exports."""
    setting = Setting(arguments.arch[0], arguments.dtype[0], arguments.batch[0], arguments.size, arguments.threads[0])
    if arguments.contest == "export":
        export(setting, arguments.model)
    else:
        answer(lambda: prepared(arguments.contest, setting, arguments.model, arguments.calls))


def versions() -> dict[str, str]:
    """Of what was measured."""
    theirs = [(name, version) for name, _, version in (requirement.partition("==") for requirement in REQUIREMENTS)]
    return {name: metadata.version(name) for name in ("taskpack", "torch", "torchvision")} | dict(theirs)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bf16", "fp32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=10, help="forwards of a round")
    parser.add_argument("--venv", type=Path, help="the runtimes' environment; by default in the cache")
    parser.add_argument("--out", type=Path, help="a JSON file of its own")
    parser.add_argument("--contest", choices=[*FORWARDS, "export"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Print a row for each setting, then one line of JSON."""
    arguments = parse()
    if arguments.contest:
        contestant_process(arguments)
        return
    python = python_with("runtimes", REQUIREMENTS, arguments.venv)
    print("wall ms of a batch; ratio: the faster runtime over ours")
    settings = [
        Setting(arch, dtype, batch, arguments.size, threads)
        for arch, dtype, threads, batch in product(arguments.arch, arguments.dtype, arguments.threads, arguments.batch)
    ]
    rows = [measured(setting, python, arguments.rounds, arguments.calls) for setting in settings]
    summary = {
        "benchmark": "runtimes",
        "workers": 1,
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "rows": rows,
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
