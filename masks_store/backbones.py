"""The backbone file: the shared network without a head, immutable, and which of its weights it keeps for itself.

`create` makes one from an architecture and weights, `read_backbone` reads one. FORMAT.md §2 is the layout.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from . import bitmask, container
from .bodies import default_size, fixed_size
from .errors import FormatError, InvalidInput
from .manifest import (
    MAX_SIZE,
    MIN_SIZE,
    BackboneManifest,
    MaskInfo,
    Preprocess,
    Provenance,
    dump_manifest,
    parse_manifest,
)
from .methods.packnet import survivors
from .networks import arch_fault, build, norm_modules, packable
from .shapes import Shapes, shapes_of, without_numbers
from .units import UnitGraph, unit_graph
from .weights import Weights, load_weights, source_fault, state_faults


@dataclass(frozen=True)
class BackboneFile:
    """A backbone that was made.

    Attributes:
        data: the file.
        source: the file of the dense weights that it was pruned from; None where nothing was pruned.
        notes: lines for people: what was stripped from the weights that were given.
    """

    data: bytes
    source: bytes | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backbone:
    """A read backbone; nothing in it ever changes.

    Attributes:
        manifest: architecture, size, preprocess, share kept.
        digest: `sha256:<64 hex>` of the file.
        tensors: parameter or buffer name -> tensor, float32 (counters int64); zeros at free positions.
        kept: parameter name -> bool of the parameter's shape: True where the weight is the backbone's own, False
            where tasks may claim it. One entry for every convolution's and linear layer's weight.
    """

    manifest: BackboneManifest
    digest: str
    tensors: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]

    def body(self) -> nn.Module:
        """A fresh network with these weights, eval mode, nothing requiring gradients."""
        body = self.shape_only()
        body = body.to_empty(device="cpu")
        body.load_state_dict(dict(self.tensors))
        return body.eval().requires_grad_(False)

    def shape_only(self) -> nn.Module:
        """The network on the meta device: names and shapes, no numbers; the caller's own copy."""
        with torch.device("meta"):
            return copy.deepcopy(self.shape)

    @cached_property
    def shape(self) -> nn.Module:
        """`shape_only` for those who only look: one for all, made once, and never to be changed or called."""
        with without_numbers():
            return build(self.manifest.arch, self.manifest.arch_args)

    @cached_property
    def own(self) -> Mapping[str, Tensor]:
        """Parameter name -> the backbone's own weights, +0.0 where tasks may claim: what order-free tasks on it see.

        One for all of them, never to be changed; where it keeps a whole layer, the layer's tensor itself.
        """
        return {
            name: self.tensors[name] if bool(kept.all()) else torch.where(kept, self.tensors[name], 0.0)
            for name, kept in self.kept.items()
        }

    @cached_property
    def shapes(self) -> Shapes:
        """What its layers read and what it gives for a picture of its size."""
        return shapes_of(self.shape, self.manifest.image_size)

    @property
    def features(self) -> int:
        """Length of the feature vector that a head reads."""
        return self.shapes.features

    @cached_property
    def units(self) -> UnitGraph:
        """Its units, and what makes and reads them.

        Raises:
            InvalidInput: a network that CLNP does not support.
        """
        return unit_graph(self.shape_only(), self.manifest.arch)

    @cached_property
    def eps(self) -> dict[str, float]:
        """BatchNorm module name -> its epsilon."""
        return {name: norm.eps for name, norm in norm_modules(self.shape).items()}


