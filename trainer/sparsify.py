"""CLNP's graceful forgetting: which units a trained task keeps, found by one global threshold on activity.

The candidates go upwards from 0; the first whose sparsified network is worse on the validation split than the margin
allows ends the scan, and the one before it is kept (METHODS §3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, fx, nn

from masks_store import Preprocess, active, normalise, thresholds

from .batches import eval_batches
from .data import Source
from .interrupt import Interrupted
from .measure import BATCH, score
from .ranks import total
from .unit_network import UnitNetwork

MOST_ESTIMATED = 2048
"""Training pictures that the statistics of new units are estimated on."""


@dataclass(frozen=True)
class Bench:
    """What a method may measure a network on between two phases.

    Attributes:
        source: has `train` and `val`.
        preprocess: the store's.
        device: where the network is.
        threads: that prepare pictures.
        say: a line for the user.
        stop: whether to stop; asked by all processes at once.
        fabric: connects the processes that measure together; None: this one measures alone.
    """

    source: Source
    preprocess: Preprocess
    device: torch.device
    threads: int
    say: Callable[[str], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False
    fabric: Fabric | None = None

    @property
    def rank(self) -> int:
        """Which process this is."""
        return self.fabric.global_rank if self.fabric else 0

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size if self.fabric else 1


@dataclass(frozen=True)
class Candidate:
    """One threshold of the scan.

    Attributes:
        threshold: θ, a mean post-ReLU activation; None for the network before the scan, of which nothing is gated.
        val_top1: validation accuracy with no other units than these, a fraction of 1.
        units: that stay active, over all layers.
        accepted: whether that loses no more than the margin; the last that was accepted is what the task keeps.
    """

    threshold: float | None
    val_top1: float
    units: int
    accepted: bool


def sparsify(network: UnitNetwork, bench: Bench, margin: float) -> tuple[Candidate, ...]:
    """Gate the units that the task can do without.

    Units that were never active are gated first. Where even that costs more than the margin, nothing is gated.

    Args:
        network: trained, changed in place.
        bench: its pictures.
        margin: how much validation accuracy may be lost, in points.

    Returns:
        What was tried, upwards, the whole network first. A threshold that gates what the one before it did is not
        measured again and has its accuracy.

    Raises:
        Interrupted: `bench.stop` said so; what the network holds then is to be thrown away.
    """
    network.eval()
    activity = activities(network, bench)
    dense = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    best = _top1(network, bench)
    kept, kept_used = dense, network.seen
    tried = [Candidate(None, best, _count(network.seen), accepted=True)]
    for threshold in thresholds(activity, network.seen):
        used = active(activity, threshold, network.seen)
        if all(torch.equal(mask, kept_used[group]) for group, mask in used.items()):
            tried.append(replace(tried[-1], threshold=threshold))
            continue
        network.use(used, dense)
        estimate(network, bench)
        top1 = _top1(network.cut(), bench)  # equal, and cheaper from candidate to candidate
        tried.append(Candidate(threshold, top1, _count(used), accepted=100 * (best - top1) <= margin + 1e-9))
        if not tried[-1].accepted:
            break
        kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        kept_used = used
    network.load_state_dict(kept)
    last = kept_of(tried)
    shown = "none" if last.threshold is None else f"{last.threshold:.4g}"
    bench.say(
        f"threshold {shown}: {last.units:,} of {tried[0].units:,} units stay active; "
        f"validation {100 * best:.1f} % before, {100 * last.val_top1:.1f} % after"
    )
    return tuple(tried)


def kept_of(scan: Sequence[Candidate]) -> Candidate:
    """The candidate that a scan ended with: the last that was accepted, and the first always is."""
    return next(candidate for candidate in reversed(scan) if candidate.accepted)


@torch.no_grad()
def activities(network: UnitNetwork, bench: Bench) -> dict[str, Tensor]:
    """Each unit's mean post-ReLU activation over the un-augmented training split, in eval mode.

    A filter's is over pictures and positions; of a group with several post-ReLU points the largest counts. The sums
    are float64, and over all processes.

    Returns:
        Group -> float64 [units], on the CPU.
    """
    network.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, out: Tensor) -> None:
        rest = [d for d in range(out.dim()) if d != 1]
        total = out.sum(rest, dtype=torch.float64)  # [N, C, …] to [C]
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + out.numel() // out.shape[1]

    listener = _Listener(network, note)
    for images, _ in eval_batches(
        bench.source.splits["train"],
        bench.preprocess,
        batch_size=BATCH,
        device=bench.device,
        threads=bench.threads,
        rank=bench.rank,
        world=bench.world,
    ):
        listener.run(_inputs(images, bench))
        if bench.world == 1:  # of several processes one may have a batch more than another
            _heed(bench)
    if bench.fabric is not None and bench.world > 1:
        _heed(bench)
        for name in network.graph.relus:
            together = total(bench.fabric, torch.cat([sums[name], sums[name].new_tensor([counts[name]])]))
            sums[name], counts[name] = together[:-1], int(together[-1])
    found = {group: torch.zeros(size, dtype=torch.float64) for group, size in network.graph.sizes.items()}
    for name, group in network.graph.relus.items():
        found[group] = torch.maximum(found[group], (sums[name] / counts[name]).cpu())
    return found


@torch.no_grad()
def estimate(network: UnitNetwork, bench: Bench) -> None:
    """Estimate the running statistics of the free channels anew; those of all others stay (METHODS §3 (f)).

    The mean over batches of training pictures, un-augmented, as many as `MOST_ESTIMATED`, spread over the split.
    """
    norms = [norm for norm in network.norms.values() if bool(norm.free.any())]
    train = bench.source.splits["train"]
    chosen = np.linspace(0, len(train) - 1, min(MOST_ESTIMATED, len(train))).astype(np.int64)
    parts = np.split(chosen, range(BATCH, len(chosen), BATCH))
    parts = [part[bench.rank :: bench.world] for part in parts if len(part) >= max(2, bench.world)]
    if not norms:
        return
    network.eval()
    usual = [norm.momentum for norm in norms]
    for i, part in enumerate(parts):
        for norm in norms:
            norm.train()
            norm.momentum = 1.0 / (i + 1)  # a plain mean over the batches; the first forgets what was
        squares = train.squares(part, bench.preprocess)  # [B, size, size, 3]
        network(_inputs(torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2))).to(bench.device), bench))
        _heed(bench)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    network.eval()


class _Listener(fx.Interpreter):
    """Runs a body and hands over what stands behind each ReLU."""

    def __init__(self, network: UnitNetwork, note: Callable[[str, Tensor], None]) -> None:
        super().__init__(network.body, graph=network.graph.trace)
        self._relus, self._note = network.graph.relus, note

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        if n.name in self._relus:
            self._note(n.name, out)
        return out


def _inputs(images: Tensor, bench: Bench) -> Tensor:
    return normalise(images, bench.preprocess).contiguous(memory_format=torch.channels_last)


def _top1(network: nn.Module, bench: Bench) -> float:
    _heed(bench)
    val = bench.source.splits["val"]
    return score(network, val, bench.preprocess, bench.device, bench.threads, fabric=bench.fabric).top1


def _heed(bench: Bench) -> None:
    if bench.stop():
        raise Interrupted


def _count(units: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in units.values())
