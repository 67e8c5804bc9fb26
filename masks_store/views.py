"""How one task sees the shared network: masked weights, its norm, biases and adapter, and its head.

A view is passed in, never set on a module: `bind(backbone, view)` gives a function from images to logits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .artifact import NORM_FIELDS, Artifact
from .backbones import Backbone
from .manifest import Preprocess
from .methods.clnp import cut
from .networks import adapted, bias_params
from .owners import Claim, claimed_values, decode_claim, visible
from .positions import chosen
from .selections import Selection, decode_selection, selection_over
from .takers import Takers
from .unit_claims import gated_state, used_units
from .units import Units


@dataclass(frozen=True)
class Overlay:
    """What a task lays over the shared weights; small, and all of it float32.

    Attributes:
        norm: `<module>.{weight,bias,running_mean,running_var}` -> [C]; only modules that are not the backbone's.
        bias: parameter name -> [C]; only those that are not the backbone's.
        adapter: module name -> [C, 1, 3, 3] depthwise kernels.
        head_weight, head_bias: [classes, features], [classes].
    """

    norm: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor


@dataclass(frozen=True)
class View:
    """One task's whole network, as tensors.

    Attributes:
        version: the artifact's digest.
        method: how it was made.
        weights_key: versions with the same key see the same `weights` and may share a forward pass.
        weights: parameter name -> float32, +0.0 wherever the lineage owns nothing or hides what it owns.
        overlay: the rest.
        classes: class names, in the head's order.
        preprocess: the store's.
        units: group -> bool [units], the units that it sees; None where it sees all of every layer (no clnp).
    """

    version: str
    method: str
    weights_key: str
    weights: Mapping[str, Tensor]
    overlay: Overlay
    classes: tuple[str, ...]
    preprocess: Preprocess
    units: Units | None = None


def lineage_claims(backbone: Backbone, lineage: Sequence[Artifact]) -> list[Claim]:
    """The claims of a lineage, root first.

    Raises:
        FormatError: a claim that does not fit the ones before it.
    """
    claims: list[Claim] = []
    for artifact in lineage:
        claims.append(decode_claim(artifact, backbone, claims))
    return claims


def weights_key(backbone: Backbone, lineage: Sequence[Artifact]) -> str:
    """The version of the last artifact in the lineage that holds masks, else the backbone's digest."""
    return next((a.version for a in reversed(lineage) if a.manifest.masks), backbone.digest)


def selection_of(backbone: Backbone, lineage: Sequence[Artifact], claims: Sequence[Claim] | None = None) -> Selection:
    """The selection under which the last artifact of a lineage computes: that of the nearest version with masks.

    So a selection holds for the version that has it and for the order-free tasks that are built on it; a version
    that claims or selects chooses anew from all that the lineage owns.

    Args:
        backbone: the shared network.
        lineage: root first, the version itself last.
        claims: the lineage's, where they are at hand.

    Returns:
        See `selections.Selection`; empty where nothing is hidden.

    Raises:
        FormatError: a claim or a selection that does not fit its lineage.
    """
    at = _chooser(backbone, lineage)
    if at is None:
        return {}
    above = lineage_claims(backbone, lineage[:at]) if claims is None else claims[:at]
    return decode_selection(lineage[at], backbone, above)


def _chooser(backbone: Backbone, lineage: Sequence[Artifact]) -> int | None:
    """Which of a lineage has the selection under which the last of it computes; None where nothing is hidden."""
    key = weights_key(backbone, lineage)
    at = next((i for i, artifact in enumerate(lineage) if artifact.version == key), None)
    return None if at is None or not lineage[at].manifest.selections else at


def seen_by(backbone: Backbone, lineage: Sequence[Artifact], claims: Sequence[Claim]) -> dict[str, Tensor]:
    """Parameter name -> bool: the weights that the last artifact of a lineage computes with.

    The backbone's own and the lineage's claims, without what its selection hides (FORMAT.md §3).

    Args:
        backbone: the shared network.
        lineage: root first, the version itself last.
        claims: one for each artifact of the lineage.

    Raises:
        FormatError: a selection that does not fit its lineage.
    """
    seen = visible(backbone, claims)
    for name, shown in selection_of(backbone, lineage, claims).items():
        seen[name] &= shown
    return seen


