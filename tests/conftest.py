"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import os

import pytest
import torch

from masks_store import Backbone

from . import zoo

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is first imported: then the CPU runs it


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    """tinyresnet, 16 pixels, half of every layer free."""
    return zoo.backbone(keep=0.5)


@pytest.fixture(scope="session")
def whole_backbone() -> Backbone:
    """tinyresnet, 16 pixels, nothing free."""
    return zoo.backbone(keep=1.0)
