"""How each shared weight lies in memory: as oneDNN's fastest convolution wants it where that can be shown to be safe.

oneDNN computes fastest from weights in blocks of output channels, in an order of its own that it chooses by shape,
dtype and processor. That order only permutes a weight's numbers (and pads them with zeros), so a mask that takes the
same way masks there, and a task's view can be written straight into it. Whether this holds is tried at the start, layer
by layer and bit by bit, and a layer for which it does not lies plainly: convolutions channels last, linear layers
row-major.

The operators are private to torch (`torch.ops.mkldnn`): where they are missing or refuse, the layer lies plainly too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .operators import conv2d
from .program import Conv
from .ways import settle

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ALIGN = 64  # every layer's bits start on a multiple of this many positions
BLOCKS = (1, 8, 16, 24, 32, 48, 64)  # output channels that oneDNN keeps together
PAIRS = (1, 2, 4)  # input channels that it keeps together within them


@dataclass(frozen=True, eq=False)
class Place:
    """How one layer's weight lies in memory; plainly unless it is a `OneDNN`.

    Attributes:
        shape: of the weight: [O, I, kH, kW] or [O, I].
        dtype: of the weight.
        device: where it lies.
        length: positions in memory; some may be padding.
        channels: int64 [blocks, period]: position p holds a number of output channel
            `channels[p // span, p % period]`, where span is `length // blocks`.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    length: int
    channels: Tensor

    def new(self) -> tuple[Tensor, Tensor]:
        """Zeros: (what the operator takes, the same memory as [length])."""
        memory = torch.zeros(self.length, dtype=self.dtype, device=self.device)
        return self.over(memory), memory

    def over(self, memory: Tensor) -> Tensor:
        """What the operator takes, in `memory` [length]."""
        if len(self.shape) != 4:
            return memory.view(self.shape)
        o, i, h, w = self.shape
        return memory.view(o, h, w, i).permute(0, 3, 1, 2)  # [O, I, H, W], I innermost in memory

    def arranged(self, weight: Tensor) -> Tensor:
        """A weight [shape], of any dtype and device, in the order of the memory: [length], perhaps a view of it."""
        weight = weight.to(self.device, self.dtype)
        return (weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight).reshape(-1)

    def restored(self, memory: Tensor) -> Tensor:
        """The weight [shape], row-major, that `memory` [length] holds."""
        weight, held = self.new()
        held.copy_(memory)
        return weight.contiguous()


@dataclass(frozen=True, eq=False)
class OneDNN(Place):
    """A convolution's weight as oneDNN wants it, on the CPU.

    Attributes:
        conv: the convolution.
        size: (H, W) of what it reads.
    """

    conv: Conv
    size: tuple[int, int]

    def new(self) -> tuple[Tensor, Tensor]:  # noqa: D102 - as Place
        tensor = self.reordered(torch.zeros(self.shape, dtype=self.dtype))
        return tensor, memory_of(tensor, self.dtype)

    def over(self, memory: Tensor) -> Tensor:  # noqa: D102 - as Place
        raise NotImplementedError("oneDNN's tensors lie in memory of their own")

    def arranged(self, weight: Tensor) -> Tensor:  # noqa: D102 - as Place
        tensor = self.reordered(weight)
        return memory_of(tensor, self.dtype).clone()

    def restored(self, memory: Tensor) -> Tensor:  # noqa: D102 - as Place
        tensor, held = self.new()
        held.copy_(memory)
        return tensor.to_dense()

    def reordered(self, weight: Tensor) -> Tensor:
        """A weight [shape] as an opaque oneDNN tensor."""
        return reordered(weight.to("cpu", self.dtype), self.conv, self.size)


def reordered(weight: Tensor, conv: Conv, size: tuple[int, int], batch: int = 8) -> Tensor:
    """A convolution's weight in the order that oneDNN wants for a batch of pictures of `size` (H, W)."""
    geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    channels = weight.shape[1] * conv.groups
    reorder = torch.ops.mkldnn._reorder_convolution_weight
    return reorder(weight.contiguous(), *geometry, [batch, channels, *size])


