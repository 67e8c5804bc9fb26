"""On a real GPU: nvJPEG's pictures, resized and cropped there, are nearly those of the reference path."""

from __future__ import annotations

import numpy as np
import pytest

from masks_store import Preprocess, open_image, pixels
from service.device_decode import device_decoder

from ..service.jpegs import SIZES, smooth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_decodes_to_nearly_the_same_pixels(interpolation: str) -> None:
    """By nvJPEG, which rounds otherwise and may enlarge the chroma otherwise: near in the mean, nowhere far."""
    preprocess = Preprocess.model_validate({"resize": 40, "size": 32, "interpolation": interpolation})
    made = device_decoder(preprocess, "cuda")
    sent = [smooth(size, quality=95) for size in SIZES]
    sent += [smooth((70, 50), mode="L"), smooth((70, 51), progressive=True)]
    for data, job in zip(sent, made.submit([(data, 1) for data in sent]), strict=True):
        found, expected = job.result(60), pixels(open_image(data), preprocess)
        assert found is not None, "given up"
        difference = np.abs(found.astype(int) - expected)
        assert difference.mean() <= 2
        assert difference.max() <= 16
    made.close()
