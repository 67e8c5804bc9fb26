"""How good a network is on a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from masks_store import Backbone, Preprocess, View, adapted, cut_view, normalise, plain_arithmetic, state_of

from .batches import eval_batches
from .data import Split
from .network import Network, memory_format
from .predictions import Predictions
from .ranks import total

BATCH = 64


@dataclass(frozen=True)
class Score:
    """How good a network is on a split.

    Attributes:
        top1: accuracy, a fraction of 1.
        loss: mean cross-entropy.
        images: so many pictures.
        hits: bool [images] on the CPU: which of them it got right, in the split's order.
    """

    top1: float
    loss: float
    images: int
    hits: Tensor = field(compare=False, repr=False)


def score(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    device: torch.device,
    threads: int,
    places: npt.NDArray[np.int64] | None = None,
    fabric: Fabric | None = None,
) -> Score:
    """Measure a network in eval mode; arguments as for `predict`."""
    return score_of(predict(model, split, preprocess, device, threads, places, fabric))


def score_of(predictions: Predictions) -> Score:
    """What predictions come to."""
    return Score(predictions.top1, predictions.loss, len(predictions.labels), torch.from_numpy(predictions.correct))


@torch.no_grad()
def predict(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    device: torch.device,
    threads: int,
    places: npt.NDArray[np.int64] | None = None,
    fabric: Fabric | None = None,
) -> Predictions:
    """What a network in eval mode says of every picture; the mode it was in is put back.

    Several processes take every so-manieth picture each, and all get the answers to all of them.

    Args:
        model: normalised images [N, 3, H, W] to logits [N, classes].
        split: its pictures, cropped at the centre.
        preprocess: the store's.
        device: where the model is.
        threads: that prepare pictures.
        places: int64 [classes of the split]: which logit each of them is; None where they are the same.
        fabric: connects the processes that measure together; None: this one measures alone.
    """
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    was_training = model.training
    model.eval()
    layout = memory_format(model)
    where = None if places is None else torch.from_numpy(places).to(device)
    parts: list[tuple[Tensor, ...]] = []
    for images, labels in eval_batches(
        split, preprocess, batch_size=BATCH, device=device, threads=threads, rank=rank, world=world
    ):
        if where is not None:
            labels = where[labels]
        logits = model(normalise(images, preprocess).contiguous(memory_format=layout)).float()
        predicted = logits.argmax(1)
        confidence = logits.softmax(1).gather(1, predicted[:, None])[:, 0]  # [N]
        parts.append((labels, predicted, confidence, F.cross_entropy(logits, labels, reduction="none")))
    model.train(was_training)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    if fabric is not None and world > 1:
        columns = _merge(fabric, columns, len(split))
    return Predictions(*(column.cpu().numpy() for column in columns))


def _merge(fabric: Fabric, columns: list[Tensor], count: int) -> list[Tensor]:
    """The columns of all processes, in the split's order.

    Each row is one process's and 0 in the others', so that the float64 sums are exact.
    """
    table = torch.zeros(4, count, dtype=torch.float64, device=fabric.device)
    if columns:  # none where there are fewer pictures than processes
        table[:, fabric.global_rank :: fabric.world_size] = torch.stack([column.double() for column in columns])
    labels, predicted, confidence, losses = total(fabric, table)
    return [labels.long(), predicted.long(), confidence.float(), losses.float()]


def predict_view(
    backbone: Backbone,
    view: View,
    split: Split,
    device: torch.device,
    threads: int,
    places: npt.NDArray[np.int64] | None = None,
) -> Predictions:
    """What a task says as its artifact gives it, in plain fp32; arguments as for `predict`."""
    network = network_of(backbone, view).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with plain_arithmetic():
        return predict(network, split, view.preprocess, device, threads, places)


def score_view(
    backbone: Backbone,
    view: View,
    split: Split,
    device: torch.device,
    threads: int,
    places: npt.NDArray[np.int64] | None = None,
) -> Score:
    """Measure a task as its artifact gives it, in plain fp32; arguments as for `predict`."""
    return score_of(predict_view(backbone, view, split, device, threads, places))


def served_network(backbone: Backbone, view: View) -> Network:
    """`network_of` what a server computes: of a task with units, the smaller network that is cut out for it."""
    return network_of(backbone, view if view.units is None else cut_view(backbone, view))


def network_of(backbone: Backbone, view: View) -> Network:
    """A network of its own that computes what a view computes, with fewer channels if the view is cut; eval mode."""
    body = adapted(backbone.body(), view.overlay.adapter)
    for name, tensor in state_of(backbone, view).items():  # load_state_dict refuses tensors of other shapes
        module, _, leaf = name.rpartition(".")
        owner, own = body.get_submodule(module), tensor.clone()
        setattr(owner, leaf, nn.Parameter(own) if isinstance(getattr(owner, leaf), nn.Parameter) else own)
    network = Network(body, view.overlay.head_weight.shape[1], len(view.classes), trains_norm=False)
    network.head.load_state_dict({"weight": view.overlay.head_weight, "bias": view.overlay.head_bias})
    return network.eval().requires_grad_(False)
