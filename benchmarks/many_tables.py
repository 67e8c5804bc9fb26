"""What `benchmarks.many_tasks` found, for people: a column for each number of tasks, and the figures with a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.targets import Target

FEW = 1000
"""Tasks up to which the stricter target holds."""
COLD, MEMORY, READY = Target(0.8), Target(1.3, at_most=True), Target(5.0, at_most=True)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, Target]]:
    """Name -> what has a target, and that; one task has none but that its server is ready in time."""
    made: dict[str, tuple[float, Target]] = {}
    for row in rows:
        of = f"{row['tasks']} tasks"
        made[f"{of}: ready, all probed before, s beyond torch"] = row["ready_s"], READY
        if row["tasks"] > 1:
            for heat, target in (("warm", Target(0.95 if row["tasks"] <= FEW else 0.9)), ("cold", COLD)):
                for load in ("uniform", "zipf"):
                    made[f"{of}: {heat}: {load}, x one task"] = row[heat][load], target
        memory = per_task(rows, row, "rss_asked")
        if memory is not None:
            made[f"{of}: memory a task, all asked, x its artifact"] = memory, MEMORY
    return made


def verdicts(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each figure that has a target."""
    return "\n".join(
        f"{name:<56}{value:>8.3g}  {target.told(value)}" for name, (value, target) in figures(rows).items()
    )


def per_task(rows: Sequence[dict[str, Any]], row: dict[str, Any], what: str) -> float | None:
    """Memory that each further task takes, × its artifact."""
    more = row["tasks"] - rows[0]["tasks"]
    return (row[what] - rows[0][what]) / more / row["artifact_bytes"] if more else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people: a line per figure, a column per number of tasks."""

    def line(name: str, read: Callable[[dict[str, Any]], float | None]) -> str:
        found = [read(row) for row in rows]
        return f"{name:<44}" + "".join(f"{'-' if value is None else f'{value:.3g}':>10}" for value in found)

    lines = [
        f"{'tasks':<44}" + "".join(f"{row['tasks']:>10}" for row in rows),
        line("register, ms a task", lambda r: r["register_s"] / r["registered"] * 1e3 if r["registered"] else None),
        line("ready, nothing probed, s beyond torch", lambda r: r["first_start"]["ready_s"]),
        line("  and all probed, s later", lambda r: r["first_start"]["probed_s"]),
        line("ready, all probed before, s beyond torch", lambda r: r["ready_s"]),
        line("  and all known, s later", lambda r: r["probed_s"]),
        line("memory a task, ready, x its artifact", lambda r: per_task(rows, r, "rss")),
        line("memory a task, all asked, x its artifact", lambda r: per_task(rows, r, "rss_asked")),
    ]
    lines += [line(f"{name}, ms", lambda r, name=name: r["ms"][name]) for name in rows[0]["ms"]]
    for heat in ("warm", "cold"):
        lines.append(line(f"{heat}: one task, requests/s", lambda r, heat=heat: r[heat]["one_per_s"]))
        for load in ("uniform", "zipf"):
            lines.append(line(f"{heat}: {load}, x one task", lambda r, heat=heat, load=load: r[heat][load]))
    return "\n".join(lines)
