"""The memory of all shared weights of one view, and where each layer's is in it (`places.py` says in which order)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .memory import zeros
from .operators import Weight
from .places import Place, ending_of, onednn_place, plain_place
from .program import Conv
from .threads import computing_in
from .ways import settle

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ALIGN = 64  # every layer's bits start on a multiple of this many positions
TRIED_AT_ONCE = 4
"""Layers for which oneDNN's order is tried at once; the start waits for it."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Every shared weight of one view, in memory of its own.

    Attributes:
        tensors: parameter name -> what the operators take.
        memory: parameter name -> the same memory as [its place's length].
        nbytes: of all.
        key: names the numbers of a task's own: equal keys, equal numbers and dtype; empty for the shared ones' views.
        flat: the memory of all in one piece, [positions of a mask], where `Layout.in_one_piece`; zeros between layers.
    """

    tensors: Mapping[str, Weight]
    memory: Mapping[str, Tensor]
    nbytes: int
    key: str = ""
    flat: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the shared weights of one dtype lie on one device.

    Attributes:
        places: parameter name -> place.
        offsets: parameter name -> the position of its first bit in a mask (`bits`).
        total: positions of a mask, a multiple of 64.
        threads: that the places were chosen for.
    """

    places: Mapping[str, Place]
    offsets: Mapping[str, int]
    total: int
    threads: int = 1

    @property
    def in_one_piece(self) -> bool:
        """Whether a view lies in one piece of memory, each layer where its bits lie in a mask."""
        return all(place.anywhere for place in self.places.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one `Weights`."""
        if self.in_one_piece:
            return self.total * next(iter(self.places.values())).dtype.itemsize
        return sum(place.length * place.dtype.itemsize for place in self.places.values())

    def new(self) -> Weights:
        """Zeros everywhere."""
        if self.in_one_piece:
            first = next(iter(self.places.values()))
            if first.device.type == "cpu":
                flat = zeros(self.total * first.dtype.itemsize).view(first.dtype)
            else:
                flat = torch.zeros(self.total, dtype=first.dtype, device=first.device)
            memory = {name: flat[self.offsets[name] :][: place.length] for name, place in self.places.items()}
            tensors = {name: place.over(memory[name]) for name, place in self.places.items()}
            settle(first.device)
            return Weights(tensors, memory, self.nbytes, flat=flat)
        made = {name: place.new() for name, place in self.places.items()}
        memory = {name: held for name, (_, held) in made.items()}
        return Weights({name: tensor for name, (tensor, _) in made.items()}, memory, self.nbytes)

    def bits(self, mask: Mapping[str, Tensor]) -> Tensor:
        """A mask as `masking.write` takes it.

        Args:
            mask: parameter name -> bool of its shape.

        Returns:
            uint8 [total / 8] on the layout's device, one bit a position, the first in the lowest bit.
        """
        return self.packed((name, mask[name].float()) for name in self.places)

    def packed(self, masks: Iterable[tuple[str, Tensor]]) -> Tensor:
        """`bits` of masks that are made one after another, for every layer.

        Args:
            masks: parameter name, and float32 of its shape, 0 where hidden.
        """
        shown = np.zeros(self.total // 8, np.uint8)
        for name, mask in masks:
            place, at = self.places[name], self.offsets[name] // 8  # layers begin at whole bytes
            own = np.packbits((place.arranged(mask) != 0).cpu().numpy(), bitorder="little")
            shown[at : at + len(own)] = own
        return torch.from_numpy(shown).to(next(iter(self.places.values())).device)


def layout_of(
    shapes: Mapping[str, torch.Size],
    convs: Mapping[str, Conv],
    sizes: Mapping[str, tuple[int, int]],
    dtype: str,
    device: torch.device,
    *,
    onednn: bool,
    threads: int | None = None,
) -> Layout:
    """Find a place for every shared weight.

    Args:
        shapes: parameter name -> shape.
        convs: parameter name -> the convolution that it belongs to; linear layers' are not there.
        sizes: parameter name -> (H, W) of what its convolution reads.
        dtype: `fp32` or `bf16`.
        device: where the weights lie.
        onednn: whether to try oneDNN's order; on the CPU only.
        threads: that will compute a forward, where they are not those of the thread that asks.
    """
    threads, kind = threads or torch.get_num_threads(), DTYPES[dtype]
    found: dict[str, Place | None] = {}
    if onednn and device.type == "cpu":
        found = _onednn_places(
            {name: conv for name, conv in convs.items() if name in shapes}, shapes, sizes, kind, threads
        )
    places = {name: found.get(name) or plain_place(shape, kind, device) for name, shape in shapes.items()}
    return _one_behind_the_other(places, threads)


def _onednn_places(
    convs: Mapping[str, Conv],
    shapes: Mapping[str, torch.Size],
    sizes: Mapping[str, tuple[int, int]],
    dtype: torch.dtype,
    threads: int,
) -> dict[str, Place | None]:
    """By parameter; those that are alike are tried once, with the endings of all of them, several at a time."""
    alike: dict[Hashable, list[str]] = {}
    for name, conv in convs.items():
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        alike.setdefault((geometry, shapes[name], sizes[name]), []).append(name)

    def try_one(names: list[str]) -> Place | None:
        first, endings = names[0], {ending_of(convs[name]) for name in names}
        return onednn_place(convs[first], shapes[first], dtype, sizes[first], endings)

    own, at_once = torch.get_num_threads(), max(1, min(len(alike), TRIED_AT_ONCE, os.cpu_count() or 1))
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        tried = dict(zip(alike, pool.map(try_one, alike.values()), strict=True))
    torch.set_num_threads(own)  # what the others set is the number of threads that have never asked, too
    return {name: tried[key] for key, names in alike.items() for name in names}


def _one_behind_the_other(places: Mapping[str, Place], threads: int) -> Layout:
    offsets: dict[str, int] = {}
    total = 0
    for name, place in places.items():
        offsets[name] = total
        total += -(-place.length // ALIGN) * ALIGN
    return Layout(places, offsets, total, threads)


def own_weights(
    key: str, weights: Mapping[str, Tensor], layout: Layout, scales: Mapping[str, Tensor] | None = None
) -> Weights:
    """A task's own smaller network, or its whole view, in places like the shared ones.

    Args:
        key: `own_key` of the weights and scales, or what else names them.
        weights: parameter name -> float32 weight; of any number of channels.
        layout: of the shared weights.
        scales: parameter name -> float32 [O], what the weight's output channels are multiplied with; layers without
            keep their weights.
    """
    shared = layout.places
    with computing_in(layout.threads):
        places = {
            name: shared[name] if weight.shape == shared[name].shape else shared[name].like(weight.shape)
            for name, weight in weights.items()
        }
    made = _one_behind_the_other(places, layout.threads).new()
    for name, weight in weights.items():
        made.memory[name].copy_(places[name].arranged(_scaled(name, weight, scales)))
    return replace(made, memory={}, flat=None, key=key)


def own_key(weights: Mapping[str, Tensor], dtype: str, scales: Mapping[str, Tensor] | None = None) -> str:
    """Digest of a task's own weights, float32, as its scales multiply them, and of the dtype to compute them in."""
    hasher = hashlib.sha256(dtype.encode())
    for name, weight in sorted(weights.items()):
        hasher.update(f"{name} {list(weight.shape)} ".encode())
        hasher.update(_scaled(name, weight, scales).detach().cpu().contiguous().numpy().data)
    return hasher.hexdigest()


def _scaled(name: str, weight: Tensor, scales: Mapping[str, Tensor] | None) -> Tensor:
    scale = None if scales is None else scales.get(name)
    return weight if scale is None else weight * scale.cpu().view(-1, *(1,) * (weight.dim() - 1))
