"""What this machine's processor has instructions for."""

from __future__ import annotations

import pytest
import torch

from masks_store import lacks_instructions

HAS_BF16 = not lacks_instructions(torch.bfloat16, torch.device("cpu"))
"""Where there are none oneDNN has no convolutions of bfloat16, and the engine computes them with torch's operators."""

ONEDNN_DTYPES = [torch.float32, *([torch.bfloat16] if HAS_BF16 else [])]
"""What oneDNN convolves here."""

bf16 = pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(not HAS_BF16, reason="this processor has no instructions for bfloat16")
)
