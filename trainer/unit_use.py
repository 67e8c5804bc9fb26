"""CLNP's diagnostics: per layer, the units that a task added and reused, and how many are left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from masks_store import Artifact, Backbone, decode_units, unit_tasks_left, units_of


@dataclass(frozen=True)
class UnitUse:
    """One group of units after a task.

    Attributes:
        layer: the group's first layer, for which it is named.
        units: in the group.
        new: added by the task.
        reused: of earlier tasks, used by this one too.
        free: owned by nobody now.
    """

    layer: str
    units: int
    new: int
    reused: int
    free: int


def unit_use(backbone: Backbone, artifact: Artifact, free: Mapping[str, Tensor]) -> tuple[UnitUse, ...]:
    """The diagnostics of one clnp artifact, in the network's order.

    Args:
        backbone: the shared network.
        artifact: the task's.
        free: parameter name -> bool of its shape: the weights that nobody owned before it.
    """
    units = decode_units(artifact, backbone.units)
    taken = units_of(backbone.units, {name: ~mask for name, mask in free.items()})
    return tuple(
        UnitUse(
            layer=group,
            units=size,
            new=int(units.new[group].sum()),
            reused=int((units.used[group] & ~units.new[group]).sum()),
            free=int((~taken[group] & ~units.new[group]).sum()),
        )
        for group, size in backbone.units.sizes.items()
    )


def unit_cost(backbone: Backbone, free: Mapping[str, Tensor]) -> str:
    """What a clnp run will take, in words.

    Args:
        backbone: the shared network.
        free: parameter name -> bool of its shape: the weights that nobody owns.
    """
    taken = units_of(backbone.units, {name: ~mask for name, mask in free.items()})
    units, left = sum(backbone.units.sizes.values()), sum(int((~mask).sum()) for mask in taken.values())
    return f"trains all {left:,} free units ({100 * left / units:.1f} % of {units:,}) and keeps those that stay active"


def units_left(uses: Sequence[UnitUse]) -> int | None:
    """How many more tasks find their units, each taking of every layer what this one took; None where it took none."""
    return unit_tasks_left({use.layer: use.free for use in uses}, {use.layer: use.new for use in uses})


def tell_units(uses: Sequence[UnitUse]) -> Iterator[str]:
    """The diagnostics in words: a line per layer, and what is left."""
    for use in uses:
        yield (
            f"  {use.layer}: {use.new:,} new and {use.reused:,} reused of {use.units:,} units; "
            f"{use.free:,} free ({100 * use.free / use.units:.0f} %)"
        )
    left = units_left(uses)
    if left is None:
        yield "units: this task took none"
    else:
        yield f"units: room for {left} more such task{'s' * (left != 1)}"