def owned_weights(backbone: Backbone, lineage: Sequence[Artifact]) -> dict[str, Tensor]:
    """Parameter name -> float32: all that a lineage owns, whatever its versions select, and +0.0 elsewhere.

    Raises:
        FormatError: a claim that does not fit its lineage.
    """
    return _owned(backbone, lineage, Takers.of(lineage_claims(backbone, lineage)))


def overlay_of(lineage: Sequence[Artifact]) -> Overlay:
    """What the last artifact of a lineage lays over the shared weights; of norms and biases of units see `view_with`.

    A norm or bias that it lacks comes from the nearest ancestor that has it. An adapter is its own and also applies
    to what is built on it: a child sees its whole lineage.

    Args:
        lineage: root first, the version itself last; not empty.
    """
    norm: dict[str, Tensor] = {}
    bias: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for artifact in lineage:
        norm |= _floats(artifact.of_kind("norm"))
        bias |= _floats(artifact.of_kind("bias"))
        adapter |= _floats(artifact.of_kind("adapter"))
    tensors = lineage[-1].tensors
    return Overlay(norm, bias, adapter, tensors["head.weight"].float(), tensors["head.bias"].float())


def view_of(backbone: Backbone, lineage: Sequence[Artifact], takers: Takers | None = None) -> View:
    """Materialise the view of the last artifact of a lineage.

    Args:
        backbone: the shared network.
        lineage: root first, the version itself last.
        takers: the lineage's claims, where they are at hand.

    Raises:
        FormatError: a claim or a selection that does not fit its lineage.
    """
    return view_with(backbone, lineage, shared_weights(backbone, lineage, takers))


def shared_weights(backbone: Backbone, lineage: Sequence[Artifact], takers: Takers | None = None) -> dict[str, Tensor]:
    """Parameter name -> float32: the shared weights that the last of a lineage sees, +0.0 everywhere else.

    Of a lineage without masks they are the backbone's own (`Backbone.own`), shared and not copied.

    Args:
        backbone: the shared network.
        lineage: root first, the version itself last.
        takers: the lineage's claims, where they are at hand.

    Raises:
        FormatError: a claim or a selection that does not fit its lineage.
    """
    if not any(artifact.manifest.masks for artifact in lineage):
        return dict(backbone.own)
    takers = Takers.of(lineage_claims(backbone, lineage)) if takers is None else takers
    at = _chooser(backbone, lineage)
    selection = {} if at is None else selection_over(lineage[at], takers.seen(backbone, at))
    weights = _owned(backbone, lineage, takers)
    return weights | {name: chosen(weights[name], shown) for name, shown in selection.items()}


def view_with(backbone: Backbone, lineage: Sequence[Artifact], weights: Mapping[str, Tensor]) -> View:
    """The view of the last artifact of a lineage, given the shared weights that it sees.

    Of a lineage with clnp artifacts: what is outside the units of the nearest of them is gated to exactly 0.

    Args:
        backbone: the shared network.
        lineage: root first, not empty.
        weights: parameter name -> float32, +0.0 wherever the lineage owns nothing, or hides it.
    """
    leaf, used, overlay = lineage[-1], used_units(backbone, lineage), overlay_of(lineage)
    if used is not None:
        state = gated_state(backbone, lineage, weights, used)
        weights = {name: state[name] for name in weights}
        overlay = _with_units(overlay, backbone, state)
    return View(
        version=leaf.version,
        method=leaf.manifest.method,
        weights_key=weights_key(backbone, lineage),
        weights=weights,
        overlay=overlay,
        classes=leaf.manifest.classes,
        preprocess=leaf.manifest.preprocess,
        units=used,
    )


