"""The first steps of a forward in one call of C: convolutions, what tasks have behind them, max pooling.

`native/chain.c` does them. A step by itself costs tens of microseconds besides its arithmetic: the interpreter, torch's
dispatcher, memory. A chain is worked out once for a network, a size of batch and what stands behind each layer: which
plan of oneDNN computes each convolution, and where in one piece of memory every value lies. What differs from call to
call are addresses: of the pixels, the weights, and of each task's biases or tables.

It reaches as far as every convolution's weight lies in an order of oneDNN's and every other step is a max pooling; the
rest (a ResNet's average, a head) is done step by step.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .behind import BOUNDS, GRAIN, SCRATCH, Mix
from .compiled import Compiled, compiled
from .onednn import Laid, Order, Plan, thread_memory
from .operators import Weight
from .pooling import pooled_sides
from .program import Conv, MaxPool, Program, reads

KEPT = 64
"""Chains of a network that are kept."""
INPUT = NOTHING = -1
"""Where a step reads the images, and where it adds nothing."""
Shape = tuple[int, int, int, int]
"""[N, C, H, W], channels last in memory."""
BARE, BIASED, MIXED = range(3)
"""Kinds of what stands behind a convolution: nothing, one bias for all rows, each row's own."""


class Kind(IntEnum):
    """What a step of a chain does, as `native/chain.c` numbers it."""

    CONVOLVE = 0
    BEHIND = 1
    POOL = 2
    COPY = 3


STEP = np.dtype(
    [
        ("kind", np.int64),
        ("plan", np.int64),
        ("in", np.int64),
        ("add", np.int64),
        ("out", np.int64),
        ("layer", np.int64),
        ("threads", np.int64),
        ("shape", np.int64, 12),
        ("low", np.float64),
        ("high", np.float64),
    ]
)
"""`step` in `native/chain.c`."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What stands behind a convolution for a batch: one bias for all rows, or each row's own.

    Attributes:
        bias: [O] in the compute dtype, where there is no mix.
        mix: of tables for the C function.
    """

    bias: Tensor | None = None
    mix: Mix | None = None

    @property
    def kind(self) -> int:
        """BARE, BIASED or MIXED."""
        return MIXED if self.mix is not None else BARE if self.bias is None else BIASED


