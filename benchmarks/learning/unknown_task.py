"""`task=auto` over all shared sets: how often the right task is named, and how often a stranger is refused.

    TASKPACK_DATA=DIR python -m benchmarks.learning.unknown_task --work WORK

time        some minutes of one thread; nothing is trained
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    sets of another kind (signs, letters, flowers) are told apart almost always; sets of the same kind (the
            photographs of caltech101 and pacs_photo, cifar10 and tiny_imagenet32_100) are confused

The sums that every artifact of a pretrained store carries (METHODS: 128 projected features of the backbone, a mean per
class, one pooled covariance), of each set's training split with at most 40 pictures a class, calibrated on its
validation split; asked with single pictures of its test split, at most 1,000 drawn with seed 0. `named` is the share
whose task is named right, whatever the score; `refused` of those rightly named ones the share under the server's
default threshold; `stranger` the share that is refused where the store does not have the set's own task.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masks_store import Backbone, Sums, TaskInference, create, read_backbone
from service.settings import Settings as ServerSettings
from trainer.data import load_source
from trainer.task_sums import projected, task_sums

from .photographs import parse, source_parser, sources_of, weights_of
from .record import environment, table, write

SETS = (
    "flowers89",
    "gtsrb",
    "pacs_art_painting",
    "pacs_sketch",
    "pacs_photo",
    "clothing",
    "caltech101",
    "omniglot28",
    "mnist",
    "cifar10",
    "tiny_imagenet32_100",
)
PER_CLASS, ASKED = 40, 1000
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Known:
    """A task's sums, and test pictures of it.

    Attributes:
        sums: as an artifact carries them.
        asked: projected features [N, 128].
    """

    sums: Sums
    asked: Tensor


def know(backbone: Backbone, source: str) -> Known:
    """Gather the sums of a source, and the features of some of its test pictures."""
    data = load_source(source, preprocess=backbone.manifest.preprocess, threads=1)
    sums = task_sums(backbone, data, CPU, 0)
    assert sums is not None, "the backbone keeps weights and has enough features"
    test = data.splits["test"]
    drawn = np.sort(np.random.default_rng(0).permutation(len(test))[:ASKED])
    features = [z for z, _ in projected(backbone, test.taken("test", drawn), CPU, 0)]
    return Known(sums, torch.cat(features))


def ask(known: Mapping[str, Known], task: str, threshold: float) -> dict[str, Any]:
    """What the server would say of a task's pictures, and of them as strangers."""
    everyone = TaskInference({name: one.sums for name, one in known.items()})
    guesses = [everyone.guess(z[None]) for z in known[task].asked]
    right = [guess for guess in guesses if guess.version == task]
    wrong = Counter(guess.version for guess in guesses if guess.version != task)
    others = {name: one.sums for name, one in known.items() if name != task}
    strangers = TaskInference(others)
    refused = [strangers.guess(z[None]).score < threshold for z in known[task].asked]
    return {
        "asked": len(guesses),
        "named": len(right) / len(guesses),
        "refused": sum(guess.score < threshold for guess in right) / max(1, len(right)),
        "stranger": sum(refused) / len(refused),
        "taken_for": dict(wrong.most_common()),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    arguments, started = parse(source_parser(__doc__, SETS, per_class=PER_CLASS), argv), time.process_time()
    made = create(arguments.arch, weights=weights_of(arguments), image_size=arguments.size, keep=1.0, seed=0)
    backbone = read_backbone(made.data)
    threshold = ServerSettings.model_fields["auto_threshold"].default
    result: dict[str, Any] = {
        "experiment": "unknown_task",
        **environment(),
        "arch": arguments.arch,
        "size": arguments.size,
        "per_class": arguments.per_class,
        "threshold": threshold,
        "sets": {},
    }
    known: dict[str, Known] = {}
    for name, path in sources_of(
        arguments.data, arguments.sets, arguments.work / "sources", arguments.per_class
    ).items():
        known[name] = know(backbone, str(path))
        print(f"{name}: {len(known[name].asked)} pictures to ask with", flush=True)
    for name in known:
        result["sets"][name] = ask(known, name, threshold)
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    write(arguments.out / "unknown_task.json", result)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """A row per set, and their mean."""
    rows: list[list[str]] = []
    for name, found in result["sets"].items():
        most = ", ".join(f"{other} {count}" for other, count in list(found["taken_for"].items())[:2])
        numbers = (f"{100 * found[key]:.1f}" for key in ("named", "refused", "stranger"))
        rows.append([name, str(found["asked"]), *numbers, most])
    means = (
        f"{100 * float(np.mean([found[key] for found in result['sets'].values()])):.1f}"
        for key in ("named", "refused", "stranger")
    )
    rows.append(["mean", "", *means, ""])
    head = ["set", "asked", "named right, %", "of these refused, %", "refused as a stranger, %", "most taken for"]
    return table(head, rows)


if __name__ == "__main__":
    main()
