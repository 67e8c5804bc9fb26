"""The self-test that travels in every artifact: a few pictures and the logits that they must give.

A version becomes ready on a device only if its probe passes there (FORMAT.md §5). The pictures are synthetic by
default, seeded noise over gradients, so that an artifact leaks no training picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .arithmetic import plain_arithmetic
from .artifact import MAX_PROBES, Artifact
from .backbones import Backbone
from .errors import FormatError, InvalidInput, ProbeFailed
from .images import normalise, open_image
from .pictures import join_pictures, split_pictures
from .views import View, bind

Pictures = npt.NDArray[np.uint8]
Prober = Callable[[Backbone, Sequence[Artifact], View], Tensor]
"""(backbone, lineage, view) -> logits [N, classes] of the last artifact's probe, on some engine and device.

The view is the last artifact's, for an engine that has not all of the lineage.
"""

_BOUNDS = {"fp32": (1e-4, float("inf")), "bf16": (0.25, 0.03)}
"""dtype -> largest and root-mean-square difference allowed, in standard deviations of the reference logits."""


def synthetic_images(size: int, seed: int, n: int = MAX_PROBES) -> Pictures:
    """`n` pictures of seeded noise over a gradient; uint8 [n, size, size, 3]."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0.0, 1.0, size)
    pictures = np.empty((n, size, size, 3), np.uint8)
    for picture in pictures:
        across, down, base = random.uniform(-160.0, 160.0, (3, 3))
        smooth = 128.0 + base / 4 + across * (ramp[None, :, None] - 0.5) + down * (ramp[:, None, None] - 0.5)
        picture[:] = np.clip(smooth + random.normal(0.0, 24.0, (size, size, 3)), 0, 255).astype(np.uint8)
    return pictures


def pack_images(pictures: Pictures) -> Tensor:
    """The tensor `probe.images` that holds these pictures as PNG files; uint8 [bytes]."""
    files: list[bytes] = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return torch.frombuffer(bytearray(join_pictures(files)), dtype=torch.uint8)


def unpack_images(packed: Tensor, size: int) -> Pictures:
    """The pictures of `probe.images`; uint8 [N, size, size, 3].

    Raises:
        FormatError: the offsets or a picture are broken, or a picture is not `size` pixels square.
    """
    files = split_pictures(packed)
    pictures = np.empty((len(files), size, size, 3), np.uint8)
    for index, file in enumerate(files):
        try:
            picture = open_image(file, max_pixels=size * size, formats=("PNG",))
        except InvalidInput as error:
            raise FormatError(f"probe.images: picture {index}: {error}") from error
        if picture.size != (size, size):
            raise FormatError(f"probe.images: picture {index} is {picture.size}, not {size} pixels square")
        pictures[index] = np.asarray(picture)
    return pictures


def to_batch(pictures: Pictures) -> Tensor:
    """uint8 [N, H, W, 3] pictures as the engines take them: uint8 [N, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def reference_logits(backbone: Backbone, view: View, pictures: Pictures) -> Tensor:
    """Logits float32 [N, classes] of pictures uint8 [N, size, size, 3]: eager, CPU, fp32, one picture at a time.

    One at a time, because a batched matrix product may round otherwise than a single one.
    """
    forward = bind(backbone, view)
    batch = normalise(to_batch(pictures), view.preprocess)
    with plain_arithmetic():
        return torch.cat([forward(batch[i : i + 1]) for i in range(len(batch))])


def eager_prober(backbone: Backbone, lineage: Sequence[Artifact], view: View) -> Tensor:
    """The `Prober` that needs no engine: the reference itself."""
    pictures = unpack_images(lineage[-1].tensors["probe.images"], backbone.manifest.image_size)
    return reference_logits(backbone, view, pictures)


def probe_faults(reference: Tensor, got: Tensor, dtype: Literal["fp32", "bf16"] = "fp32") -> list[str]:
    """How far logits are from their reference, where that is too far (FORMAT.md §5).

    With sigma the standard deviation of the reference logits: fp32 max |difference| <= 1e-4 sigma; bf16 max <= 0.25
    sigma and root mean square <= 0.03 sigma. Where the gap between the two highest reference logits is over twice
    the bound, the winner must be the same.

    Args:
        reference: float32 [N, classes], `probe.logits`.
        got: [N, classes] of any float type.
        dtype: precision that `got` was computed in.

    Returns:
        The faults; empty when the probe passes.
    """
    got = got.detach().to("cpu", torch.float32)
    if got.shape != reference.shape:
        return [f"probe: logits {list(got.shape)} where {list(reference.shape)} were expected"]
    if not bool(torch.isfinite(got).all()):
        return ["probe: a logit is not finite"]
    sigma = float(reference.std(correction=0))
    largest, rms = (bound * sigma for bound in _BOUNDS[dtype])
    difference = (got - reference).abs()
    faults: list[str] = []
    if float(difference.max()) > largest:
        faults.append(f"probe: a logit is off by {float(difference.max()):.3g}, the bound is {largest:.3g} ({dtype})")
    if float(difference.square().mean().sqrt()) > rms:
        faults.append(
            f"probe: logits are off by {float(difference.square().mean().sqrt()):.3g} rms, over {rms:.3g} ({dtype})"
        )
    for row in range(len(reference)):
        if reference.shape[1] > 1:
            top = reference[row].topk(2).values
            clear = float(top[0] - top[1]) > 2 * largest
            if clear and int(got[row].argmax()) != int(reference[row].argmax()):
                faults.append(f"probe: picture {row} has another winner")
    return faults


def check_probe(
    backbone: Backbone,
    lineage: Sequence[Artifact],
    view: View,
    prober: Prober,
    dtype: Literal["fp32", "bf16"] = "fp32",
) -> None:
    """Run the probe of the last artifact of a lineage, whose view this is.

    Raises:
        ProbeFailed: with every picture that is off.
    """
    reference = lineage[-1].tensors["probe.logits"]
    faults = probe_faults(reference, prober(backbone, lineage, view), dtype)
    if faults:
        raise ProbeFailed(f"{lineage[-1].version}: its probe gives other logits than when it was made", faults)
