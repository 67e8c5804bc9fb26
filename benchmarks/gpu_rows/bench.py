"""What measures: turns, medians, and a row per target."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from service.engine import Engine

REHEARSE = "--rehearse" in sys.argv
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One target: `value` must be at most (`at_most`) or at least `target`; to be as good as `goal` is not asked."""

    name: str
    target: float
    value: float
    unit: str
    at_most: bool
    goal: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Bench:
    """What is measured with."""

    engine: Engine
    rounds: int
    small: int
    large: int
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, float | str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.engine.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def row(
        self, name: str, target: float, value: float, unit: str, *, at_most: bool = False, goal: float | None = None
    ) -> None:
        """Note a target's value and print it."""
        made = Row(name, target, value, unit, at_most, goal)
        self.rows.append(made)
        sign = "<=" if at_most else ">="
        found = "tried" if REHEARSE else "pass " if made.passes else "SHORT"
        further = "" if goal is None else f", the goal {goal:g}"
        print(f"{found} {name:<52} {value:>9.3f} {unit:<4} target {sign} {target:g}{further}")

    def note(self, name: str, value: float | str) -> None:
        """Note and print what is no target."""
        self.notes[name] = round(value, 4) if isinstance(value, float) else value
        print(f"      {name:<52} {self.notes[name]:>9}")

    def walls(self, calls: Mapping[str, Call], each: int) -> dict[str, float]:
        """Median microseconds of one call of each, with everything awaited; `each` calls in a row, taking turns."""
        return self._median(calls, each, self._wall)

    def devices(self, calls: Mapping[str, Call], each: int) -> dict[str, float]:
        """Median microseconds that the device needs for one call of each; the host's own time is hidden."""
        return self._median(calls, each, self._device if self.on_gpu else self._wall)

    def _median(self, calls: Mapping[str, Call], each: int, measure: Callable[[Call, int], float]) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in calls}
        warm_ups, each = (0, 1) if REHEARSE else (1, each)
        for turn in range(self.rounds + warm_ups):
            for name, call in calls.items():
                took = measure(call, each)
                if turn >= warm_ups:
                    taken[name].append(took)
        return {name: statistics.median(times) for name, times in taken.items()}

    def _wall(self, call: Call, each: int) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(each):
            call()
        self.wait()
        return (time.perf_counter() - started) / each * 1e6

    def _device(self, call: Call, each: int) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        torch.cuda._sleep(4_000_000)  # about 2 ms in which the host gets ahead
        before.record()
        for _ in range(each):
            call()
        after.record()
        self.wait()
        return before.elapsed_time(after) / each * 1e3


def pictures(engine: Engine, count: int) -> np.ndarray:
    """uint8 [count, size, size, 3] of noise."""
    size = engine.backbone.manifest.image_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
