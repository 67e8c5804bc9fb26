"""Try the fast ways on the device that is here, before anything is computed with them.

Each is compared with plain torch on a small case. One that cannot be built or that disagrees is not used, and one line
of the log says so: the plain way is slower and right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from masks_store import Preprocess, plain_arithmetic

from ..behind import finish
from ..blocks import blocks_of
from ..layout import DTYPES, layout_of
from ..masking import write_in_torch
from ..pixels import normalised
from ..program import Conv
from ..rows import addresses_of
from ..ways import Ways
from .graphs import capture
from .masking import write_view
from .operators import KERNELS

log = logging.getLogger("taskpack.service")


def checked(device: torch.device) -> Ways:
    """The fast ways that agree with plain torch on this device, now."""
    masking = write_view if _agrees("writing a view in one launch", device, masking_agrees) else None
    kernels = KERNELS if _agrees("one pass behind a convolution", device, kernels_agree) else None
    return Ways(masking=masking, kernels=kernels, capture=capture)


def _agrees(what: str, device: torch.device, check: Callable[[torch.device], bool]) -> bool:
    try:
        on_it = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with torch.inference_mode(), plain_arithmetic(), on_it:
            if check(device):
                return True
        reason = "it gives other numbers than plain torch"
    except Exception as error:  # a compiler that is missing, a driver that is too old, …: no reason not to serve
        reason = f"{type(error).__name__}: {error}"
    log.warning("%s: plain torch for %s: %s", device, what, reason)
    return False


def masking_agrees(device: torch.device) -> bool:
    """Bit for bit, in both dtypes, with and without scale."""
    shapes = {"a.weight": (5, 3, 3, 3), "b.weight": (70, 66), "c.weight": (16, 16, 1, 1)}
    for dtype in DTYPES:
        layout = layout_of({n: torch.Size(s) for n, s in shapes.items()}, {}, {}, dtype, device, onednn=False)
        random = torch.Generator().manual_seed(0)
        source, out, plain = layout.new(), layout.new(), layout.new()
        mask = {name: torch.rand(shape, generator=random) < 0.5 for name, shape in shapes.items()}
        for name, place in layout.places.items():
            weight = torch.randn(place.shape, generator=random)
            weight[~mask[name]] = float("nan")  # what is hidden must not show
            source.memory[name].copy_(place.arranged(weight))
        blocks, bits = blocks_of(layout), layout.bits(mask)
        scale = torch.randn(sum(shape[0] for shape in shapes.values()), generator=random).to(device)
        assert blocks is not None
        assert out.flat is not None
        assert source.flat is not None
        assert plain.flat is not None
        for table in (None, scale):
            write_view(out.flat, source.flat, bits, table, blocks)
            first = 0
            for name, place in layout.places.items():
                own = None if table is None else table[first : first + place.shape[0], None]
                write_in_torch(plain.memory[name], source.memory[name], bits[layout.offsets[name] // 8 :], own)
                first += place.shape[0]
            if not torch.equal(out.flat.view(torch.uint8), plain.flat.view(torch.uint8)):
                return False
    return True


def kernels_agree(device: torch.device) -> bool:
    """Within rounding, in both dtypes: pixels, bias, addition and activation, and what each row has of its own."""
    return all(_Case(device, dtype).agrees() for dtype in DTYPES.values())


class _Case:
    """Small random pictures and tasks of one dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.random = torch.Generator().manual_seed(0)
        self.x, self.add = (self.numbers(3, 20, 5, 5).to(dtype) for _ in range(2))

    def numbers(self, *shape: int) -> Tensor:
        made = torch.randn(shape, generator=self.random).to(self.device)
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    def close(self, got: Tensor, expected: Tensor) -> bool:
        bound = (1e-5 if self.dtype == torch.float32 else 2e-2) * float(expected.float().abs().max())
        return got.shape == expected.shape and float((got.float() - expected.float()).abs().max()) <= bound

    def agrees(self) -> bool:
        return self.pixels() and self.epilogue() and self.rows() and self.heads()

    def pixels(self) -> bool:
        pictures = torch.randint(0, 256, (2, 9, 9, 3), generator=self.random, dtype=torch.uint8).to(self.device)
        preprocess = Preprocess(resize=9, size=9)
        return self.close(
            KERNELS.pixels(pictures, preprocess, self.dtype), normalised(pictures, preprocess, self.dtype)
        )

    def epilogue(self) -> bool:
        weight, bias = self.numbers(20, 20, 3, 3).to(self.dtype), self.numbers(20).to(self.dtype)
        step = Conv(0, 1, "", "", None, (1, 1), (1, 1), (1, 1), 1, None)
        cases = [(None, None, "relu"), (bias, None, "relu6"), (bias, self.add, "relu"), (None, self.add, None)]
        wide = F.conv2d(self.x.double(), weight.double(), None, 1, 1)
        for own, add, act in cases:
            plain = wide if own is None else wide + own.double().view(1, -1, 1, 1)
            expected = finish(plain.clone(), None if add is None else add.double(), act)
            with plain_arithmetic():  # cuDNN's TF32, torch's default, is a thousand times as far off
                got = KERNELS.conv2d(self.x, weight, own, step, add, act)
            if not self.close(got, expected):
                return False
        return True

    def rows(self) -> bool:
        """Whether the kernels that read each image's own numbers give what torch gives in float64."""
        assert KERNELS.rows is not None
        n, channels = self.x.shape[:2]
        own = [self.numbers(10 * channels) for _ in range(n)]
        addresses = addresses_of(own, [1] * n, n).to(self.device)
        wide = self.x.double()
        tapped, scaled = torch.empty_like(wide), torch.empty_like(wide)
        for i, row in enumerate(own):
            taps, shift = row[: 9 * channels].double().view(9, channels).T, row[9 * channels :].double()
            tapped[i] = F.conv2d(wide[i : i + 1], taps.reshape(channels, 1, 3, 3), shift, 1, 1, 1, channels)[0]
            scaled[i] = wide[i] * row[:channels, None, None] + row[channels : 2 * channels, None, None]
        for add, act in ((None, None), (self.add, "relu"), (None, "relu6")):
            plus = None if add is None else add.double()
            taps, scale = KERNELS.rows.taps(self.x, addresses, 0, add, act), self.x.clone()
            if not self.close(taps, finish(tapped.clone(), plus, act)):
                return False
            if not self.close(KERNELS.rows.scale(scale, addresses, 0, add, act), finish(scaled.clone(), plus, act)):
                return False
        return True

    def heads(self) -> bool:
        assert KERNELS.rows is not None
        n, width = len(self.x), 20
        features, heads = self.numbers(n, width), [(self.numbers(c, width), self.numbers(c)) for c in (2, 7, 30)]
        weights = addresses_of([weight for weight, _ in heads], [1] * n, n).to(self.device)
        biases = addresses_of([bias for _, bias in heads], [1] * n, n).to(self.device)
        classes = torch.tensor([len(bias) for _, bias in heads]).to(self.device)
        logits = KERNELS.rows.heads(features, weights, biases, classes, 30)
        plain = (weight.double() @ features[i].double() + bias for i, (weight, bias) in enumerate(heads))
        return all(self.close(logits[i, : len(expected)], expected) for i, expected in enumerate(plain))
