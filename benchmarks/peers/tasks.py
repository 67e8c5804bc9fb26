"""What all servers serve: a store of PackNet tasks with random values, and each of them as a network of its own.

The tasks are nested, each with norms of its own, so that every answer needs another view of the shared weights. What
the networks answer, by the slow reference, is written beside them: a server that answers otherwise is no contestant.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from masks_store import (
    Artifact,
    Store,
    create,
    open_image,
    pixels,
    read_artifact,
    read_backbone,
    reference_logits,
    state_of,
)
from tests.zoo import task as random_task

CLASSES = 10
PHOTO = (500, 375)  # pixels of a JPEG
FILES = 8
SHARE = 0.2  # of the free weights that each task takes
SPREAD = 0.02  # of the head's weights: scores that are neither all nor nothing


@dataclass(frozen=True)
class Expected:
    """What the slow reference answers to one picture for one task."""

    label: int
    score: float


@dataclass(frozen=True)
class Tasks:
    """Made by `make`.

    Attributes:
        store: for our server.
        networks: a folder for the others: `tasks.json`, and per task a safetensors file in torchvision's names.
        names: of the tasks.
        files: JPEGs.
        expected: [task][file].
    """

    store: Path
    networks: Path
    names: list[str]
    files: list[bytes]
    expected: dict[str, list[Expected]]


def make(folder: Path, arch: str, size: int, count: int) -> Tasks:
    """Make them.

    Args:
        folder: new.
        arch: a torchvision ResNet.
        size: pixels of a side of the network's input.
        count: how many tasks.
    """
    data = create(arch, image_size=size, keep=0.5, seed=0)
    backbone, networks = read_backbone(data.data), folder / "networks"
    networks.mkdir(parents=True)
    files = photographs()
    preprocess = backbone.manifest.preprocess
    pictures = np.stack([pixels(open_image(file), preprocess) for file in files])
    ancestors: list[Artifact] = []
    random = torch.Generator()
    expected: dict[str, list[Expected]] = {}
    with Store.create(folder / "store", data) as store:
        for i in range(count):
            name = f"task-{i:04}"
            head = {"head.weight": torch.randn((CLASSES, backbone.features), generator=random.manual_seed(i)) * SPREAD}
            artifact = random_task(
                backbone,
                name,
                ancestors=ancestors,
                seed=i,
                classes=CLASSES,
                share=SHARE,
                own_norm=True,
                tensors=head,
            )
            version = store.register(artifact, label="stable").version
            ancestors.append(read_artifact(artifact))
            view = store.view(version.version)
            head = {"fc.weight": view.overlay.head_weight, "fc.bias": view.overlay.head_bias}
            state = state_of(backbone, view) | head
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, networks / f"{name}.safetensors")
            scores = reference_logits(backbone, view, pictures).softmax(1).max(1)
            found = zip(scores.indices.tolist(), scores.values.tolist(), strict=True)
            expected[name] = [Expected(label, score) for label, score in found]
    told = {"arch": arch, "classes": CLASSES, "size": size, "mean": preprocess.mean, "std": preprocess.std}
    (networks / "tasks.json").write_text(json.dumps(told | {"tasks": list(expected)}))
    return Tasks(folder / "store", networks, list(expected), files, expected)


def photographs() -> list[bytes]:
    """JPEGs of smooth random colours with some grain, as large as a photograph of their size."""
    random = np.random.default_rng(0)
    files: list[bytes] = []
    for _ in range(FILES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(PHOTO)
        grain = random.normal(0, 6, (PHOTO[1], PHOTO[0], 3))
        out = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files
