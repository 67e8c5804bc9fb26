"""What a store's tasks take together, for one task, two, and so on, against a network per task.

    python -m benchmarks.learning.sizes STORE [--most 7]

time        seconds
expected    a further task costs a few percent of a network of its own; coded masks at most 1.03 x the entropy bound of
            independent bits for shares of ones from .1 up

The tasks in the order of their registration. `shared` is the backbone file with the artifacts so far, what a server
needs (the dense weights that `--keep` below 1 leaves in the store for fine-tuning are not in it); `separate` is as many
safetensors files of a whole float32 network with its head. Masks and selections are summed over the tasks so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masks_store import Store
from masks_store.inventory import describe_task

from .record import table


def sizes(store: Store, most: int) -> list[dict[str, Any]]:
    """One row per number of tasks."""
    digest = store.backbone_digest.removeprefix("sha256:")
    (file,) = [path for path in (store.path / "blobs").rglob("*") if path.name == digest]
    body = 4 * sum(tensor.numel() for tensor in store.backbone.body().state_dict().values())
    shared, separate, coded, bound = file.stat().st_size, 0, 0, 0
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(sorted(store.tasks(), key=lambda task: task.created)[:most], 1):
        told = describe_task(store, task.name)
        version = next(one for one in told["versions"] if "stable" in one["labels"])
        shared += version["size"]
        separate += body + 4 * len(told["classes"]) * (store.backbone.features + 1)
        for masks in (version["masks"], version["selection"]):
            coded, bound = coded + masks["coded"], bound + masks["entropy_bound"]
        rows.append(
            {
                "tasks": number,
                "last": task.name,
                "shared": shared,
                "separate": separate,
                "masks": coded,
                "entropy_bound": bound,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print a table, then one line of JSON; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--most", type=int, default=7, help="tasks")
    arguments = parser.parse_args(argv)
    with Store.open(arguments.store) as store:
        rows = sizes(store, arguments.most)
    print(shown(rows))
    print(json.dumps(rows))
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """As a table, in MB of a million bytes."""
    cells = [
        [
            str(row["tasks"]),
            row["last"],
            f"{row['shared'] / 1e6:.2f}",
            f"{row['separate'] / 1e6:.2f}",
            f"{row['shared'] / row['separate']:.3f}",
            f"{row['masks'] / 1e6:.3f}",
            f"{row['masks'] / row['entropy_bound']:.3f}" if row["entropy_bound"] else "",
        ]
        for row in rows
    ]
    head = ["tasks", "the last", "shared, MB", "separate, MB", "ratio", "masks, MB", "masks / entropy bound"]
    return table(head, cells)


if __name__ == "__main__":
    main()
