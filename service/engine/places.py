"""How each shared weight lies in memory: as oneDNN's fastest convolution wants it where that can be shown to be safe.

oneDNN computes fastest from weights in blocks of output channels, in an order of its own that it chooses by shape,
dtype and processor. That order only permutes a weight's numbers (and pads them with zeros), so a mask that takes the
same way masks there, and a task's view can be written straight into it. Whether this holds is tried at the start, layer
by layer and bit by bit, and a layer for which it does not lies plainly: convolutions channels last, linear layers
row-major.

Two ways lead to oneDNN: its own interface (`onednn.py`), and where that is not found torch's private operators
(`torch.ops.mkldnn`). Where these are missing or refuse, the layer lies plainly too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from masks_store import positions, put

from . import onednn
from .behind import finish
from .onednn import MANY, Laid, Order, Refused, geometry_of, order_of
from .operators import Weight, conv2d
from .program import Conv
from .threads import computing_in

BLOCKS = (1, 8, 16, 24, 32, 48, 64)  # output channels that oneDNN keeps together
PAIRS = (1, 2, 4)  # input channels that it keeps together within them
SIZES = 9  # of pictures among which one is looked for to try a layer with


@dataclass(frozen=True, eq=False)
class Place:
    """How one layer's weight lies in memory: plainly, but for those of the classes below.

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

    @property
    def anywhere(self) -> bool:
        """Whether it can lie in any memory (`over`)."""
        return True

    def new(self) -> tuple[Weight, Tensor]:
        """Zeros: (what the operator takes, the same memory as [length])."""
        memory = torch.zeros(self.length, dtype=self.dtype, device=self.device)
        return self.over(memory), memory

    def over(self, memory: Tensor) -> Weight:
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
        """The weight [shape], row-major, that `memory` [length] holds; perhaps a view of it."""
        if len(self.shape) != 4:
            return memory.reshape(self.shape)
        o, i, h, w = self.shape
        return memory.reshape(o, h, w, i).permute(0, 3, 1, 2).contiguous()

    def moved(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Where in memory some of a weight's numbers lie.

        Their numbers in `where`, from 1 on, are sent through the order in digits that the dtype holds exactly.

        Args:
            where: int64 [N], ascending row-major places in the weight; on the CPU.

        Returns:
            (int64 [N], ascending positions in memory; int64 [N], which of `where` lies at each); on the CPU.
        """
        here = replace(self, device=torch.device("cpu"))  # the same order, without sending digits to and fro
        numbers, base, step = torch.arange(1, len(where) + 1), _WHOLE[self.dtype], 1
        found: Tensor | None = None  # [length]
        while found is None or step <= len(where):
            digits = torch.zeros(self.shape)
            put(digits, where, numbers // step % base)
            arranged = here.arranged(digits)
            found = arranged if found is None else found + arranged.double() * step
            step *= base
        at = positions(found != 0)
        return at, found[at].long() - 1

    def like(self, shape: torch.Size) -> Place:
        """A place of this kind for another number of channels, of which nothing is known but how to lie there."""
        return plain_place(shape, self.dtype, self.device)

    def tried_at(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The size (H, W), of these, of the pictures that its convolution is tried with."""
        return sizes[0]


@dataclass(frozen=True, eq=False)
class Ordered(Place):
    """A convolution's weight in an order of oneDNN's, which is called by its own interface.

    Attributes:
        order: of the weight.
    """

    order: Order

    def over(self, memory: Tensor) -> Laid:  # noqa: D102 - as Place
        return Laid(memory, self.order)

    def arranged(self, weight: Tensor) -> Tensor:  # noqa: D102 - as Place
        return self.order.arranged(weight.to("cpu", self.dtype))

    def restored(self, memory: Tensor) -> Tensor:  # noqa: D102 - as Place
        return self.order.restored(memory)

    def like(self, shape: torch.Size) -> Place:  # noqa: D102 - as Place
        try:
            order = self.order.like(tuple(shape))
        except Refused:
            return super().like(shape)
        return Ordered(shape, self.dtype, self.device, order.length, torch.empty(0), order)

    def tried_at(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:  # noqa: D102 - as Place
        # The first of some that is computed from this order, as the real size is most often: elsewhere oneDNN would
        # bring the weight into another order at each call, which takes long, and is not what will run.
        fit = (size for size in sizes[:SIZES] if not any(self.order.plan((batch, *size)).moves for batch in (1, MANY)))
        return next(fit, sizes[0])


@dataclass(frozen=True, eq=False)
class Opaque(Place):
    """A convolution's weight as oneDNN wants it, in a tensor of torch's that hides it.

    Attributes:
        conv: the convolution.
        size: (H, W) of what it reads.
    """

    conv: Conv
    size: tuple[int, int]

    @property
    def anywhere(self) -> bool:  # noqa: D102 - as Place
        return False

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

    def like(self, shape: torch.Size) -> Place:  # noqa: D102 - as Place
        length = len(memory_of(self.reordered(torch.zeros(shape)), self.dtype))
        return Opaque(shape, self.dtype, self.device, length, torch.empty(0), self.conv, self.size)

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


Ending = tuple[bool, str | None]
"""What comes behind a convolution in the same operator: whether something is added, and the activation."""


def ending_of(conv: Conv) -> Ending:
    """A convolution's own ending, in a forward whose norm is in the weights."""
    return conv.add is not None, conv.act


def onednn_place(
    conv: Conv, shape: torch.Size, dtype: torch.dtype, size: tuple[int, int], endings: Iterable[Ending] = ()
) -> Place | None:
    """Where oneDNN wants a convolution's weight; None where that cannot be used for masked weights.

    Args:
        conv: the convolution.
        shape, dtype: of its weight.
        size: (H, W) of what it reads.
        endings: those of other convolutions like it, whose place this is, too.
    """
    if isinstance(conv.padding, str):
        return None
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _tried(geometry, shape, dtype, size, frozenset({ending_of(conv), *endings}), torch.get_num_threads())


@cache
def _tried(
    geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int],
    shape: torch.Size,
    dtype: torch.dtype,
    size: tuple[int, int],
    endings: frozenset[Ending],
    threads: int,  # the order may depend on them
) -> Place | None:
    stride, padding, dilation, groups = geometry
    conv = Conv(0, 1, "", "", None, stride, padding, dilation, groups, None)
    ways: list[Callable[..., Place | None]] = [opaque] if onednn.found()[0] is None else [ordered, opaque]
    return next((place for way in ways if (place := way(conv, shape, dtype, size, endings)) is not None), None)


def ordered(
    conv: Conv, shape: torch.Size, dtype: torch.dtype, size: tuple[int, int], endings: Collection[Ending]
) -> Ordered | None:
    """In an order of oneDNN's, by its own interface, which must be there; None where that cannot be used."""
    library, _ = onednn.found()
    assert library is not None

    def made(channels: Tensor) -> Ordered:
        return Ordered(shape, dtype, torch.device("cpu"), order.length, channels, order)

    try:
        order = order_of(library, geometry_of(conv, shape, size, dtype))
        channels = _channels(made(torch.empty(0)))
        place = None if channels is None else made(channels)
        if place is None or not _masks_alike(place):
            return None
        return place if _computes_alike(place, conv, size, endings) else None
    except (Refused, RuntimeError):
        return None


def opaque(
    conv: Conv, shape: torch.Size, dtype: torch.dtype, size: tuple[int, int], endings: Collection[Ending]
) -> Opaque | None:
    """In a tensor of torch's that hides oneDNN's order; None where that cannot be used."""

    def made(length: int, channels: Tensor) -> Opaque:
        return Opaque(shape, dtype, torch.device("cpu"), length, channels, conv, size)

    try:
        length = len(made(0, torch.empty(0)).arranged(torch.zeros(shape)))
        channels = _channels(made(length, torch.empty(0)))
        place = None if channels is None else made(length, channels)
        if place is None or not (_lies_alike(place) and _masks_alike(place)):
            return None
        return place if _computes_alike(place, conv, size, endings) else None
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
    for together in (*BLOCKS, count):  # a depthwise's may all be together
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


def _lies_alike(place: Opaque) -> bool:
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


def _computes_alike(place: Place, conv: Conv, size: tuple[int, int], endings: Collection[Ending]) -> bool:
    """Whether the fused convolution agrees with the plain one on small pictures, alone and with each of its endings."""
    random = torch.Generator().manual_seed(0)
    o, i, kh, kw = place.shape
    weight = torch.randn(place.shape, generator=random).to(place.dtype)
    reach = [2 + (kernel - 1) * dilation for kernel, dilation in zip((kh, kw), conv.dilation, strict=True)]
    more = range(max(size))  # than the kernel needs, never more than the real size
    sizes = [(min(size[0], reach[0] + extra), min(size[1], reach[1] + extra)) for extra in more]
    side = place.tried_at(list(dict.fromkeys(sizes)))
    x = torch.randn((MANY, i * conv.groups, *side), generator=random).to(place.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(o, generator=random).to(place.dtype)
    tensor, memory = place.new()
    memory.copy_(place.arranged(weight))
    exact = F.conv2d(x.double(), weight.double(), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    for batch, given in product((x[:1], x), (bias, None)):
        plain = exact[: len(batch)] + (0.0 if given is None else given.double().view(-1, 1, 1))
        add = torch.randn(plain.shape, generator=random).to(place.dtype)
        bound = float(plain.abs().max()) * (1e-4 if place.dtype == torch.float32 else 2e-2)
        for adds, act in {(False, None), *endings}:
            added = add if adds else None
            expected = finish(plain.clone(), added, act)
            error = (conv2d(batch, tensor, given, conv, added, act) - expected).abs().max()
            if not float(error) <= bound:  # nor where it is no number
                return False
    return True
