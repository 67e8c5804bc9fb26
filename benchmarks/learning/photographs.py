"""The flags that the experiments on photographs share, and their sources."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .contest import compete, slug
from .options import RESULTS
from .record import environment, read, write
from .subsets import per_class_of, subset
from .variants import METHODS, VARIANTS, Protocol


def source_parser(
    description: str | None,
    sets: Sequence[str],
    *,
    size: int = 64,
    arch: str = "resnet18",
    weights: str | None = None,
    per_class: int | None = None,
) -> argparse.ArgumentParser:
    """A parser with the flags about pictures and backbone; the defaults are the protocol's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TASKPACK_DATA"), help="(default: $TASKPACK_DATA)")
    parser.add_argument("--work", type=Path, required=True, help="folder for sources and stores: a stopped run goes on")
    parser.add_argument("--sets", nargs="+", default=list(sets), choices=list(sets))
    parser.add_argument("--size", type=int, default=size, help="pixels")
    parser.add_argument("--arch", default=arch)
    file = "weights/resnet18.safetensors of the data" if weights is None else weights
    parser.add_argument("--weights", default=weights, help=f"a file, or none (default: {file})")
    parser.add_argument("--per-class", type=int, default=per_class, help="training pictures of a class, at most")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result's JSON")
    return parser


def photograph_parser(
    description: str | None,
    sets: Sequence[str],
    *,
    variants: Sequence[str] = METHODS,
    epochs: int = 15,
    **others: Any,
) -> argparse.ArgumentParser:
    """A parser with the flags about training, too; `others` are those of `source_parser`."""
    parser = source_parser(description, sets, **others)
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--precision", default="32-true")
    return parser


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """The flag that cuts all sets to one size, for a parser of `photograph_parser`."""
    parser.add_argument(
        "--pictures", type=int, help="training pictures of a set, at most, its classes as even as can be"
    )


def add_rates(parser: argparse.ArgumentParser) -> None:
    """The flag that takes learning rates of a file (`rates_of`), for a parser of `photograph_parser`."""
    parser.add_argument(
        "--rates",
        type=Path,
        help="a result of eight_domains --choose, whose learning rates are taken (default: the middle one of each)",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags; one thread from here on."""
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        parser.error("set TASKPACK_DATA to the folder with the sets and weights, or give --data")
    torch.set_num_threads(1)
    return arguments


def protocol_of(
    arguments: argparse.Namespace,
    per_class: int | None = None,
    keep: float | None = None,
    pictures: int | None = None,
) -> Protocol:
    """The protocol that the flags ask for; `per_class` instead of the flag's, `pictures` of `add_pictures`."""
    return Protocol(
        arch=arguments.arch,
        weights=weights_of(arguments),
        size=arguments.size,
        epochs=arguments.epochs,
        per_class=per_class or arguments.per_class,
        pictures=pictures,
        precision=arguments.precision,
        keep=keep,
    )


def rates_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Variant -> learning rate: as the flag of `add_rates` has it, else the middle one of its three.

    Raises:
        SystemExit: the file has no choice for a variant; it names them all.
    """
    if arguments.rates is None:
        return {name: VARIANTS[name].rates[1] for name in arguments.variants}
    choices = read(arguments.rates).get("choices", {})
    source = {name: VARIANTS[name].chosen_as or name for name in arguments.variants}
    missing = sorted({chosen for chosen in source.values() if chosen not in choices})
    if missing:
        raise SystemExit(
            f"{arguments.rates} has no learning rate for {', '.join(missing)}; "
            f"choose them by eight_domains --choose --variants {' '.join(map(repr, missing))}"
        )
    return {name: choices[chosen]["rate"] for name, chosen in source.items()}


def run_experiment(
    name: str,
    arguments: argparse.Namespace,
    protocol: Protocol,
    sources: Mapping[str, Path],
    rates: Mapping[str, float | None] | None = None,
    *,
    seeds: Callable[[str], Sequence[int]] | None = None,
    suffix: str = "",
    **told: Any,
) -> dict[str, Any]:
    """Run the asked variants over the sources, each seed in a store of its own, and write the result as it grows.

    What the result's file has already, whole and run the same way, is not run again (`contest.compete`).

    Args:
        name: of the result's file.
        arguments, protocol: of `parse` and `protocol_of`.
        sources: by the tasks' names, in their order.
        rates: learning rates by variant; without them the middle one of each.
        seeds: of a variant; without it all that were asked for.
        suffix: of the stores' folders and of the result's file, for a second way to run the same.
        told: what else the result says.
    """
    result: dict[str, Any] = {"experiment": name, **told, **environment(), "protocol": protocol.as_json()}
    path = arguments.out / f"{name}{suffix}.json"
    known = read(path).get("variants")
    compete(
        result,
        lambda: write(path, result),
        {name: VARIANTS[name].rates[1] for name in arguments.variants} if rates is None else rates,
        sources,
        protocol,
        seeds or (lambda _: arguments.seeds),
        lambda variant, seed: arguments.work / f"{slug(variant)}-{seed}{suffix}",
        known=known,
    )
    return result


def sources_of(
    data: Path,
    names: Sequence[str],
    folder: Path,
    per_class: int | None,
    pictures: int | None = None,
    *,
    test: bool = True,
) -> dict[str, Path]:
    """Task name -> its source; one with fewer training pictures, of a class or in all, is written into the folder.

    Without `test` none has a test split.
    """
    found: dict[str, Path] = {}
    for name in names:
        found[name] = source = source_of(data, name)
        limits = [limit for limit in (per_class, pictures and per_class_of(source, pictures)) if limit is not None]
        if limits or not test:
            found[name] = subset(source, folder, per_class=min(limits, default=None), test=test)
    return found


def source_of(data: Path, name: str) -> Path:
    """A shared set's file.

    Raises:
        SystemExit: there is none.
    """
    for path in (data / f"{name}.zip", data / f"{name}.npz"):
        if path.exists():
            return path
    raise SystemExit(f"{data} has neither {name}.zip nor {name}.npz")


def weights_of(arguments: argparse.Namespace) -> Path | None:
    """The backbone's weights: a file, those of the shared data, or (`none`) a random start."""
    if arguments.weights == "none":
        return None
    return Path(arguments.weights) if arguments.weights else arguments.data / "weights" / "resnet18.safetensors"
