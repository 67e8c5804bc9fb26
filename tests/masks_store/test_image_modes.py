"""Each format in each mode that it has becomes what torchvision's transforms make of what a person sees, to 1/255.

Transparency goes on white. What is seen of a picture without loss is worked out from the picture as it was before it
was written; of one with loss Pillow's own conversion of the file says it.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from masks_store import Preprocess, open_image, pixels

INTERPOLATIONS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


def photograph(channels: int, seed: int = 3, size: tuple[int, int] = (83, 61)) -> np.ndarray:
    """uint8 [height, width, channels]: light that changes slowly, edges, and noise on all of it."""
    random = np.random.default_rng(seed)
    down, across = np.meshgrid(np.linspace(0, 4, size[1]), np.linspace(0, 5, size[0]), indexing="ij")
    layers = []
    for _ in range(channels):
        turn, slope = random.uniform(0, 6, 2)
        light = 128 + 90 * np.sin(down + turn) * np.cos(across * 0.7 - slope)
        edge = 60 * (down + slope / 6 * across > turn)
        layers.append(light + edge + random.normal(0, 14, light.shape))
    return np.clip(np.stack(layers, axis=-1), 0, 255).astype(np.uint8)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], and [H, W] of which 0 is clear: what is seen of it on white."""
    share = alpha[..., None] / 255.0
    return np.rint(colours * share + 255.0 * (1.0 - share)).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def lossless(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of a mode, and the uint8 [H, W, 3] that a person sees, worked out without a decoder."""
    noise = photograph(4)
    colours, alpha = noise[..., :3], noise[..., 3]
    if mode == "1":
        bits = noise[..., 0] > 128
        return Image.fromarray(bits), grey(np.where(bits, 255, 0).astype(np.uint8))
    if mode == "L":
        return Image.fromarray(noise[..., 0]), grey(noise[..., 0])
    if mode == "I;16":
        deep = np.random.default_rng(4).integers(-128, 129, alpha.shape) + alpha.astype(int) * 257
        deep = np.clip(deep, 0, 65535).astype(np.uint16)
        return Image.fromarray(deep), grey(np.rint(deep / 257).astype(np.uint8))
    if mode == "LA":
        two = np.ascontiguousarray(noise[..., 2:])
        return Image.fromarray(two, "LA"), on_white(grey(two[..., 0]), alpha)
    if mode.startswith("P"):
        indices, palette = noise[..., 0], np.random.default_rng(5).integers(0, 256, (256, 3)).astype(np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette(palette.tobytes())
        if mode == "P":
            return image, palette[indices]
        clear = np.random.default_rng(6).integers(0, 256, 256).astype(np.uint8)
        image.info["transparency"] = clear.tobytes()
        return image, on_white(palette[indices], clear[indices])
    if mode == "RGB":
        return Image.fromarray(np.ascontiguousarray(colours)), colours
    assert mode == "RGBA"
    return Image.fromarray(noise), on_white(colours, alpha)


def lossy(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] that a person sees of a file."""
    with Image.open(io.BytesIO(data)) as image:
        if "A" not in image.mode:
            return np.asarray(image.convert("RGB"))
        noise = np.asarray(image.convert("RGBA"))
    return on_white(noise[..., :3], noise[..., 3])


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


WHOLE = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "P with transparency", "RGB", "RGBA", "I;16")),
    *(("WEBP", mode) for mode in ("L", "RGB", "RGBA")),
]
CUT = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA")]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("kind", "mode"), WHOLE)
def test_a_picture_without_loss_is_what_was_drawn(kind: str, mode: str, interpolation: str) -> None:
    image, expected = lossless(mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = stored(image, kind, **options)
    if kind == "PNG":
        with Image.open(io.BytesIO(data)) as read:
            assert read.mode == mode.partition(" ")[0], "the file has the mode that is meant"
    check(data, expected, mode, interpolation)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("kind", "mode"), CUT)
def test_a_picture_with_loss_is_what_pillow_converts_it_to(kind: str, mode: str, interpolation: str) -> None:
    channels = np.ascontiguousarray(photograph(4)[..., : len(mode)].squeeze())
    data = stored(Image.fromarray(channels, mode), kind, quality=80)
    with Image.open(io.BytesIO(data)) as read:
        assert read.mode == mode
    check(data, lossy(data), mode, interpolation)


def check(data: bytes, expected: np.ndarray, mode: str, interpolation: str) -> None:
    """A file's pixels are torchvision's of `expected`, give or take one of 255 shades; before that only what is mixed
    with white may be one off.
    """
    image = open_image(data)
    assert image.mode == "RGB"
    assert expected.std() > 30, "no flat colours"
    mixed = "A" in mode or "transparency" in mode
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= (1 if mixed else 0)
    preprocess = Preprocess(resize=36, size=32, interpolation=interpolation)  # pyright: ignore[reportArgumentType]
    reference = v2.Compose([v2.ToImage(), v2.Resize(36, INTERPOLATIONS[interpolation]), v2.CenterCrop(32)])
    shades = reference(Image.fromarray(expected)).permute(1, 2, 0).numpy()  # [32, 32, 3]
    assert np.abs(pixels(image, preprocess).astype(int) - shades).max() <= 1
