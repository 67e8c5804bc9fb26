"""The ways in which an engine may compute on a CPU; every answer must hold for each."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import pytest

from service.engine import onednn, places
from service.engine.places import Opaque, Ordered, Place

from .. import zoo
from ..processor import bf16
from . import rig

PLACES = {"direct": Ordered, "torch": Opaque, "plain": Place}
"""By oneDNN's own interface, by torch's operators for it, and in torch's usual ones without any of the C functions."""

EVERY = [
    *(pytest.param(way, "fp32", id=f"{way}-fp32") for way in PLACES),
    *(pytest.param(way, "bf16", id=f"{way}-bf16", marks=() if way == "plain" else bf16.marks) for way in PLACES),
]
"""Way and dtype: what this processor's oneDNN does not convolve is skipped."""


@cache
def made(
    way: str,
    dtype: str,
    kinds: tuple[tuple[str, str, str | None, bool], ...] = rig.KINDS,
    *,
    keep: float = 0.5,
    slot_bytes: int = 1 << 28,
) -> rig.Rig:
    """A rig over a tinyresnet that computes in one way only. Skips the test where this machine does not have it."""
    if way == "direct" and onednn.found()[0] is None:
        pytest.skip(onednn.found()[1])
    with _torch_s_alone() if way == "torch" else _as_it_is():
        own = rig.rig(
            zoo.backbone(keep=keep),
            kinds,
            slot_bytes=slot_bytes,
            dtype=dtype,
            onednn=way != "plain",
            native=way != "plain",
        )
    found = {type(place) for place in own.engine.shared.layout(dtype).places.values()}
    if found != {PLACES[way]}:
        pytest.skip(f"weights lie as {found} on this processor, not as {PLACES[way]} alone")
    return own


@contextmanager
def _torch_s_alone() -> Generator[None]:
    """Layers are laid as where oneDNN's own interface is not found, and what was tried before counts for nothing."""
    places._tried.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onednn, "found", lambda: (None, "hidden"))
            yield
    finally:
        places._tried.cache_clear()


@contextmanager
def _as_it_is() -> Generator[None]:
    yield