def create(
    arch: str,
    *,
    weights: Weights = None,
    image_size: int | None = None,
    keep: float = 1.0,
    seed: int = 0,
    arch_args: Mapping[str, object] | None = None,
) -> BackboneFile:
    """Make a backbone file.

    The `1 - keep` smallest weights in magnitude of every layer are freed and set to 0 ([P] §3, phase A without its
    retraining, which is the trainer's).

    Args:
        arch: see `networks.build`.
        weights: a safetensors file of the network's state dict (with or without a head, any float type; see
            `load_weights`), `"torchvision"` for its default ImageNet weights (downloads), or None for a random start.
        image_size: side of the input in pixels; by default 28 for an mlp, 32 for our other networks, else 224.
        keep: share of each layer's weights that stay the backbone's own: 1 keeps all, 0 frees all.
        seed: of the random start.
        arch_args: keyword arguments of the architecture.

    Raises:
        InvalidInput: with every fault of the arguments or the weights file.
    """
    faults = backbone_faults(arch, weights, image_size, keep)
    if faults:
        raise InvalidInput("; ".join(faults), faults)
    size = image_size if image_size is not None else default_size(arch)
    args = {**({"image_size": size} if fixed_size(arch) else {}), **(arch_args or {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = build(arch, args)
    _check_size(body, arch, size)
    notes: tuple[str, ...] = ()
    if weights is not None:
        state, notes = load_weights(body, arch, weights)
        body.load_state_dict(state)
    manifest = BackboneManifest(
        schema=1,  # pyright: ignore[reportCallIssue]
        arch=arch,
        arch_args=args,  # pyright: ignore[reportArgumentType]
        image_size=size,
        keep=keep,
        preprocess=Preprocess(resize=size, size=size),
        provenance=Provenance(
            seed=seed if weights is None else None,
            versions={"torch": torch.__version__, "torchvision": version("torchvision")},
        ),
    )
    return replace(encode_backbone(manifest, body.state_dict(), prune_to(body, keep)), notes=notes)


def backbone_faults(arch: str, weights: Weights, image_size: int | None, keep: float) -> list[str]:
    """What is wrong with the arguments of `create`, as far as that is seen without building or reading anything."""
    faults = [fault for fault in (arch_fault(arch),) if fault]
    if image_size is not None and not MIN_SIZE <= image_size <= MAX_SIZE:
        faults.append(f"image size {image_size} must be {MIN_SIZE} to {MAX_SIZE} pixels")
    if not 0.0 <= keep <= 1.0:
        faults.append(f"keep {keep} must be 0 to 1")
    missing = source_fault(arch, weights) if weights is not None else None
    faults += [missing] if missing else []
    if keep == 0.0 and weights is not None:
        faults.append("keep 0 frees every weight, so weights would be thrown away: leave --weights out or keep more")
    return faults


def prune_to(body: nn.Module, keep: float) -> dict[str, Tensor]:
    """Parameter name -> bool: the `keep` share of each layer's weights largest in magnitude."""
    ones = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in packable(body).items()}
    return {name: survivors(weight, ones[name], 1.0 - keep) for name, weight in packable(body).items()}


def encode_backbone(
    manifest: BackboneManifest, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> BackboneFile:
    """Write a backbone file: zeros at free positions, the kept bits coded, the dense source beside it.

    Args:
        manifest: `masks` and `source` are filled in here (a `source` that is there stays).
        tensors: the whole state dict of the body, dense.
        kept: parameter name -> bool of its shape, for every packable parameter.
    """
    plain = {n: (t.detach().to(torch.float32) if t.is_floating_point() else t.detach()) for n, t in tensors.items()}
    if manifest.keep >= 1.0:
        return BackboneFile(container.pack(dump_manifest(manifest), plain))
    dense = None
    if manifest.source is None and manifest.keep > 0.0:
        dense = container.pack(dump_manifest(manifest.model_copy(update={"keep": 1.0, "masks": {}})), plain)
        manifest = manifest.model_copy(update={"source": container.digest_of(dense)})
    masks: dict[str, MaskInfo] = {}
    for name, mask in kept.items():
        plain[name] = torch.where(mask, plain[name], 0.0)
        plain[f"mask/{name}"], masks[f"mask/{name}"] = encode_mask(mask.reshape(-1))
    return BackboneFile(container.pack(dump_manifest(manifest.model_copy(update={"masks": masks})), plain), dense)


def read_backbone(data: bytes, where: str = "backbone") -> Backbone:
    """Read a backbone file.

    Raises:
        FormatError: with every fault found.
    """
    text, tensors = container.unpack(data, where)
    manifest = parse_manifest(text, BackboneManifest, where)
    try:
        with without_numbers():
            body = build(manifest.arch, manifest.arch_args)
    except InvalidInput as error:
        raise FormatError(f"{where}: {error}", error.faults) from error
    state = body.state_dict()
    weights = packable(body)
    plain = {name: t for name, t in tensors.items() if not name.startswith("mask/")}
    faults = [*_size_faults(manifest), *state_faults(state, plain)]
    expected = {f"mask/{name}" for name in weights} if manifest.keep < 1.0 else set[str]()
    found = tensors.keys() - plain.keys()
    faults += [f"{name}: missing" for name in sorted((expected - found) | (expected - manifest.masks.keys()))]
    faults += [f"{name}: not expected" for name in sorted((found - expected) | (manifest.masks.keys() - expected))]
    faults += container.not_finite(plain)
    if faults:
        raise FormatError(f"{where}: {len(faults)} fault(s)", faults)
    kept = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    for name in sorted(expected):
        parameter = name.removeprefix("mask/")
        kept[parameter] = decode_mask(
            tensors[name], manifest.masks[name], weights[parameter].numel(), f"{where}: {name}"
        )
        kept[parameter] = kept[parameter].reshape(weights[parameter].shape)
        if bool(plain[parameter][~kept[parameter]].any()):
            faults.append(f"{parameter}: a free weight is not 0")
    if faults:
        raise FormatError(f"{where}: {len(faults)} fault(s)", faults)
    return Backbone(manifest, container.digest_of(data), plain, kept)


def encode_mask(mask: Tensor) -> tuple[Tensor, MaskInfo]:
    """Code a mask, bool [positions]: the tensor u8 [bytes] of a file and its entry in the manifest."""
    coded = bitmask.encode(mask.numpy())
    payload = torch.from_numpy(np.frombuffer(coded.payload, dtype=np.uint8).copy())
    return payload, MaskInfo(codec=coded.codec, bits=coded.bits, ones=coded.ones)  # pyright: ignore[reportArgumentType]


def decode_mask(payload: Tensor, info: MaskInfo, positions: int, where: str) -> Tensor:
    """Bool [positions] of a coded mask.

    Raises:
        FormatError: the mask is not over `positions` bits, or its payload is broken.
    """
    if info.bits != positions:
        raise FormatError(f"{where}: {info.bits} bits where {positions} were expected")
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise FormatError(f"{where}: a coded mask is u8 [bytes]")
    try:
        coded = bitmask.Coded(info.codec, info.bits, info.ones, payload.numpy().tobytes())
        return torch.from_numpy(bitmask.decode(coded))
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _size_faults(manifest: BackboneManifest) -> list[str]:
    built_for = manifest.arch_args.get("image_size", manifest.image_size)
    if fixed_size(manifest.arch) and built_for != manifest.image_size:
        return [f"manifest.image_size: {manifest.image_size} where {manifest.arch} was built for {built_for}"]
    return []


def _check_size(body: nn.Module, arch: str, size: int) -> None:
    try:
        shapes_of(body, size)
    except RuntimeError as error:
        raise InvalidInput(f"{arch} cannot take pictures of {size} pixels: {error}") from error