class Chains:
    """All chains of one network in one dtype."""

    def __init__(self) -> None:
        self._made: dict[object, Chain] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._made)

    def lead(
        self, program: Program, weights: Mapping[str, Weight], end: Callable[[Conv], Ending | None], images: Tensor
    ) -> tuple[int, dict[int, Tensor]]:
        """Compute as many of the first steps as one call can.

        Args:
            program: the network's.
            weights: parameter name -> weight.
            end: what stands behind a convolution; None where the C function has nothing to do with it.
            images: [N, C, H, W], channels last.

        Returns:
            (how many steps, value -> [N, C, H, W] of those that later steps read), which are valid until this thread's
            next call.

        Raises:
            Refused: oneDNN cannot compute a batch of this size, though it did others.
            RuntimeError: it failed.
        """
        library = compiled()
        if library is None or not images.is_contiguous(memory_format=torch.channels_last):
            return 0, {}
        laid: list[Laid] = []
        endings: list[Ending] = []
        reach = 0
        for step in program.steps:
            if isinstance(step, Conv):
                weight, ending = weights[step.weight], end(step)
                if not isinstance(weight, Laid) or ending is None:
                    break
                laid.append(weight)
                endings.append(ending)
            elif not isinstance(step, MaxPool):
                break
            reach += 1
        if not laid:
            return 0, {}
        orders = [weight.order for weight in laid]
        kinds = tuple(ending.kind for ending in endings)
        key = images.shape, torch.get_num_threads(), kinds, tuple(map(id, orders))  # a chain keeps its orders
        with self._lock:
            chain = self._made.pop(key, None)
            if chain is not None:
                self._made[key] = chain  # the newest
        if chain is None:  # nobody waits for what only this batch needs
            chain = _Building(program, orders, kinds, images).chain(reach)
            with self._lock:
                self._made[key] = chain
                while len(self._made) > KEPT:
                    del self._made[next(iter(self._made))]
        return chain.reach, chain.run(library, images, laid, endings)


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps that are worked out for one size of batch.

    Attributes:
        reach: how many steps of the program it does.
        steps: STEP [steps], as C takes them.
        size: bytes of all values.
        scratch: bytes beside them.
        given: value -> (offset in bytes, shape [N, C, H, W]) of those that later steps read.
        convolutions: how many of the reach are.
        kept: what `steps` has addresses of, and what tells this chain from others.
    """

    reach: int
    steps: npt.NDArray[np.void]
    size: int
    scratch: int
    given: Mapping[int, tuple[int, Shape]]
    convolutions: int
    kept: Sequence[object]

    def run(
        self, library: Compiled, images: Tensor, weights: Sequence[Laid], endings: Sequence[Ending]
    ) -> dict[int, Tensor]:
        """Value -> [N, C, H, W] of `given`.

        Args:
            library: the C functions.
            images: of the size and dtype that the chain is for.
            weights, endings: by convolution, at least as many as it has.
        """
        count = self.convolutions
        addresses = ctypes.c_void_p * count
        ends = [_end(weight, end, images) for weight, end in zip(weights[:count], endings[:count], strict=True)]
        memory = thread_memory("chain", self.size + self.scratch)
        failed = library.library.taskpack_chain(
            self.steps.ctypes.data,
            len(self.steps),
            images.data_ptr(),
            memory.data_ptr(),
            memory.data_ptr() + self.size,
            addresses(*(weight.memory.data_ptr() for weight in weights[:count])),
            addresses(*(address for address, _ in ends)),
            images.dtype == torch.bfloat16,
            library.parallel,
            library.level,
        )
        if failed:
            raise RuntimeError(f"oneDNN failed in step {failed} of {len(self.steps)}")
        return {value: _view(memory, offset, shape, images.dtype) for value, (offset, shape) in self.given.items()}


def _end(weight: Laid, end: Ending, images: Tensor) -> tuple[int | None, object]:
    """(address of what stands behind a convolution, what must live as long)."""
    assert weight.dtype == images.dtype, "C takes numbers as they lie"
    if end.mix is not None:
        tables = end.mix.addresses(weight.shape[0])
        assert len(tables) == len(images), "the parts are all rows, no more and no fewer"
        return tables.ctypes.data, tables
    assert end.bias is None or (end.bias.dtype, len(end.bias)) == (images.dtype, weight.shape[0])
    return None if end.bias is None else end.bias.data_ptr(), end.bias


def _view(memory: Tensor, offset: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """[N, C, H, W], channels last, in a piece of the memory."""
    n, c, h, w = shape
    piece = memory[offset : offset + n * c * h * w * dtype.itemsize]
    return piece.view(dtype).view(n, h, w, c).permute(0, 3, 1, 2)


class _Memory:
    """Pieces of one memory, each from a multiple of 64 on; the first gap that is large enough is taken."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []
        self.size = 0

    def take(self, size: int) -> int:
        size = max(64, -(-size // 64) * 64)
        start = 0
        for first, end in sorted(self.taken):
            if first - start >= size:
                break
            start = end
        self.taken.append((start, start + size))
        self.size = max(self.size, start + size)
        return start

    def give_back(self, start: int) -> None:
        self.taken = [piece for piece in self.taken if piece[0] != start]


class _Building:
    """Works out one chain."""

    def __init__(self, program: Program, orders: Sequence[Order], kinds: Sequence[int], images: Tensor) -> None:
        self.program = program
        self.orders = orders
        self.kinds = kinds
        self.itemsize = images.dtype.itemsize
        self.memory = _Memory()
        self.values: dict[int, tuple[int, Shape]] = {0: (INPUT, _shape(images.shape))}
        self.rows: list[dict[str, object]] = []
        self.plans: list[Plan] = []
        self.scratch = 0
        self.convolutions = 0

    def chain(self, reach: int) -> Chain:
        """Of at most so many steps; of fewer where a value is added that does not go with the result."""
        done = 0
        for step in self.program.steps[:reach]:
            assert isinstance(step, Conv | MaxPool)
            if not (self.convolve(step) if isinstance(step, Conv) else self.pool(step)):
                break
            self.forget(self.program.last_reads[done], step)
            done += 1
        later = {self.program.result}.union(*(reads(step) for step in self.program.steps[done:]))
        given = {value: at for value, at in self.values.items() if value in later and value}
        steps = np.zeros(len(self.rows), STEP)
        for at, row in enumerate(self.rows):
            for name, number in row.items():
                steps[name][at] = number
        kept = (*self.plans, *self.orders)
        return Chain(done, steps, self.memory.size, self.scratch, given, self.convolutions, kept)

    def forget(self, values: Sequence[int], step: Conv | MaxPool) -> None:
        """Give back the memory of values that nobody reads any more."""
        own = self.values[step.out][0]
        for value in values:
            offset, _ = self.values.pop(value, (INPUT, None))
            if offset not in (INPUT, own):  # what was written over lives on under another name
                self.memory.give_back(offset)

    def new(self, shape: Shape) -> int:
        return self.memory.take(int(np.prod(shape)) * self.itemsize)

    def add_step(self, kind: Kind, given: int, out: int, *, add: int = NOTHING, **others: object) -> None:
        self.rows.append({"kind": kind, "in": given, "add": add, "out": out, **others})

    def convolve(self, step: Conv) -> bool:
        """Add a convolution and what stands behind it; False where the chain ends before it."""
        order, kind = self.orders[self.convolutions], self.kinds[self.convolutions]
        if step.source not in self.values or (step.add is not None and step.add not in self.values):
            return False  # a buffer of the network's
        source, (n, c, h, w) = self.values[step.source]
        assert c == order.geometry.shape[1] * order.geometry.groups
        shape = _shape(order.result((n, c, h, w)))
        added = None if step.add is None else self.values[step.add]
        if added is not None and (added[1] != shape or (kind == MIXED and added[0] == INPUT)):
            return False
        mixed = kind == MIXED
        sums = added is not None and not mixed
        plan = order.plan((n, h, w), biased=kind == BIASED, sums=sums, act=None if mixed else step.act)
        if added is not None and sums and step.reuse:
            out = added[0]
        else:
            out = self.new(shape)
            if added is not None and sums:
                self.add_step(Kind.COPY, added[0], out, shape=_twelve(int(np.prod(shape)) * self.itemsize))
        self.add_step(Kind.CONVOLVE, source, out, plan=plan.address, layer=self.convolutions)
        self.scratch = max(self.scratch, plan.scratch)
        if mixed:
            self.behind(step, shape, out, NOTHING if added is None else added[0])
        self.plans.append(plan)
        self.convolutions += 1
        self.values[step.out] = out, shape
        return True

    def behind(self, step: Conv, shape: Shape, out: int, add: int) -> None:
        n, c, h, w = shape
        threads, (low, high) = _threads(n * c * h * w), BOUNDS[step.act]
        self.scratch = max(self.scratch, threads * SCRATCH * (w + 2) * 4)
        numbers = {"shape": _twelve(n, h, w, c), "threads": threads, "low": low, "high": high}
        self.add_step(Kind.BEHIND, out, out, add=add, layer=self.convolutions, **numbers)

    def pool(self, step: MaxPool) -> bool:
        """Add a max pooling; False where the chain ends before it."""
        if step.source not in self.values:
            return False
        source, (n, c, h, w) = self.values[step.source]
        sides = pooled_sides((h, w), step)
        if sides is None:
            return False
        shape = (n, c, *sides)
        out = self.new(shape)
        numbers = _twelve(n, h, w, c, *sides, *step.kernel, *step.stride, *step.padding)
        self.add_step(Kind.POOL, source, out, shape=numbers, threads=_threads(n * c * h * w))
        self.values[step.out] = out, shape
        return True


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers > GRAIN else 1


def _twelve(*numbers: int) -> list[int]:
    return [*numbers, *[0] * (12 - len(numbers))]


def _shape(given: Sequence[int]) -> Shape:
    n, c, h, w = given
    return n, c, h, w
