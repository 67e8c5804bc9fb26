"""The page: HTML with its figures in it, that needs nothing from anywhere and no script.

Names of classes and tasks are other people's text: the template escapes all that it prints.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..sparsify import kept_of
from .confusion import MOST_CLASSES, MOST_PAIRS, matrix, worst_pairs
from .drawing import human_bytes
from .facts import Facts, TaskFacts
from .figures import Picture

SHOWN_CLASSES = 12


def render(facts: Facts, pictures: Mapping[str, Picture]) -> str:
    """The whole page.

    Args:
        facts: what it says.
        pictures: figures by name; a section without its figure is left out.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "human_bytes": human_bytes, "data_uri": _data_uri}
    return environment.get_template("page.html").render(
        facts=facts,
        pictures=pictures,
        classes_of={task.task: _class_names(task) for task in facts.tasks},
        confusions=[_confusion(task) for task in facts.tasks if task.confusion],
        kept_of=kept_of,
        free_units=sum(use.free for use in facts.units),
        all_units=sum(use.units for use in facts.units),
        separate=sum(task.network_bytes for task in facts.tasks),
        together=facts.backbone_bytes + sum(task.bytes for task in facts.tasks),
        most_classes=MOST_CLASSES,
        most_pairs=MOST_PAIRS,
    )


def _confusion(task: TaskFacts) -> dict[str, Any]:
    """What the template shows of one task's mistakes: a matrix of few classes, and the worst pairs always."""
    assert task.confusion is not None
    count = len(task.classes)
    table = matrix(task.confusion, count) if count <= MOST_CLASSES else None
    wrong = sum(count for label, answer, count in task.confusion.counts if label != answer)
    return {
        "task": task,
        "confusion": task.confusion,
        "wrong": wrong,
        "matrix": None if table is None else [_row(counts) for counts in table],
        "pairs": [
            {"label": task.classes[label], "answer": task.classes[answer], "count": count, "of": of}
            for label, answer, count, of in worst_pairs(task.confusion)
        ],
    }


def _row(counts: list[int]) -> list[dict[str, int]]:
    """Cells of one class: pictures, and their percent of the class for the shade."""
    total = sum(counts)
    return [{"count": count, "shade": round(100 * count / total) if total else 0} for count in counts]


def _class_names(task: TaskFacts) -> str:
    more = len(task.classes) - SHOWN_CLASSES
    return ", ".join(task.classes[:SHOWN_CLASSES]) + (f", … and {more:,} more" if more > 0 else "")


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
