"""The engine and its tasks, and whether they answer rightly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.serve_engine import claim_some, overlay
from masks_store import adapted, adapter_sites, create, normalise, probe_faults, read_backbone
from service.engine import DeviceOverlay, Engine, Sight
from service.engine.stages import Recorded
from service.engine.ways import Ways

from .bench import REHEARSE, Bench, Call, pictures

DTYPE = "bf16"


@dataclass(frozen=True)
class Tasks:
    """Tasks on the device, and what they see."""

    base: Sight
    sights: Sequence[Sight]
    packnet: Sequence[DeviceOverlay]
    clr: Sequence[DeviceOverlay]


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


def replay_of(engine: Engine, sight: Sight, images: int, task: DeviceOverlay) -> Call:
    """What the engine launches for a batch of so many: the recorded forward alone."""
    engine.run(sight, DTYPE, [pictures(engine, images)], [task])
    found = [recording for _, (_, bucket), recording in engine._stages._all() if bucket == images]
    newest = max(found, key=lambda recording: recording.used_at)
    replay = newest.replay
    assert replay is not None
    if engine.device.type == "cuda" and not isinstance(getattr(replay, "__self__", None), torch.cuda.CUDAGraph):
        raise RuntimeError(f"a batch of {images} runs without a recording; the log says why")

    def call() -> object:
        with torch.inference_mode():  # as the engine does
            return replay()

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
