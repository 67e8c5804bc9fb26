"""What an engine ought to keep, by the slow twins and bit for bit: its weights, who owns them, and each slot's view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from service.engine.shared import FREE, KEPT

from ..reference import views as reference
from . import rig


def scales_of(own: rig.Rig, name: str) -> dict[str, Tensor]:
    """Parameter name -> float32 [O]: what a task's norm multiplies each channel of a tinyresnet's weight with."""
    norm = dict(own.backbone.tensors)
    for artifact in own.tasks[name]:
        norm |= {key.removeprefix("norm/"): t for key, t in artifact.tensors.items() if key.startswith("norm/")}
    found: dict[str, Tensor] = {}
    for layer in own.backbone.kept:
        module = layer.removesuffix(".weight").replace("conv", "bn").replace("shortcut.0", "shortcut.1")
        variance = norm[f"{module}.running_var"].double() + own.backbone.eps[module]
        found[layer] = (norm[f"{module}.weight"].double() / variance.sqrt()).float()
    return found


class Ought:
    """What a rig over a tinyresnet ought to keep, worked out when it is made; made while nothing is wrong.

    Args:
        own: the rig, whose tasks stay what they are.
    """

    def __init__(self, own: rig.Rig) -> None:
        self._own = own
        self._shared = own.engine.shared
        self._layout = self._shared.layout(own.dtype)
        self._seen = {name: reference.effective_weights(own.backbone, lineage) for name, lineage in own.tasks.items()}
        self._claims = {
            lineage[-1].version: reference.claimed(own.backbone, lineage)
            for lineage in own.tasks.values()
            if lineage[-1].manifest.claims
        }
        self._shown = {name: self._bits_of(name) for name, task in own.loaded.items() if task.shown is not None}
        self.views: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        for name, task in own.loaded.items():
            key, view = (own.sight(name).key, f"norm {task.layers.key}" if task.folds else ""), self._view(name)
            same = self.views.setdefault(key, view)
            assert all(alike(same[layer], view[layer]) for layer in view), f"{key} names another view for {name}"

    def faults(self) -> list[str]:
        """What is not as it ought to be: of the weights, the owners, what each task sees, the slots."""
        return [*self._of_weights(), *self._of_owners(), *self._of_sights(), *self._of_slots()]

    def _of_weights(self) -> Iterator[str]:
        base = self._own.backbone.tensors
        pool = {layer: base[layer].clone() for layer in self._layout.places}
        for name, lineage in self._own.tasks.items():
            for layer, own in self._claims.get(lineage[-1].version, {}).items():
                where = torch.from_numpy(own & (self._seen[name][layer] != 0))
                pool[layer][where] = torch.from_numpy(self._seen[name][layer])[where]
        for what, held, expected in (
            ("base", self._shared.base(self._own.dtype), base),
            ("pool", self._shared.pool(self._own.dtype), pool),
        ):
            for layer, place in self._layout.places.items():
                if not alike(held.memory[layer], place.arranged(expected[layer])):
                    yield f"{what}: {layer}"

    def _of_owners(self) -> Iterator[str]:
        numbers = self._shared._ids
        for version in numbers.keys() ^ self._claims.keys():
            yield f"claims: {version}"
        for layer, owner in self._shared._owners.items():
            expected = torch.where(self._own.backbone.kept[layer], KEPT, FREE)
            for version, claim in self._claims.items():
                expected[torch.from_numpy(claim[layer])] = numbers.get(version, FREE)
            if not torch.equal(owner.int(), expected.int()):
                yield f"owners: {layer}"

    def _of_sights(self) -> Iterator[str]:
        for name, expected in self._shown.items():
            shown = self._own.loaded[name].shown
            if shown is None or not torch.equal(shown, expected):
                yield f"sees: {name}"

    def _of_slots(self) -> Iterator[str]:
        for slot in self._own.engine.slots._slots:
            if not slot.ready:
                continue
            if slot.key is None or slot.key not in self.views:
                yield f"slot of nobody: {slot.key}"
                continue
            for layer, expected in self.views[slot.key].items():
                if not alike(slot.weights.memory[layer], expected):
                    yield f"slot {slot.key}: {layer}"

    def _view(self, name: str) -> dict[str, Tensor]:
        """Layer -> memory [length] of its view: one rounding to the dtype, +0.0 where nothing is seen."""
        scales = scales_of(self._own, name) if self._own.loaded[name].folds else {}
        found: dict[str, Tensor] = {}
        for layer, place in self._layout.places.items():
            seen = torch.from_numpy(self._seen[name][layer])
            weight = seen.to(place.dtype).float()
            if layer in scales:
                weight = weight * scales[layer].view(-1, *(1,) * (weight.dim() - 1))
            found[layer] = place.arranged(torch.where(seen != 0, weight, 0.0)).clone()
        return found

    def _bits_of(self, name: str) -> Tensor:
        return self._layout.bits({layer: torch.from_numpy(seen != 0) for layer, seen in self._seen[name].items()})


def alike(one: Tensor, other: Tensor) -> bool:
    """The same bits: of zeros the sign too, and of what is no number."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
