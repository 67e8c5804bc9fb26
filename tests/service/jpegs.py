"""Pictures for the decoders' tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

SIZES = [
    (64, 48), (48, 64), (50, 50), (41, 99), (40, 40), (40, 77), (77, 40), (20, 9), (1, 1), (300, 200),
    (900, 9), (9, 900), (901, 3), (3, 901), (61, 3), (60, 3),
]  # fmt: skip
"""Landscapes, portraits, strips, and what is not, or hardly, resized to 40, 37 or 32."""


def smooth(size: tuple[int, int], kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture whose colours change slowly."""
    down, across = np.meshgrid(np.linspace(0, 3, size[1]), np.linspace(0, 3, size[0]), indexing="ij")
    colours = np.stack([np.sin(down), np.cos(across), np.sin(down + across)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(((colours + 1) * 127).astype(np.uint8)).convert(mode).save(out, kind, **options)
    return out.getvalue()
