"""A batch whose tasks' numbers are found by an address answers as the references do, whatever the network.

Slow operators in torch read the addresses here, so that it is the tables that are tried: `test_kernels.py` tries the
fast ones.
"""

from __future__ import annotations

import pytest

from masks_store import read_artifact
from service.engine import Kernels
from service.engine.operators import RowKernels
from service.engine.stages import Recorded
from service.engine.ways import Ways

from .. import zoo
from ..reference import rows
from ..service import rig
from ..service.test_engine import ORDER_FREE, check_alone_and_mixed
from ..service.test_units import UNITS

KERNELS = Kernels(rows=RowKernels(taps=rows.taps, scale=rows.scale, heads=rows.heads))
ROOM = 1 << 30


def again() -> Ways:
    """Rows by address, in forwards that are run again in static memory."""
    return Ways(kernels=KERNELS, capture=lambda work, stream: Recorded(work, 0))


def by_address(made: rig.Rig) -> set[str]:
    return {name for name, task in made.loaded.items() if task.row is not None}


@pytest.mark.parametrize("ways", [again(), Ways(kernels=KERNELS)])
def test_every_method_on_every_base_answers_alone_and_mixed(ways: Ways) -> None:
    made = rig.rig(zoo.backbone(keep=0.5), ways=ways, graph_bytes=ROOM)
    assert {"clr-a", "bn", "clr-on-child", "bn-on-packnet", "clr-on-piggyback"} <= by_address(made)
    for task in (made.loaded[name] for name in by_address(made)):
        held = [task.row.numbers if task.row else None, task.head_weight, task.head_bias]
        assert task.size == sum(t.nbytes for t in held if t is not None), "its numbers are there once"
    check_alone_and_mixed(made)


@pytest.mark.parametrize("arch", ["mobilenet_v2", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_adapters_behind_some_convolutions_and_behind_all_and_norms_alone(arch: str) -> None:
    made = rig.rig(zoo.light_backbone(arch, size=32), ORDER_FREE, ways=again(), graph_bytes=ROOM)
    full = zoo.task(made.backbone, "full", "clr", full=True, seed=9, classes=4, hashed=False)
    made.add("full", [read_artifact(full)])
    assert by_address(made) == {"clr-a", "bn", "full"}
    check_alone_and_mixed(made)


def test_tasks_on_a_smaller_network_have_no_row_for_its_sizes_are_no_form_s() -> None:
    made = rig.rig(zoo.backbone(keep=0.0, size=8), UNITS, ways=again(), graph_bytes=ROOM)
    assert by_address(made) == set()
    check_alone_and_mixed(made)
