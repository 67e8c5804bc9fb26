"""What a store's tasks take together, against a network per task and the entropy bound of their masks.

    python -m benchmarks.learning.sizes [--out FOLDER]
    python -m benchmarks.learning.sizes STORE [--most 7]

time        seconds
expected    a further task costs a few percent of a network of its own; coded masks at most 1.03 x the entropy bound of
            independent bits for shares of ones from .1 up

Without a store: what every experiment's stores took in the end, as their results in the folder say. With one: after one
task, two, and so on, in the order of their registration. `shared` is the backbone file with the artifacts so far, what
a server needs (the dense weights that `--keep` below 1 leaves in the store for fine-tuning are not in it); `separate`
is as many safetensors files of a whole float32 network with its head. Masks and selections are summed over the tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from masks_store import Store
from masks_store.inventory import describe_task

from .options import RESULTS
from .record import read, table


def sizes(store: Store, most: int | None = None) -> list[dict[str, Any]]:
    """One row per number of tasks, up to `most`."""
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


def size_of(where: Path) -> dict[str, Any] | None:
    """The last row of a store, what all of its tasks take; None where it has none, as fine-tuning leaves it."""
    with Store.open(where) as store:
        rows = sizes(store)
    return rows[-1] if rows else None


def kept_in(folder: Path) -> Generator[tuple[str, str, dict[str, Any]]]:
    """Experiment, variant and the size that its first seed's run notes, of every result in a folder that has one."""
    for path in sorted(folder.glob("*.json")):
        result = read(path)
        variants = result.get("variants", {result.get("settings", {}).get("method", ""): result})
        for name, variant in variants.items():
            size = next((run["size"] for run in variant.get("seeds", ()) if run.get("size")), None)
            if size:
                yield path.stem, name, size


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print a table, then one line of JSON; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--most", type=int, default=7, help="tasks of the store")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder with the results")
    arguments = parser.parse_args(argv)
    if arguments.store is None:
        told = list(kept_in(arguments.out))
        if not told:
            parser.error(f"no result in {arguments.out} notes a size; name a STORE, or run an experiment")
        named = [((experiment, variant), size) for experiment, variant, size in told]
        print(shown(("experiment", "variant"), named))
        rows = [{"experiment": experiment, "variant": variant} | size for experiment, variant, size in told]
    else:
        with Store.open(arguments.store) as store:
            rows = sizes(store, arguments.most)
        print(shown(("the last",), [((row["last"],), row) for row in rows]))
    print(json.dumps(rows))
    return rows


def shown(names: Sequence[str], rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> str:
    """As a table, in MB of a million bytes, each row under its names."""
    cells = [
        [
            *named,
            str(row["tasks"]),
            f"{row['shared'] / 1e6:.2f}",
            f"{row['separate'] / 1e6:.2f}",
            f"{row['shared'] / row['separate']:.3f}",
            f"{row['masks'] / 1e6:.3f}",
            f"{row['masks'] / row['entropy_bound']:.3f}" if row["entropy_bound"] else "",
        ]
        for named, row in rows
    ]
    return table([*names, "tasks", "shared, MB", "separate, MB", "ratio", "masks, MB", "masks / entropy bound"], cells)


if __name__ == "__main__":
    main()
