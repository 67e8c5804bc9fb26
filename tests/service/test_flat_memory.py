"""However often tasks are loaded, swapped and forgotten, the process takes no more memory than at the beginning."""

from __future__ import annotations

import gc
import random
import resource
from pathlib import Path

import pytest

from service.lineages import load_pooled, load_units

from .. import zoo
from . import rig
from .test_units import UNITS

MIB = 1 << 20


def resident() -> int:
    """Bytes of memory that this process takes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say it there")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ten_thousand_loads_swaps_and_evictions_leave_memory_flat(dtype: str) -> None:
    """Views in fewer slots than there are views, smaller networks of tasks' own, and batches of any mix."""
    pooled = rig.rig(zoo.backbone(keep=0.5), slot_bytes=1, dtype=dtype)
    cut = rig.rig(zoo.backbone(keep=0.0), UNITS, dtype=dtype)
    made = [(pooled, load_pooled, name) for name in pooled.tasks] + [(cut, load_units, name) for name in cut.tasks]
    picture = rig.pictures(pooled.backbone, 1, 0)
    draw = random.Random(0)

    def turn() -> None:
        own, load, name = draw.choice(made)
        own.loaded[name] = load(own.engine, own.backbone, own.tasks[name], dtype)
        beside = [other for other in own.tasks if own.sight(other) == own.sight(name)]
        asked = [name, *draw.choices(beside, k=draw.randrange(4))]
        own.run(asked, [picture] * len(asked))

    for _ in range(1000):
        turn()
    gc.collect()
    before, missed = resident(), pooled.engine.slots.misses
    for _ in range(10_000):
        turn()
    gc.collect()
    after = resident()
    print(f"{dtype}: {before / MIB:.1f} MiB before, {after / MIB:.1f} after")  # to be seen with -s
    assert pooled.engine.slots.misses > missed + 2000, "views were evicted and written again"
    assert after < before + 8 * MIB
