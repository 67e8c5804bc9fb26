"""Joint training: one network with a head per task that sees all tasks at once, the bound that no sequence passes."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masks_store import Preprocess, create, normalise, read_backbone
from trainer.augment import DRAWS, cut_windows, resample, window_side
from trainer.batches import batch_sizes
from trainer.data import Source, Split, load_source
from trainer.draws import draw, draw_key, draw_order
from trainer.measure import predict
from trainer.metrics import calibration_error, macro_f1
from trainer.network import memory_format
from trainer.phase import Phase, learning_rate, make_optimizer
from trainer.small_maps import SmallMaps

from .packing import Found
from .variants import Protocol

BATCH, CLIP, CPU = 32, 5.0, torch.device("cpu")
Mixed = list[tuple[int, Tensor, Tensor]]
"""A batch: per task in it its number, uint8 [B, 3, size, size] and int64 [B]."""


def mixed_batches(splits: Sequence[Split], preprocess: Preprocess, seed: int, epoch: int) -> Generator[Mixed]:
    """One epoch over the pictures of all tasks together, shuffled, cropped as `trainer` crops."""
    owners = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    places = np.concatenate([np.arange(len(split), dtype=np.int64) for split in splits])
    order = draw_order(draw_key(seed, "joint", "train", epoch, "order"), len(owners))
    keys = [draw_key(seed, f"joint {task}", "train", epoch, "crop") for task in range(len(splits))]
    for batch in np.split(order, np.cumsum(batch_sizes(len(order), BATCH))[:-1]):
        parts: Mixed = []
        for task in np.unique(owners[batch]).tolist():
            split, chosen = splits[task], places[batch[owners[batch] == task]]
            side = window_side(split.canvas_side(preprocess))
            canvases = split.canvases(chosen, preprocess)
            windows = cut_windows(canvases, draw(keys[task], chosen, DRAWS), preprocess, side=side, flip=False)
            parts.append((task, resample(windows, preprocess.size), torch.from_numpy(split.labels[chosen])))
        yield parts


def mixed_loss(
    body: nn.Module, heads: nn.ModuleList, parts: Mixed, preprocess: Preprocess, layout: torch.memory_format
) -> Tensor:
    """Mean cross-entropy over a mixed batch's pictures, each under its own task's head."""
    images = normalise(torch.cat([pixels for _, pixels, _ in parts]), preprocess)
    with SmallMaps():  # as the trainer computes
        features = body(images.contiguous(memory_format=layout)).split([len(labels) for _, _, labels in parts])
    losses = [
        F.cross_entropy(heads[task](own), labels, reduction="sum")
        for own, (task, _, labels) in zip(features, parts, strict=True)
    ]
    return torch.stack(losses).sum() / len(images)


def train_jointly(sources: Mapping[str, Path], protocol: Protocol, rate: float, seed: int) -> list[Found]:
    """Train on all sources at once, in float32; the epoch with the best mean validation accuracy over the tasks counts.

    SGD along a cosine, as `--method finetune` has it, over mixed batches: their loss is the mean over pictures, each
    under its own task's head.

    Returns:
        Per task, in the sources' order, what `contest` keeps of one.
    """
    backbone = read_backbone(
        create(protocol.arch, weights=protocol.weights, image_size=protocol.size, keep=1.0, seed=seed).data
    )
    preprocess = backbone.manifest.preprocess
    data = [load_source(str(path), seed=seed, preprocess=preprocess, threads=1) for path in sources.values()]
    torch.manual_seed(seed)
    heads = nn.ModuleList([nn.Linear(backbone.features, len(source.classes)) for source in data])
    body = backbone.body()
    network = nn.ModuleDict({"body": body, "heads": heads}).requires_grad_(True)
    layout = memory_format(network)
    network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    phase, started = Phase("joint", protocol.epochs, rate, "cosine"), time.process_time()
    optimizer = make_optimizer(phase, list(network.parameters()))
    splits = [source.splits["train"] for source in data]
    steps = len(batch_sizes(sum(map(len, splits)), BATCH))
    best, kept = -1.0, dict[str, Tensor]()
    for epoch in range(protocol.epochs):
        network.train()
        for step, parts in enumerate(mixed_batches(splits, preprocess, seed, epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, epoch, step, steps)
            optimizer.zero_grad()
            mixed_loss(body, heads, parts, preprocess, layout).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
        tops = [top1 for top1, *_ in measure(body, heads, data, preprocess, "val")]
        if np.mean(tops) > best:
            best, kept = float(np.mean(tops)), {name: own.clone() for name, own in network.state_dict().items()}
        print(f"joint, epoch {epoch + 1}: mean validation accuracy {np.mean(tops):.4f}", flush=True)
    network.load_state_dict(kept)
    seconds = round(time.process_time() - started, 3)
    vals, tests = (measure(body, heads, data, preprocess, split) for split in ("val", "test"))
    return [
        {
            "task": task,
            "version": None,
            "val_top1": val[0],
            "test_top1": top1,
            "hits": hits,
            "macro_f1": f1,
            "calibration_error": error,
            "bytes": sum(own.numel() * own.element_size() for own in kept.values()) // len(sources),
            "presentations": protocol.epochs * len(split),
            "cpu_seconds": round(seconds / len(sources), 3),
        }
        for task, val, (top1, hits, f1, error), split in zip(sources, vals, tests, splits, strict=True)
    ]


def measure(
    body: nn.Module, heads: nn.ModuleList, data: Sequence[Source], preprocess: Preprocess, split: str
) -> list[tuple[float, str, float, float]]:
    """Per task: accuracy, which pictures were right (`01…`), macro-F1, calibration error."""
    results: list[tuple[float, str, float, float]] = []
    for head, source in zip(heads, data, strict=True):
        said: Any = predict(nn.Sequential(body, head), source.splits[split], preprocess, CPU, threads=0)
        hits = "".join("01"[int(hit)] for hit in said.correct)
        errors = macro_f1(said.labels, said.predicted), calibration_error(said.correct, said.confidence)
        results.append((said.top1, hits, *errors))
    return results
