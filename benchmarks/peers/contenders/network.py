"""What the other servers share: the networks of the tasks, and the way from a JPEG to an answer.

Runs in the peers' environment and knows nothing of this project. There are two ways, and every server has both:

`plain`   as a user writes it: eager float32, Pillow, torchvision's transforms.
`tuned`   the same with what makes it faster: channels last, bfloat16 if asked for, simplejpeg's decoder, Pillow's
          resize to the wanted crop alone, and normalisation in one pass.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2


@dataclass(frozen=True)
class Options:
    """How a server is to do it.

    Attributes:
        folder: of `tasks.json` and a safetensors file per task.
        port: on 127.0.0.1.
        tuned: see the module.
        bf16: whether weights and activations are bfloat16; with `tuned` alone.
        processes: that answer.
        threads: of torch in each.
        batch: most images of a forward, where the server batches.
    """

    folder: Path
    port: int
    tuned: bool
    bf16: bool
    processes: int
    threads: int
    batch: int


def options(arguments: list[str] | None = None) -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    return Options(**vars(parser.parse_args(arguments)))


class Networks:
    """The tasks' networks, and what is done to a picture before them.

    Args:
        chosen: how.
    """

    def __init__(self, chosen: Options) -> None:
        torch.set_num_threads(chosen.threads)
        told = json.loads((chosen.folder / "tasks.json").read_text())
        self.names: list[str] = told["tasks"]
        self._arch, self._classes = told["arch"], told["classes"]
        self._size, self._mean, self._std = told["size"], told["mean"], told["std"]
        self._chosen = chosen
        steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self._mean, self._std)]
        self._transform = v2.Compose([v2.Resize(self._size), v2.CenterCrop(self._size), *steps])
        scale = torch.tensor(self._std) * 255
        self._scale, self._shift = 1 / scale, -torch.tensor(self._mean) * 255 / scale

    def load(self, name: str) -> nn.Module:
        """One task's network."""
        model = models.get_model(self._arch, num_classes=self._classes)
        model.load_state_dict(load_file(self._chosen.folder / f"{name}.safetensors"))
        model.eval()
        if self._chosen.tuned:
            model.to(memory_format=torch.channels_last)
        return model.to(torch.bfloat16) if self._chosen.bf16 else model

    def picture(self, data: bytes) -> Tensor:
        """A JPEG -> float [3, size, size]."""
        if not self._chosen.tuned:
            return self._transform(Image.open(io.BytesIO(data)).convert("RGB"))
        import simplejpeg

        image = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
        size, side = self._size, min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3)
        pixels = torch.addcmul(self._shift, pixels.float(), self._scale)
        return (pixels.bfloat16() if self._chosen.bf16 else pixels).permute(2, 0, 1)

    def answer(self, model: nn.Module, pictures: list[Tensor]) -> list[dict[str, float]]:
        """The best class of each picture, and its score."""
        with torch.inference_mode():
            batch = torch.stack(pictures)
            if self._chosen.tuned:
                batch = batch.contiguous(memory_format=torch.channels_last)
            scores, classes = model(batch).float().softmax(1).max(1)
        found = zip(classes.tolist(), scores.tolist(), strict=True)
        return [{"class": label, "score": score} for label, score in found]
