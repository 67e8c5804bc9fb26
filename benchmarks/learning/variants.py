"""The methods as the experiments on photographs run them, and what they have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import Settings


@dataclass(frozen=True)
class Variant:
    """A method as an experiment runs it.

    Attributes:
        keep: share of the backbone's weights that its store keeps.
        settings: what departs from the method's defaults.
        rates: learning rates to choose from, on validation pictures; the middle one is used without a choice.
        capacity: what tasks take of its store: `weights` or `units`.
        first: what departs from the defaults of the first task's method, on which the others then stand; None: the
            first task is trained as the others are.
        chosen_as: the variant whose chosen learning rate it takes; None: it has a choice of its own.
    """

    keep: float
    settings: Settings
    rates: tuple[float, float, float]
    capacity: str = "weights"
    first: Settings | None = None
    chosen_as: str | None = None


@dataclass(frozen=True)
class Protocol:
    """What all variants have in common.

    Attributes:
        arch, weights, size: of the backbone; `size` in pixels.
        epochs: that every method shows the pictures for, over all of its phases.
        per_class: training pictures of a class; None: all.
        pictures: training pictures of a set, its classes as even as can be; None: all.
        threads: of the arithmetic.
        precision: as `taskpack train` has it.
        keep: share of the weights that every store keeps, whatever the variant's; None: the variant's.
    """

    arch: str
    weights: Path | None
    size: int
    epochs: int
    per_class: int | None = None
    pictures: int | None = None
    threads: int = 1
    precision: str = "32-true"
    keep: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For the result, without a path of the machine."""
        return dataclasses.asdict(self) | {"weights": self.weights.name if self.weights is not None else None}


_SGD, _ADAM, _OVERLAY = (0.003, 0.01, 0.03), (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)


_PICKS = (2e-4, 5e-4, 1e-3)
"""PackNet that picks, too, trains with Adam; its masks' rate is 0.6 of these."""


def _packnet(prune: float | str | None = 0.75, *, chosen_as: str | None = "packnet equal", **others: Any) -> Variant:
    return Variant(0.5, Settings(method="packnet", prune=prune, **others), _SGD, chosen_as=chosen_as)


def _clnp(margin: float, **others: Any) -> Variant:
    return Variant(0.0, Settings(method="clnp", margin=margin, optimizer="adam", **others), _ADAM, capacity="units")


VARIANTS: Mapping[str, Variant] = {
    "packnet equal": _packnet("equal:{tasks}", chosen_as=None),
    "packnet auto": _packnet("auto"),
    "packnet pick": Variant(0.5, Settings(method="packnet", prune="equal:{tasks}", pick=True), _PICKS),
    "piggyback": Variant(1.0, Settings(method="piggyback"), _ADAM),
    "piggyback on the first": Variant(
        0.0, Settings(method="piggyback"), _ADAM, first=Settings(method="packnet", prune=0.0)
    ),
    "clr": Variant(1.0, Settings(method="clr"), _OVERLAY),
    "clr full": Variant(1.0, Settings(method="clr", adapter="full"), _OVERLAY),
    "bn": Variant(1.0, Settings(method="bn"), _OVERLAY),
    "linear": Variant(1.0, Settings(method="linear"), _OVERLAY),
    "finetune": Variant(1.0, Settings(method="finetune"), _SGD),
    "finetune adam": Variant(1.0, Settings(method="finetune", optimizer="adam"), _ADAM),
    **{f"packnet {100 * share:.0f}": _packnet(share) for share in (0.5, 0.6, 0.75, 0.9)},
    **{f"packnet {100 * share:.0f} filters": _packnet(share, prune_by="filters") for share in (0.5, 0.75, 0.9)},
    "packnet last layer": _packnet(0.75, train_layers="last:1"),
    "packnet head": _packnet(None, train_layers="head"),
    "linear pruned": Variant(0.5, Settings(method="linear"), _OVERLAY),
    **{f"clnp {margin:g}": _clnp(margin) for margin in (1.0, 2.0, 4.0)},
    **{f"clnp {margin:g} finetuned": _clnp(margin, finetune=True) for margin in (1.0, 2.0, 4.0)},
}
METHODS = ("packnet equal", "packnet auto", "packnet pick", "piggyback", "clr", "clr full", "bn", "linear", "finetune")
"""One of each, for pretrained backbones."""


def settings_of(
    variant: Variant,
    protocol: Protocol,
    tasks: int,
    rate: float | None,
    seed: int,
    *,
    last: bool = False,
    first: str | None = None,
) -> Settings:
    """A variant's settings under the protocol.

    What retrains after pruning or sparsifying (PackNet, CLNP that is fine-tuned) does so for half as many epochs as it
    trains, rounded: two thirds of the epochs are its main phase, so that it shows the pictures as often as the others.
    The `last` of PackNet's equal tasks prunes nothing and has one phase. What `--prune auto` tries comes on top, and is
    counted.

    Args:
        variant, protocol: see there.
        tasks: that the store is for.
        rate: of learning; None: the method's default.
        seed: of everything that is random.
        last: whether it is the last of those tasks.
        first: the first task's name, once it is trained.
    """
    own = variant.settings
    if variant.first is not None:
        own, rate = (variant.first, None) if first is None else (dataclasses.replace(own, on=first), rate)
    prune = own.prune.format(tasks=tasks) if isinstance(own.prune, str) else own.prune
    prunes = bool(prune) and not (last and str(prune).startswith("equal"))
    retrains = prunes or own.finetune
    return dataclasses.replace(
        own,
        prune=prune,
        epochs=max(1, protocol.epochs * 2 // 3) if retrains else protocol.epochs,
        lr=rate,
        precision=protocol.precision,
        threads=protocol.threads,
        seed=seed,
    )