def memory_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of an opaque oneDNN tensor, as [its length]; valid as long as the tensor lives."""
    length = torch.ops.mkldnn._nbytes(tensor)
    raw = (ctypes.c_byte * length).from_address(torch.ops.mkldnn.data_ptr(tensor))
    return torch.frombuffer(raw, dtype=dtype)


def plain_place(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Place:
    """Channels last for a convolution, row-major for a linear layer."""
    return Place(shape, dtype, device, shape.numel(), torch.arange(shape[0])[:, None])


def onednn_place(conv: Conv, shape: torch.Size, dtype: torch.dtype, size: tuple[int, int]) -> Place | None:
    """Where oneDNN wants a convolution's weight; None where that cannot be used for masked weights."""
    if isinstance(conv.padding, str):
        return None
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _tried(geometry, shape, dtype, size, torch.get_num_threads())


@cache
def _tried(
    geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int],
    shape: torch.Size,
    dtype: torch.dtype,
    size: tuple[int, int],
    threads: int,  # the order may depend on them
) -> Place | None:
    stride, padding, dilation, groups = geometry
    conv = Conv(0, 1, "", "", None, stride, padding, dilation, groups, None)
    try:
        place = OneDNN(shape, dtype, torch.device("cpu"), 0, torch.empty(0), conv, size)
        channels = _channels(place)
        if channels is None:
            return None
        place = OneDNN(shape, dtype, place.device, len(place.arranged(torch.zeros(shape))), channels, conv, size)
        return place if _lies_alike(place) and _masks_alike(place) and _computes_alike(place) else None
    except (AttributeError, RuntimeError, TypeError, ValueError):  # this torch has no such operator, or it refuses
        return None


