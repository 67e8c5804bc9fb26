"""The slow clear twin of `masks_store.views`: one weight at a time, networks run through forward hooks."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masks_store import Artifact, Backbone, bitmask


def effective_weights(backbone: Backbone, lineage: Sequence[Artifact]) -> dict[str, np.ndarray]:
    """Parameter name -> weights: the backbone's kept ones, then each claim's values put in one by one, in order.

    The last version that has masks may hide some of what its lineage owned before it.
    """
    result: dict[str, np.ndarray] = {}
    chooser = [artifact.version for artifact in lineage if artifact.manifest.masks][-1:]
    for name, kept in backbone.kept.items():
        if not any({f"mask/{name}", f"pick/{name}"} & artifact.tensors.keys() for artifact in lineage):
            result[name] = np.where(kept.numpy(), backbone.tensors[name].numpy(), np.float32(0.0))
            continue
        weights = [float(w) for w in backbone.tensors[name].flatten()]
        owned = [bool(k) for k in kept.flatten()]
        hidden = [False] * len(weights)
        for artifact in lineage:
            piggyback, chooses = artifact.manifest.method == "piggyback", artifact.version in chooser
            if chooses and piggyback:
                hidden = [not bit for bit in _bits(artifact, f"mask/{name}")]
            elif chooses and f"pick/{name}" in artifact.tensors:
                bits = iter(_bits(artifact, f"pick/{name}"))
                hidden = [o and not next(bits) for o in owned]
            if not piggyback and f"mask/{name}" in artifact.tensors:
                bits = iter(_bits(artifact, f"mask/{name}"))
                values = iter(artifact.tensors[f"value/{name}"].float().tolist())
                for i in [i for i in range(len(weights)) if not owned[i] and next(bits)]:
                    weights[i] = next(values)
                    owned[i] = True
        seen = [o and not h for o, h in zip(owned, hidden, strict=True)]
        result[name] = np.array([w if s else 0.0 for w, s in zip(weights, seen, strict=True)], np.float32)
        result[name] = result[name].reshape(tuple(kept.shape))
    return result


def claimed(backbone: Backbone, lineage: Sequence[Artifact]) -> dict[str, np.ndarray]:
    """Parameter name -> bool: what the last version of a lineage owns, position by position."""
    result: dict[str, np.ndarray] = {}
    for name, kept in backbone.kept.items():
        owned = [bool(k) for k in kept.flatten()]
        own = [False] * len(owned)
        for artifact in lineage:
            claims = artifact.manifest.method != "piggyback" and f"mask/{name}" in artifact.tensors
            bits = iter(_bits(artifact, f"mask/{name}")) if claims else iter(())
            own = [claims and not o and next(bits) for o in owned]
            owned = [o or new for o, new in zip(owned, own, strict=True)]
        result[name] = np.array(own, bool).reshape(tuple(kept.shape))
    return result


def _bits(artifact: Artifact, name: str) -> list[bool]:
    info, payload = artifact.manifest.masks[name], artifact.tensors[name].numpy().tobytes()
    return bitmask.decode(bitmask.Coded(info.codec, info.bits, info.ones, payload)).tolist()


def logits(backbone: Backbone, lineage: Sequence[Artifact], images: Tensor) -> Tensor:
    """Logits [N, classes]: an ordinary network whose tensors are set, with hooks for the adapters."""
    body = backbone.body()
    state = {name: tensor.clone() for name, tensor in backbone.tensors.items()}
    state |= {name: torch.from_numpy(w) for name, w in effective_weights(backbone, lineage).items()}
    adapters: dict[str, Tensor] = {}
    for artifact in lineage:
        for name, tensor in artifact.tensors.items():
            kind, _, rest = name.partition("/")
            if kind in ("norm", "bias"):
                state[rest] = tensor.float()
            if kind == "adapter":
                adapters[rest] = tensor.float()
    body.load_state_dict(state)
    for site, kernel in adapters.items():
        body.get_submodule(site).register_forward_hook(_depthwise(kernel))
    leaf = lineage[-1].tensors
    with torch.no_grad():
        return F.linear(body.eval()(images), leaf["head.weight"].float(), leaf["head.bias"].float())


def _depthwise(kernel: Tensor):
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return F.conv2d(output, kernel, padding=1, groups=len(kernel))

    return hook


def digest(parts: Mapping[str, Tensor], classes: Sequence[str], preprocess: Mapping[str, object]) -> str:
    """The task digest, written from FORMAT.md with struct alone."""
    hasher = hashlib.sha256()
    for name in sorted(parts):
        shape = list(parts[name].shape)
        hasher.update(json.dumps([name, shape]).encode())
        for value in parts[name].flatten().tolist():
            hasher.update(struct.pack("<f", 0.0 if value == 0.0 else value))
    rest = {"classes": list(classes), "preprocess": preprocess}
    hasher.update(json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())
    return "sha256:" + hasher.hexdigest()
