"""Convolutions by oneDNN's own interface (`native/onednn.c`), of the library that is inside torch.

torch's operator asks oneDNN at every call anew how to compute, and makes tensors for it: a tenth of a millisecond for
each convolution, a quarter of a ResNet-50's whole forward in bfloat16. Here a convolution is planned once for each size
of batch. And since what is planned says in which order a weight lies, every size of batch takes it from the same order.

torch's library does not export oneDNN, but names its functions: they are found where it is Linux and nobody has
stripped that library. Elsewhere torch's operator is called (`operators.py`).
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .compiled import compiled
from .memory import zeros
from .program import Conv
from .threads import computing_in

ACTS: dict[str | None, int] = {None: 0, "relu": 1, "relu6": 2}
MANY = 8
"""Pictures of the batch, besides one, that an order is chosen for."""
PLANNED = 64
"""Plans of a layer that are kept: for so many sizes of batch, or ways to end."""


class Refused(ValueError):
    """oneDNN cannot compute this."""


def describe() -> str:
    """Who computes convolutions, and why, for people."""
    library, what = found()
    return f"torch's operator for convolutions, for {what}" if library is None else f"{what} called directly"


_finding = threading.Lock()


def found() -> tuple[ctypes.CDLL | None, str]:
    """(the functions, their name and version), or (None, why there are none)."""
    with _finding:
        return _found()


@cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    library = compiled()
    if library is None:
        return None, "the package was installed without a C compiler"
    numbers = (ctypes.c_int64 * 3)()
    why = library.library.taskpack_onednn(numbers)
    if why is not None:
        return None, why.decode()
    return library.library, f"oneDNN {'.'.join(map(str, numbers))}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution as oneDNN plans it, for any number of pictures.

    Attributes:
        shape: of its weight, [O, I / groups, kH, kW].
        size: (H, W) of what it reads.
        stride, padding, dilation, groups: as in torch.
        dtype: float32 or bfloat16, of everything.
    """

    shape: tuple[int, ...]
    size: tuple[int, int]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    dtype: torch.dtype

    def result(self, batch: int) -> tuple[int, ...]:
        """Shape of what it gives for so many pictures."""
        given = zip(self.size, self.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        sides = ((size + 2 * pad - far * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, far in given)
        return batch, self.shape[0], *sides

    def numbers(self, batch: int, *, biased: bool = False, sums: bool = False, act: str | None = None) -> Any:
        """As `native/onednn.c` takes it."""
        o, i, *kernel = self.shape
        sizes = (batch, i * self.groups, *self.size, o, *kernel, *self.stride, *self.padding, *self.dilation)
        numbers = (*sizes, self.groups, self.dtype == torch.bfloat16, biased, sums, ACTS[act])
        return (ctypes.c_int64 * len(numbers))(*numbers)


def geometry_of(conv: Conv, shape: Sequence[int], size: tuple[int, int], dtype: torch.dtype) -> Geometry:
    """A traced convolution's.

    Raises:
        Refused: its padding is named and not numbered.
    """
    if isinstance(conv.padding, str):
        raise Refused("only convolutions with numbers for padding")
    return Geometry(tuple(shape), size, conv.stride, conv.padding, conv.dilation, conv.groups, dtype)


_orders: weakref.WeakValueDictionary[tuple[Geometry, int], Order] = weakref.WeakValueDictionary()
_ordering = threading.Lock()


def order_of(library: ctypes.CDLL, geometry: Geometry) -> Order:
    """The order for this convolution and torch's number of threads; the same one for all who hold it.

    Raises:
        Refused: oneDNN cannot compute this convolution.
    """
    key = geometry, torch.get_num_threads()
    with _ordering:
        order = _orders.get(key)
        if order is None:
            order = _orders[key] = Order(library, geometry)
        return order


class Order:
    """How a convolution's weight lies: as oneDNN wants it for a batch.

    Where one picture wants another order, and would have its weight brought into that at each call, it is as one
    picture wants it: for a batch that takes a smaller share of the time.

    Attributes:
        geometry: of the convolution.
        length: numbers in memory, some of which may be padding.

    Raises:
        Refused: oneDNN cannot compute this convolution.
    """

    def __init__(self, library: ctypes.CDLL, geometry: Geometry) -> None:
        self.geometry = geometry
        self._library = library
        self._plans: dict[object, Plan] = {}
        self._lock = threading.Lock()  # of changes to the plans
        alone, many = self._wanted(1), self._wanted(MANY)
        self._address = many
        if not library.taskpack_orders_equal(alone, many) and self._made(geometry, 1).moves:
            self._address = alone
        self.length = library.taskpack_order_bytes(self._address) // geometry.dtype.itemsize

    def _wanted(self, batch: int) -> int:
        address = self._library.taskpack_order(self.geometry.numbers(batch))
        if not address:
            raise Refused(f"oneDNN does not compute {self.geometry}")
        _freed_with(self, self._library.taskpack_order_free, address)
        return address

    def arranged(self, weight: Tensor) -> Tensor:
        """A weight of the geometry's shape and dtype, on the CPU, in this order: [length]."""
        out = torch.empty(self.length, dtype=weight.dtype)
        self._reorder(None, weight.contiguous(), self._address, out)
        return out

    def restored(self, memory: Tensor) -> Tensor:
        """The weight, row-major, that `memory` [length] holds."""
        out = torch.empty(self.geometry.shape, dtype=memory.dtype)
        self._reorder(self._address, memory, None, out)
        return out

    def _reorder(self, order: int | None, given: Tensor, wanted: int | None, out: Tensor) -> None:
        numbers = self.geometry.numbers(1)
        if self._library.taskpack_reorder(numbers, order, given.data_ptr(), wanted, out.data_ptr()):
            raise Refused(f"oneDNN does not bring the weight of {self.geometry} into its own order")

    def like(self, shape: tuple[int, ...]) -> Order:
        """Of the same convolution between other numbers of channels.

        Raises:
            Refused: oneDNN cannot compute it.
        """
        return order_of(self._library, replace(self.geometry, shape=shape))

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of what the convolution gives for [N, C, H, W]."""
        return self._of(shape[2], shape[3]).result(shape[0])

    def _of(self, height: int, width: int) -> Geometry:
        size = height, width
        return self.geometry if size == self.geometry.size else replace(self.geometry, size=size)

    def plan(
        self, pictures: tuple[int, int, int], *, biased: bool = False, sums: bool = False, act: str | None = None
    ) -> Plan:
        """How the convolution of a batch (N, H, W) is computed by as many threads as torch has now.

        By fewer where so many want another order: bringing the weight into that at each call takes longer than they
        save.

        Raises:
            Refused: oneDNN cannot compute it in any way.
        """
        key = pictures, biased, sums, act, torch.get_num_threads()
        found = self._plans.get(key)
        if found is None:
            batch, *size = pictures
            found = self._planned(self._of(*size), batch, biased=biased, sums=sums, act=act)
            with self._lock:
                if len(self._plans) >= PLANNED:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = found
        return found

    def _planned(self, geometry: Geometry, batch: int, **ending: Any) -> Plan:
        found = self._made(geometry, batch, **ending)
        threads = torch.get_num_threads()
        while found.moves and threads > 1:
            threads //= 2
            with computing_in(threads):
                fewer = self._made(geometry, batch, **ending)
            if not fewer.moves:
                return fewer
        return found

    def _made(self, geometry: Geometry, batch: int, **ending: Any) -> Plan:
        return Plan(self._library, geometry.numbers(batch, **ending), self._address, geometry.result(batch))


class Plan:
    """A convolution of one size of batch, planned; may be computed by several threads at once.

    Attributes:
        convolve: (plan, input, weight, bias, output, scratch), addresses all, computes it; 0: done.
        address: of the plan.
        shape: of the result.
        moves: whether the weight is brought into another order at each call.
        scratch: bytes.
    """

    __slots__ = ("__weakref__", "address", "convolve", "moves", "scratch", "shape")

    def __init__(self, library: ctypes.CDLL, numbers: Any, order: int, shape: tuple[int, ...]) -> None:
        self.convolve: Callable[..., int] = library.taskpack_convolve
        self.address: int = library.taskpack_convolution(numbers, order)
        if not self.address:
            raise Refused(f"oneDNN does not compute a convolution that gives {shape}")
        _freed_with(self, library.taskpack_convolution_free, self.address)
        self.shape = shape
        self.moves = bool(library.taskpack_convolution_moves(self.address))
        self.scratch: int = library.taskpack_convolution_scratch(self.address)


def _freed_with(owner: object, free: Callable[[int], None], address: int) -> None:
    """Give back what C has made when its owner goes; not at the end of the process, when oneDNN may be gone."""
    weakref.finalize(owner, free, address).atexit = False


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """A convolution's weight that lies in an order of oneDNN's.

    Attributes:
        memory: [order.length].
    """

    memory: Tensor
    order: Order

    @property
    def shape(self) -> torch.Size:
        """Of the weight: [O, I / groups, kH, kW]."""
        return torch.Size(self.order.geometry.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.memory.dtype


def convolve(
    x: Tensor, weight: Laid, bias: Tensor | None, add: Tensor | None, act: str | None, *, reuse: bool = False
) -> Tensor:
    """act(conv(x) + bias + add).

    Args:
        x: [N, C, H, W], of the dtype that the weight is of.
        weight: of the convolution.
        bias: [O] of that dtype.
        add: of the result's shape and that dtype.
        act: `relu`, `relu6` or None.
        reuse: whether the result may be written over `add`.

    Returns:
        [N, O, H', W'], channels last.
    """
    batch, channels, height, width = x.shape
    geometry = weight.order.geometry
    assert x.dtype == weight.dtype, "C takes numbers as they lie"
    assert channels == geometry.shape[1] * geometry.groups
    assert bias is None or (bias.dtype, len(bias)) == (x.dtype, geometry.shape[0])
    plan = weight.order.plan((batch, height, width), biased=bias is not None, sums=add is not None, act=act)
    x = x.contiguous(memory_format=torch.channels_last)
    if add is None:
        out = torch.empty(plan.shape, dtype=x.dtype, memory_format=torch.channels_last)
    elif reuse and add.is_contiguous(memory_format=torch.channels_last):
        out = add
    else:
        out = add.clone(memory_format=torch.channels_last)
    assert out.dtype == x.dtype
    assert out.shape == plan.shape
    failed = plan.convolve(
        plan.address,
        x.data_ptr(),
        weight.memory.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        thread_memory("scratch", plan.scratch).data_ptr(),
    )
    if failed:
        raise RuntimeError(f"oneDNN failed in a convolution of {geometry}")
    return out


_local = threading.local()
MOST_KEPT = 1 << 28
"""Bytes that a thread keeps under a name; more is for one call."""


def thread_memory(what: str, size: int) -> Tensor:
    """uint8 [at least `size`] that is this thread's own under this name until it asks again, from a multiple of 64."""
    held: Tensor | None = getattr(_local, what, None)
    if held is None or len(held) < size:
        setattr(_local, what, None)
        with torch.inference_mode(False):
            held = zeros(max(size, 64))
        if size <= MOST_KEPT:
            setattr(_local, what, held)
    return held
