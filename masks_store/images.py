"""From a picture's bytes to the network's input: the one path that training and serving share.

`open_image` (bytes to RGB), `pixels` (RGB to the cropped uint8 square) and `normalise` (uint8 batch to fp32 batch).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InvalidInput
from .manifest import Preprocess

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_PIXELS = 50_000_000

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


def open_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = ("JPEG", "PNG", "WEBP")
) -> Image.Image:
    """Decode one picture to RGB as a person sees it.

    EXIF turns are applied, transparency is laid on white, palettes, grey (16-bit too) and CMYK are converted. The
    size is read from the header and checked before any pixel is decoded. Pillow's warnings (odd EXIF data, a size over
    its own limit) are left as they are: filters are a process's, and this runs in many threads.

    Args:
        data: the encoded picture.
        max_pixels: the most pixels (width times height) that are decoded.
        formats: Pillow's names of the formats that are tried at all.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        InvalidInput: not one of `formats`, too many pixels, pixels of no fixed range, truncated or broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(formats)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidInput(f"{width}x{height} pixels are more than the limit of {max_pixels}")
            if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # a PNG's `I` is 16-bit grey
                kind = "floating-point" if image.mode == "F" else "32-bit"
                raise InvalidInput(
                    f"its pixels are {kind} numbers, of which nobody knows what white is; convert it to 8 or 16 bits"
                )
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except InvalidInput:
        raise
    except Image.UnidentifiedImageError as error:
        raise InvalidInput(f"not a picture of a type read here ({', '.join(formats)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(f"more pixels than the limit of {max_pixels}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise InvalidInput(f"the picture cannot be decoded: {str(error)[:200] or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(grey: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """16-bit grey [H, W] of any number type to uint8."""
    return np.clip(np.rint(grey.astype(np.float64) / 257.0), 0, 255).astype(np.uint8)


def pixels(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Resize the short side to `preprocess.resize`, crop the centre.

    Args:
        image: mode RGB, any size.
        preprocess: the store's preprocess.

    Returns:
        uint8 [size, size, 3].
    """
    image = resize_short_side(image, preprocess.resize, preprocess.interpolation)
    return np.asarray(image.crop(centre_box(image.width, image.height, preprocess.size)))


def resize_short_side(image: Image.Image, length: int, interpolation: str = "bilinear") -> Image.Image:
    """The picture with its short side `length` pixels long and its aspect ratio kept (antialiased)."""
    middle, size = resize_geometry(image.width, image.height, length)
    if middle != (0, 0, *image.size):
        image = image.crop(middle)
    return image if image.size == size else image.resize(size, _FILTERS[interpolation])


def resize_geometry(width: int, height: int, length: int) -> tuple[Box, tuple[int, int]]:
    """What of a picture is resized, and to which width and height, so that its short side is `length` pixels long.

    Only the middle of a very long picture is resized (20 times the short side), so that a strip cannot take memory
    out of proportion.
    """
    middle = (0, 0, width, height)
    half = 10 * min(width, height)
    if width > 2 * half:
        middle = (width // 2 - half, 0, width // 2 + half, height)
    elif height > 2 * half:
        middle = (0, height // 2 - half, width, height // 2 + half)
    short, long = min(width, height), min(max(width, height), 2 * half)
    scaled = max(length, math.floor(length * long / short))
    return middle, (scaled, length) if width > height else (length, scaled)


def centre_box(width: int, height: int, size: int) -> Box:
    """The square in the middle of a picture that the network takes; half to even, as torchvision's CenterCrop."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


def normalise(batch: Tensor, preprocess: Preprocess) -> Tensor:
    """(x / 255 - mean) / std per channel.

    Args:
        batch: uint8 [N, 3, H, W] on any device.
        preprocess: gives mean and std.

    Returns:
        float32 [N, 3, H, W] on the same device.
    """
    mean, std = (_per_channel(values, batch.device) for values in (preprocess.mean, preprocess.std))
    return batch.to(torch.float32).div_(255.0).sub_(mean).div_(std)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[3, 1, 1]; brought to a device once, for a copy from the host cannot be part of a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