def cut_view(backbone: Backbone, view: View) -> View:
    """The smaller dense network of a view's units, as a view: equal to the gated one up to the order of its sums.

    `bind` and `state_of` take it like any other: its tensors only have fewer channels.

    Args:
        backbone: the shared network.
        view: of a lineage with clnp artifacts (`units` is not None).
    """
    assert view.units is not None, "only a view of units can be cut"
    graph = backbone.units
    small = cut(graph, state_of(backbone, view), view.units)
    columns = graph.features_of(view.units, backbone.features)
    adapter = {name: kernel[graph.rows(name, view.units)] for name, kernel in view.overlay.adapter.items()}
    overlay = replace(
        _with_units(view.overlay, backbone, small), adapter=adapter, head_weight=view.overlay.head_weight[:, columns]
    )
    return replace(view, weights={name: small[name] for name in view.weights}, overlay=overlay)


def _with_units(overlay: Overlay, backbone: Backbone, state: Mapping[str, Tensor]) -> Overlay:
    """An overlay whose norms and biases, all of them, are those of a state."""
    norm = {f"{module}.{field}": state[f"{module}.{field}"] for module in backbone.units.norms for field in NORM_FIELDS}
    return replace(overlay, norm=norm, bias={name: state[name] for name in bias_params(backbone.shape)})


def state_of(backbone: Backbone, view: View) -> dict[str, Tensor]:
    """The state dict of the adapted body: every parameter and buffer as the task sees it."""
    state = {**backbone.tensors, **view.weights, **view.overlay.norm, **view.overlay.bias}
    return state | {f"{module}.adapter": kernel for module, kernel in view.overlay.adapter.items()}


def bind(backbone: Backbone, view: View) -> Callable[[Tensor], Tensor]:
    """The task as a function: the slow, clear reference that every engine is compared with.

    Args:
        backbone: the shared network.
        view: the task.

    Returns:
        A function of normalised images float32 [N, 3, H, W] giving logits float32 [N, classes]; eager, CPU.
    """
    body = adapted(backbone.shape_only(), view.overlay.adapter).eval().requires_grad_(False)
    state = state_of(backbone, view)

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            features = call_body(body, state, images)  # [N, features]
            return F.linear(features, view.overlay.head_weight, view.overlay.head_bias)

    return forward


def call_body(body: nn.Module, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Run a body with the given state in place of its own; float32 [N, 3, H, W] to [N, features]."""
    return functional_call(body, dict(state), (images,), strict=True)


def task_digest(backbone: Backbone, view: View) -> str:
    """sha256 over all that a task computes with, and nothing else.

    Sorted by name: name, shape and float32 little-endian bytes (-0.0 written as +0.0) of effective weights, norm,
    biases, units, adapter, head and every norm's epsilon; then class names and preprocess as JSON.

    Returns:
        `sha256:<64 hex>`.
    """
    parts = {n: t for n, t in state_of(backbone, view).items() if not n.endswith("num_batches_tracked")}
    parts |= {"head.weight": view.overlay.head_weight, "head.bias": view.overlay.head_bias}
    parts |= {f"{group}.units": mask.float() for group, mask in (view.units or {}).items()}
    parts |= {f"{module}.eps": torch.tensor([eps]) for module, eps in backbone.eps.items()}
    hasher = hashlib.sha256()
    for name in sorted(parts):
        array = np.ascontiguousarray(parts[name].detach().to(torch.float32).cpu().numpy(), dtype="<f4")
        hasher.update(json.dumps([name, list(array.shape)]).encode())
        hasher.update((array + np.float32(0.0)).tobytes())  # -0.0 + 0.0 is +0.0
    rest = {"classes": view.classes, "preprocess": view.preprocess.model_dump(mode="json")}
    hasher.update(json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())
    return "sha256:" + hasher.hexdigest()


def _owned(backbone: Backbone, lineage: Sequence[Artifact], takers: Takers) -> dict[str, Tensor]:
    """Parameter name -> float32: all that a lineage owns, and +0.0 elsewhere."""
    return takers.weights(backbone, [claimed_values(artifact, backbone) for artifact in lineage])


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