def _channels(place: Place) -> Tensor | None:
    """The output channel of each position, as a pattern that repeats; None where it is no such pattern.

    Channel numbers are sent through the reorder in digits that the dtype holds exactly.
    """
    count, base = place.shape[0], _WHOLE[place.dtype]
    numbers = (1 + torch.arange(count)).view(-1, *(1,) * (len(place.shape) - 1)).expand(place.shape)
    found = place.arranged(numbers % base).int() - 1  # [length]; padding: -1
    if count >= base:
        found += place.arranged(numbers // base).int() * base
    for together in BLOCKS:
        for pairs in PAIRS:
            blocks, period = -(-count // together), together * pairs
            if len(found) % (blocks * period):
                continue
            pattern = found.view(blocks, -1, period)
            if _repeated(pattern[:, :8]) is None:  # most fail in their first lines
                continue
            first = _repeated(pattern)
            if first is not None:
                return first.clamp_min(0).long()
    return None


_WHOLE = {torch.float32: 1 << 24, torch.bfloat16: 1 << 8}
"""Whole numbers up to these are exact."""


def _repeated(pattern: Tensor) -> Tensor | None:
    """[blocks, n, period] -> the [blocks, period] that all n are, but for padding (-1); None where they differ."""
    first = pattern.amax(dim=1)
    return first if bool(((pattern == first[:, None]) | (pattern == -1)).all()) else None


def _lies_alike(place: OneDNN) -> bool:
    """Whether one picture and a batch want the same order, and a batch does in threads of any number.

    Where one picture wants another, the convolution would bring the weight from one order into the other at each call,
    which takes many times as long as computing with it. Where threads do, two of them would lay a view differently.
    """
    weight = torch.rand(place.shape, generator=torch.Generator().manual_seed(0)).to(place.dtype)

    def order(batch: int, threads: int) -> Tensor:
        with computing_in(threads):
            tensor = reordered(weight, place.conv, place.size, batch)
        return memory_of(tensor, place.dtype).clone()

    own = torch.get_num_threads()
    first = order(8, own)
    others = [order(1, own), order(8, 1), order(8, os.cpu_count() or 1)]
    return all(other.shape == first.shape and torch.equal(other, first) for other in others)


def _masks_alike(place: Place) -> bool:
    """Whether arranging a masked weight gives the same bits as masking the arranged one."""
    weight = torch.rand(place.shape, generator=torch.Generator().manual_seed(0)).add_(0.5).to(place.dtype)
    mask = weight < 1.0
    masked = torch.where(mask, weight, 0.0)
    here = torch.where(place.arranged(mask) != 0, place.arranged(weight), 0.0)
    there = place.arranged(masked)
    return torch.equal(here, there) and torch.equal(place.restored(there), masked)


def _computes_alike(place: OneDNN) -> bool:
    """Whether the fused convolution agrees with the plain one, on a small picture."""
    random = torch.Generator().manual_seed(0)
    conv, (o, i, kh, kw) = place.conv, place.shape
    weight = torch.randn(place.shape, generator=random).to(place.dtype)
    reach = [2 + (kernel - 1) * dilation for kernel, dilation in zip((kh, kw), conv.dilation, strict=True)]
    side = [min(size, most) for size, most in zip(place.size, reach, strict=True)]
    x = torch.randn((1, i * conv.groups, *side), generator=random).to(place.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(o, generator=random).to(place.dtype)
    tensor, memory = place.new()
    memory.copy_(place.arranged(weight))
    plain = F.conv2d(x.double(), weight.double(), bias.double(), conv.stride, conv.padding, conv.dilation, conv.groups)
    bound = float(plain.abs().max()) * (1e-4 if place.dtype == torch.float32 else 2e-2)
    for add in (None, torch.randn(plain.shape, generator=random).to(place.dtype)):
        expected = plain.relu() if add is None else (plain + add).relu()
        if float((conv2d(x, tensor, bias, conv, add, "relu") - expected).abs().max()) > bound:
            return False
    return True


@dataclass(frozen=True, eq=False)
class Weights:
    """Every shared weight of one view, in memory of its own.

    Attributes:
        tensors: parameter name -> what the operators take.
        memory: parameter name -> the same memory as [its place's length].
        nbytes: of all.
        key: digest of names, shapes, numbers and dtype, for a task's own; empty for the shared ones' views.
        flat: the memory of all in one piece, [positions of a mask], where `Layout.in_one_piece`; zeros between layers.
    """

    tensors: Mapping[str, Tensor]
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
    """

    places: Mapping[str, Place]
    offsets: Mapping[str, int]
    total: int

    @property
    def in_one_piece(self) -> bool:
        """Whether a view lies in one piece of memory, each layer where its bits lie in a mask."""
        return not any(isinstance(place, OneDNN) for place in self.places.values())

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
        shown = np.zeros(self.total, dtype=bool)
        for name, place in self.places.items():
            at = self.offsets[name]
            shown[at : at + place.length] = (place.arranged(mask[name].float()) != 0).cpu().numpy()
        device = next(iter(self.places.values())).device
        return torch.from_numpy(np.packbits(shown, bitorder="little")).to(device)


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
    places: dict[str, Place] = {}
    offsets: dict[str, int] = {}
    total = 0
    with computing_in(threads or torch.get_num_threads()):
        for name, shape in shapes.items():
            place = None
            if onednn and device.type == "cpu" and name in convs:
                place = onednn_place(convs[name], shape, DTYPES[dtype], sizes[name])
            places[name] = place or plain_place(shape, DTYPES[dtype], device)
            offsets[name] = total
            total += -(-places[name].length // ALIGN) * ALIGN
    return Layout(places, offsets, total)


@contextmanager
def computing_in(threads: int) -> Generator[None]:
    """Let torch compute in so many threads; their number is this thread's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_weights(
    key: str,
    weights: Mapping[str, Tensor],
    convs: Mapping[str, Conv],
    sizes: Mapping[str, tuple[int, int]],
    layout: Layout,
) -> Weights:
    """A task's own smaller network, or its whole view, in places like the shared ones.

    Args:
        key: `own_key` of the weights.
        weights: parameter name -> float32 weight, scaled already; of any number of channels.
        convs, sizes: as in `layout_of`.
        layout: of the shared weights, for which layers oneDNN's order was found good.
    """
    tensors: dict[str, Tensor] = {}
    nbytes = 0
    for name, weight in weights.items():
        place = layout.places[name]
        if isinstance(place, OneDNN):
            tensors[name] = reordered(weight.to(place.dtype), convs[name], sizes[name])
            nbytes += memory_of(tensors[name], place.dtype).nbytes  # with what oneDNN pads it with
        else:
            own = plain_place(weight.shape, place.dtype, place.device)
            tensors[name], memory = own.new()
            memory.copy_(own.arranged(weight))
            nbytes += memory.nbytes
    return Weights(tensors, {}, nbytes, key)


def own_key(weights: Mapping[str, Tensor], dtype: str) -> str:
    """Digest of a task's own weights, float32, and of the dtype that they are computed in."""
    hasher = hashlib.sha256(dtype.encode())
    for name, weight in sorted(weights.items()):
        hasher.update(f"{name} {list(weight.shape)} ".encode())
        hasher.update(weight.detach().cpu().contiguous().numpy().data)
    return hasher.hexdigest()
