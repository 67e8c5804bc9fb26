"""What oneDNN computes on this machine's processor."""

from __future__ import annotations

import pytest
import torch

HAS_BF16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether oneDNN convolves bfloat16 here, by instructions or without; else the engine does with torch's operators."""

ONEDNN_DTYPES = [torch.float32, *([torch.bfloat16] if HAS_BF16 else [])]
"""What oneDNN convolves here."""

bf16 = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not HAS_BF16, reason="oneDNN convolves no bfloat16 here"))
