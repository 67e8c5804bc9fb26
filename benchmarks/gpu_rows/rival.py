"""What the engine is measured against: torch.compile."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.serve_engine import overlay
from masks_store import adapted, adapter_sites
from service.engine import DTYPES, Engine

from .bench import REHEARSE, Call
from .tasks import DTYPE


class Rival:
    """torch.compile over a network in channels_last bfloat16, normalisation included.

    Args:
        engine: whose backbone it is.
        overlay_seed: of the CLR task that it computes; None: the backbone under `head`.
    """

    def __init__(self, engine: Engine, head: torch.Tensor, overlay_seed: int | None = None) -> None:
        body = engine.backbone.body()
        if overlay_seed is not None:
            own = overlay(engine.backbone, "clr", overlay_seed)
            body = adapted(body, adapter_sites(body).keys())
            state = body.state_dict()
            state |= {f"{site}.adapter": taps for site, taps in own.adapter.items()}
            body.load_state_dict(state | dict(own.norm))
        self.body = body.eval().to(engine.device, DTYPES[DTYPE], memory_format=torch.channels_last)
        self.head = head.to(engine.device, DTYPES[DTYPE])
        self.device = engine.device
        preprocess = engine.backbone.manifest.preprocess
        self.mean, self.std = (
            torch.tensor(values, device=engine.device).view(3, 1, 1) for values in (preprocess.mean, preprocess.std)
        )
        backend = "eager" if REHEARSE else "inductor"
        self.forward = torch.compile(self._forward, backend=backend, dynamic=False)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std
        return torch.nn.functional.linear(self.body(images.to(self.head.dtype)), self.head)

    def on_device(self, images: np.ndarray) -> Call:
        """The forward of pixels that are on the device already."""
        pixels = torch.from_numpy(images).to(self.device)

        def call() -> object:
            with torch.inference_mode():
                return self.forward(pixels)

        call()
        return call

    def through(self, images: np.ndarray) -> Call:
        """From pixels on the host to logits on the host, through pinned memory."""
        pinned = torch.from_numpy(images.copy())
        pinned = pinned.pin_memory() if self.device.type == "cuda" else pinned
        pixels = pinned.to(self.device)

        def call() -> object:
            with torch.inference_mode():
                pinned.numpy()[:] = images
                pixels.copy_(pinned, non_blocking=True)
                return self.forward(pixels).float().cpu()

        call()
        return call
