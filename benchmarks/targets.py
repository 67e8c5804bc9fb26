"""How a figure is judged by its target, and told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """At least `bound`, or at most it."""

    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether the figure, as measured and not rounded, is on the right side."""
        return value <= self.bound if self.at_most else value >= self.bound

    def told(self, value: float) -> str:
        """`target >= 0.95: met`."""
        return f"target {'<=' if self.at_most else '>='} {self.bound:g}: {'met' if self.met(value) else 'MISSED'}"


def judged(value: float, target: Target | None) -> dict[str, float | bool | None]:
    """A figure for JSON: itself, its target and whether that is met; both None where it has none."""
    bound, met = (None, None) if target is None else (target.bound, target.met(value))
    return {"value": float(f"{value:.4g}"), "target": bound, "met": met}


def verdict(value: float, target: Target | None) -> str:
    """The same for people."""
    return "no target" if target is None else target.told(value)
