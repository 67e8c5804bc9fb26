"""What one task lays over the shared weights, ready on the device: adapters, norms, biases and its head.

In evaluation a BatchNorm is one scale and one shift a channel, so it folds into what stands before it: into the weights
of a view that is the task's own, or into the taps of an adapter. Where neither is there it stays a norm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masks_store import Backbone, Overlay, identity_adapter

from .behind import Behind, NormTensors, table_of
from .layout import DTYPES, Weights
from .program import Conv, Linear, LoneNorm, Norm, Program
from .rows import Row, RowForm

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """What happens to the body's activations for a task's rows. Rows with the same `key` take the same path.

    Attributes:
        key: digest of the tensors; empty where the task takes the body as the backbone has it.
        behind: module name of a shared layer, or of a norm on its own -> what stands there; as the backbone has it
            where not named.
        scales: parameter name -> float32 [O], what the norm behind a layer multiplies its weight with.
        biases: parameter name of the weight -> [O] in the compute dtype: bias and norm behind the weight so multiplied.
        scale_table: float32, `scales` of every shared layer in their order, with ones where a layer has none; of a
            smaller network those that it has. `scales` are parts of it. None where nothing is multiplied.
        bias_table: every bias of `biases` in their order, which are parts of it. None where there is none.
    """

    key: str
    behind: Mapping[str, Behind]
    scales: Mapping[str, Tensor]
    biases: Mapping[str, Tensor | None]
    scale_table: Tensor | None = None
    bias_table: Tensor | None = None

    def with_biases(self, table: Tensor) -> Layers:
        """The same with the biases read from `table`, which holds what `bias_table` does."""
        named = {name: bias for name, bias in self.biases.items() if bias is not None}
        parts = dict(zip(named, table.split([len(bias) for bias in named.values()]), strict=True))
        return replace(self, biases={name: parts.get(name) for name in self.biases}, bias_table=table)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        behind = [tensor for own in self.behind.values() for tensor in own.tensors]
        return sum(t.nbytes for t in (*behind, *self.scales.values(), *self.biases.values()) if t is not None)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceOverlay:
    """A task on the device, without the shared weights.

    Attributes:
        version: the version's digest.
        layers: its part in the body.
        folds: whether its norm is multiplied into its view. Such tasks share a forward with those of the same norm.
        head_weight, head_bias: float32 [classes, features], [classes].
        size: bytes of its tensors, without `weights` and `shown`, which others may have too.
        shown: what it sees of the shared weights (`Shared.shown`): one bit a weight, from which its view is made
            whenever no slot holds it. None: the backbone's own.
        weights: of a smaller network (clnp), which tasks of equal weights share, or of a view that is in no pool yet;
            None where it computes with the shared ones.
        row: what would be in `layers.behind`, which is then empty, as `operators.RowKernels` find it; None where they
            cannot do it.
    """

    version: str
    layers: Layers
    folds: bool
    head_weight: Tensor
    head_bias: Tensor
    size: int
    shown: Tensor | None = None
    weights: Weights | None = None
    row: Row | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """What overlays are laid over: the backbone's program and its own norms and biases, on a device.

    Attributes:
        program: the traced network.
        norms: module name -> the backbone's norm.
        biases: parameter name -> the backbone's bias, float32.
        channels: parameter name -> output channels, of every shared layer.
    """

    program: Program
    norms: Mapping[str, NormTensors]
    biases: Mapping[str, Tensor]
    channels: Mapping[str, int]

    def layers(
        self, overlay: Overlay | None, dtype: str, *, folds: bool, compiled: bool = False, by_row: bool = False
    ) -> Layers:
        """A task's tensors as the forward takes them.

        Args:
            overlay: the task's; None for the backbone alone.
            dtype: `fp32` or `bf16`.
            folds: whether its norm goes into its view (`scales`, `biases`) or stays where it is (`behind`, which then
                has what the task brings, and for the backbone everything).
            compiled: whether what it brings is for the C function (`Behind.table`) or for torch's operators.
            by_row: whether a row (`row`) has what would stand `behind`, which is left out then; not with `folds`.
        """
        device = self.device
        folding = _Folding(self, overlay, device, DTYPES[dtype], compiled=compiled)
        behind: dict[str, Behind] = {}
        scales: dict[str, Tensor] = {}
        biases: dict[str, Tensor | None] = {}
        for step in () if by_row else self.program.steps:
            if isinstance(step, LoneNorm):
                if folding.brings(step.norm):
                    behind[step.norm.module] = folding.made(None, None, step.norm)
            elif isinstance(step, Conv | Linear) and folds:
                scale, biases[step.weight] = folding.folded(step)
                if scale is not None:
                    scales[step.weight] = scale
            elif isinstance(step, Conv | Linear) and folding.brings_any(step):
                behind[step.module] = folding.behind(step)
        scale_table, multiplied = self._scale_table(scales, device)
        bias_table, own = _table({name: bias for name, bias in biases.items() if bias is not None})
        key = "" if overlay is None else _key(overlay)
        return Layers(key, behind, multiplied, {name: own.get(name) for name in biases}, scale_table, bias_table)

    def row(self, overlay: Overlay, form: RowForm) -> Row | None:
        """A task's own numbers behind the layers in one row; None where its layers have what a row cannot hold.

        Args:
            overlay: the task's.
            form: with adapters wherever the task has one; where it has none, and the form does, it gets the identity.
        """
        device = self.device
        folding = _Folding(self, overlay, device, torch.float32, compiled=False)
        parts: dict[str, list[Tensor]] = {}
        for step in self.program.steps:
            if isinstance(step, Linear):
                if folding.brings_any(step) or step.norm is not None:
                    return None
            elif isinstance(step, LoneNorm):
                parts[step.norm.module] = list(folding.norm(step.norm).folded(step.norm.eps))
            elif isinstance(step, Conv) and step.module in form.columns:
                tapped = step.module in form.tapped
                if tapped and step.bias in overlay.bias:  # it stands before the adapter, which has zeros at the edges
                    return None
                parts[step.module] = folding.row(step, tapped=tapped)
        row = torch.cat([part.reshape(-1) for module in form.columns for part in parts[module]])
        return Row(form, row.to(device, torch.float32))

    def row_form(self, tapped: Collection[str]) -> RowForm:
        """Where the numbers of a row stand, with room for adapters behind the convolutions `tapped`."""
        columns: dict[str, int] = {}
        length = 0
        for step in self.program.steps:
            if isinstance(step, LoneNorm):
                module, count = step.norm.module, 2 * len(self.norms[step.norm.module].weight)
            elif isinstance(step, Conv) and (step.module in tapped or step.norm is not None or step.bias is not None):
                module, count = step.module, self.channels[step.weight] * (10 if step.module in tapped else 2)
            else:
                continue
            if module not in columns:
                columns[module], length = length, length + count
        return RowForm(frozenset(tapped), columns)

    @property
    def device(self) -> torch.device:
        """Where the norms and biases are; the CPU where there are none."""
        return next(iter([*self.biases.values(), *(n.weight for n in self.norms.values())]), torch.empty(0)).device

    def _scale_table(
        self, scales: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        if not scales:
            return None, {}
        ones = {name: torch.ones(count, device=device) for name, count in self.channels.items() if name not in scales}
        table, parts = _table({name: scales[name] if name in scales else ones[name] for name in self.channels})
        return table, {name: part for name, part in parts.items() if name in scales}


def _table(parts: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """One tensor of all, and its parts."""
    if not parts:
        return None, {}
    table = torch.cat(list(parts.values()))
    return table, dict(zip(parts, table.split([len(part) for part in parts.values()]), strict=True))


class _Folding:
    """One overlay's tensors, or the backbone's where it has none."""

    def __init__(
        self,
        frame: Frame,
        overlay: Overlay | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compiled: bool,
    ) -> None:
        self.frame = frame
        self.overlay = overlay
        self.device = device
        self.dtype = dtype
        self.compiled = compiled

    def brings(self, norm: Norm | None) -> bool:
        return norm is not None and (self.overlay is None or f"{norm.module}.weight" in self.overlay.norm)

    def brings_any(self, step: Conv | Linear) -> bool:
        if self.overlay is None:
            return True
        return self.brings(step.norm) or step.bias in self.overlay.bias or step.module in self.overlay.adapter

    def norm(self, norm: Norm) -> NormTensors:
        if self.overlay is None or not self.brings(norm):
            return self.frame.norms[norm.module]
        return NormTensors(*(self.full(self.overlay.norm[f"{norm.module}.{field}"]) for field in NORM_FIELDS))

    def bias(self, name: str | None) -> Tensor | None:
        if name is None:
            return None
        own = None if self.overlay is None else self.overlay.bias.get(name)
        return self.frame.biases[name] if own is None else self.full(own)

    def adapter(self, module: str) -> Tensor | None:
        return None if self.overlay is None else self.overlay.adapter.get(module)

    def behind(self, step: Conv | Linear) -> Behind:
        return self.made(self.bias(step.bias), self.adapter(step.module), step.norm)

    def made(self, bias: Tensor | None, taps: Tensor | None, norm: Norm | None) -> Behind:
        """A bias, an adapter and a norm, in this order."""
        taps, own = None if taps is None else self.full(taps), None if norm is None else self.norm(norm)
        scale, shift = (None, None) if own is None or norm is None else own.folded(norm.eps)
        narrow = None if bias is None else bias.to(self.dtype)
        if self.compiled:
            table = table_of(bias, taps, scale, shift)
            return Behind(bias=narrow, table=table, alone=taps is None and own is None)
        if taps is None:
            eps = 0.0 if norm is None else norm.eps
            return Behind(bias=narrow, norm=own, eps=eps, alone=own is None)
        if scale is not None and shift is not None:
            taps, shift = taps * scale.view(-1, 1, 1, 1), shift.to(self.dtype)
        return Behind(bias=narrow, taps=taps.to(self.dtype).contiguous(), shift=shift)

    def folded(self, step: Conv | Linear) -> tuple[Tensor | None, Tensor | None]:
        """(scale of the weight, bias behind it)."""
        bias = self.bias(step.bias)
        if step.norm is None:
            return None, None if bias is None else bias.to(self.dtype)
        scale, shift = self.norm(step.norm).folded(step.norm.eps)
        return scale, (shift if bias is None else bias * scale + shift).to(self.dtype)

    def row(self, step: Conv, *, tapped: bool) -> list[Tensor]:
        """[9, C] taps and [C] shift where `tapped`, else [C] scale and [C] shift."""
        count = self.frame.channels[step.weight]
        scale, shift = torch.ones(count, device=self.device), torch.zeros(count, device=self.device)
        if step.norm is not None:
            scale, shift = self.norm(step.norm).folded(step.norm.eps)
        if not tapped:
            bias = self.bias(step.bias)
            return [scale, shift if bias is None else shift + scale * bias]
        taps = self.adapter(step.module)
        if taps is None:
            taps = identity_adapter(count)
        return [(self.full(taps) * scale.view(-1, 1, 1, 1)).reshape(count, 9).T, shift]

    def full(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, torch.float32).contiguous()


def frame_of(program: Program, backbone: Backbone, device: torch.device) -> Frame:
    """The backbone's own norms and biases on a device."""

    def full(name: str) -> Tensor:
        return backbone.tensors[name].to(device, torch.float32)

    norms = {module: NormTensors(*(full(f"{module}.{field}") for field in NORM_FIELDS)) for module in backbone.eps}
    steps = [step for step in program.steps if isinstance(step, Conv | Linear)]
    channels = {name: len(kept) for name, kept in backbone.kept.items()}
    return Frame(program, norms, {step.bias: full(step.bias) for step in steps if step.bias is not None}, channels)


def _key(overlay: Overlay) -> str:
    """Two tasks with the same key lay the same numbers over the body; a child with its base's norm, say."""
    named = [
        (f"{kind}/{name}", tensor)
        for kind in ("norm", "bias", "adapter")
        for name, tensor in getattr(overlay, kind).items()
    ]
    if not named:
        return ""
    hasher = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()
