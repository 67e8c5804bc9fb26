"""`taskpack init`, `train` and `eval`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from masks_store import Store, first_method

from .backbone import init as make_store
from .capacity import Capacity, left
from .config import (
    ADAPTERS,
    AUGMENTS,
    CLASS_WEIGHTS,
    LABELS,
    NORMS,
    OPTIMIZERS,
    PRECISIONS,
    PROBES,
    PRUNE_UNITS,
    RECIPES,
    TRAINABLE_METHODS,
    VALUE_DTYPES,
    Settings,
)
from .evaluate import SPLITS, Evaluated, evaluate
from .interrupt import Interrupted
from .outcome import Report
from .pipeline import train as run_train
from .progress import Reporter, Silent, reporter_for
from .ranks import ToldElsewhere, process_index, wait_for_the_teller
from .unit_use import tell_units

Command = TypeVar("Command", bound=Callable[..., Any])


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


_machine = _options(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--threads", type=int, help="Threads of CPU arithmetic.  [default: as torch has it]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is random."),
    click.option("--skip-broken", is_flag=True, help="Leave out broken pictures and copies over splits."),
    click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout."),
)


@click.command()
@click.argument("store")
@click.option(
    "--backbone",
    required=True,
    help="tinyresnet, mlp-H1-H2… (such as mlp-2000-2000), widecnn, or a torchvision network such as resnet18.",
)
@click.option(
    "--weights",
    default="none",
    show_default=True,
    help="torchvision (downloads), a safetensors file of the network's state dict (a prefix such as module. or "
    "backbone. and a head are stripped), or none for a random start.",
)
@click.option(
    "--image-size",
    type=int,
    help="Side of the input in pixels.  [default: 28 for an mlp, 32 for tinyresnet and widecnn, else 224]",
)
@click.option(
    "--keep",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of each layer's weights that stay the backbone's own: 1 for methods that never change it, 0.5 frees "
    "the smaller half for packnet, 0 frees all.",
)
@click.option(
    "--capacity",
    default="weights",
    show_default=True,
    help="What tasks take: weights, or units (whole neurons and filters; for clnp, with --keep 0).",
)
@click.option("--data", metavar="SOURCE", help="The backbone's own data: retrain on it what is kept, after pruning.")
@click.option("--epochs", type=int, help="With --data: epochs of retraining.  [default: 10]")
@click.option("--batch-size", type=int, help="With --data: pictures a step.  [default: 32]")
@click.option("--precision", default="32-true", show_default=True, help=f"With --data: {', '.join(PRECISIONS)}.")
@click.option("--resume", is_flag=True, help="With --data: go on with a retraining that was stopped, if there is one.")
@_machine
@click.pass_context
def init(
    ctx: click.Context,
    store: str,
    backbone: str,
    weights: str,
    image_size: int | None,
    keep: float,
    capacity: str,
    data: str | None,
    epochs: int | None,
    batch_size: int | None,
    precision: str,
    resume: bool,
    device: str,
    threads: int | None,
    seed: int,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """Make STORE: choose the backbone, and how much of it to keep."""
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        precision=precision,
        device=device,
        threads=threads,
        seed=seed,
        skip_broken=skip_broken,
        resume=resume,
    )
    with reporting() as reporter:
        try:
            made = make_store(
                store,
                backbone,
                weights=weights,
                image_size=image_size,
                keep=keep,
                capacity=capacity,
                data=data,
                settings=settings,
                reporter=reporter,
            )
        except Interrupted as interrupted:
            reporter.close()
            click.echo(str(interrupted), err=True)
            ctx.exit(128 + interrupted.number)
    with made:
        _tell_made(made, store, backbone, as_json)


def _tell_made(made: Store, path: str, arch: str, as_json: bool) -> None:
    layers = made.capacity_left().values()
    free, total = sum(f for f, _ in layers), sum(t for _, t in layers)
    if as_json:
        digest = made.backbone_digest
        print_json({"store": str(made.path), "backbone": digest, "arch": arch, "free": free, "total": total})
        return
    size = made.backbone.manifest.image_size
    click.echo(
        f"{path}: {arch}, {size} pixels, {total:,} weights, {free:,} of them free ({100 * free / total:.1f} %)\n"
        f"next: taskpack train {shlex.quote(path)} NAME --data SOURCE --method {first_method(made)}"
    )


@click.command()
@click.argument("store")
@click.argument("task")
@click.option("--data", "source", required=True, metavar="SOURCE", help="The task's pictures; see below.")
@click.option(
    "--method",
    required=True,
    help=f"{', '.join(TRAINABLE_METHODS)}.",
)
@click.option(
    "--on",
    metavar="TASK",
    help="The task that it is built on, or TASK@VERSION.  [default: packnet and clnp: the newest stable task of the "
    "same method; others: the backbone; a task that is there already: as before]",
)
@click.option(
    "--prune",
    help="packnet: share of what it takes that it gives back; equal:T for as much to each of T tasks; auto to find the "
    "largest share that costs no accuracy.  [default: 0.75]",
)
@click.option(
    "--margin",
    type=float,
    help="clnp, and packnet with --prune auto: points of validation accuracy it may cost.  [default: 0.5]",
)
@click.option(
    "--prune-by", default="weights", show_default=True, help=f"packnet: gives back {' or whole '.join(PRUNE_UNITS)}."
)
@click.option(
    "--train-layers",
    default="all",
    show_default=True,
    help="packnet: whose free weights it takes: all, last:N, or head for none.",
)
@click.option("--pick", is_flag=True, help="packnet: learn too which weights of the tasks it is built on to use.")
@click.option(
    "--adapter",
    default="depthwise",
    show_default=True,
    help=f"clr: {' or '.join(ADAPTERS)}: one behind every convolution, 1x1 included.",
)
@click.option("--l1", type=float, help="clnp: factor of its L1.  [default: 1e-5 on an mlp, else 1e-4]")
@click.option("--finetune", is_flag=True, help="clnp: retrain the new units after the others are gated.")
@click.option(
    "--norm", default="auto", show_default=True, help=f"Whose BatchNorm: {', '.join(NORMS)} (shared: its base's)."
)
@click.option(
    "--recipe",
    default="best",
    show_default=True,
    help=f"{' or '.join(RECIPES)}: the published schedule (not for clnp, whose paper's is not known).",
)
@click.option(
    "--label",
    default="auto",
    show_default=True,
    help=f"{', '.join(LABELS)}; auto is stable for a new task, else canary.",
)
@click.option("--out", metavar="FILE", help="Write the artifact there and register nothing; see taskpack push.")
@click.option(
    "--epochs",
    type=int,
    help="Of the main phase; the others scale with it.  "
    "[default: packnet and clnp 20, others 30; with --recipe paper clr, bn, linear 60, finetune 20]",
)
@click.option(
    "--patience",
    type=int,
    help="End a phase after more than so many epochs without a better validation accuracy.  "
    "[default: never; with --recipe paper clr, bn, linear 21]",
)
@click.option("--lr", type=float, help="Learning rate of the main phase.  [default: by method, optimizer and base]")
@click.option("--retrain-lr", type=float, help="packnet: of the retraining after pruning.  [default: a tenth of --lr]")
@click.option("--batch-size", type=int, help="Pictures a step.  [default: 32]")
@click.option(
    "--optimizer", help=f"{', '.join(OPTIMIZERS)}.  [default: packnet and finetune sgd, others and --pick adam]"
)
@click.option("--weight-decay", type=float, help="Never moves a frozen weight.  [default: 0]")
@click.option(
    "--class-weight",
    default="none",
    show_default=True,
    help=f"{' or '.join(CLASS_WEIGHTS)}: every class counts the same in training, however few its pictures.",
)
@click.option("--precision", default="32-true", show_default=True, help=f"{', '.join(PRECISIONS)}.")
@click.option("--value-dtype", default="f32", show_default=True, help=f"Stored as {', '.join(VALUE_DTYPES)}.")
@click.option(
    "--augment", default="auto", show_default=True, help=f"{' or '.join(AUGMENTS)}: training pictures are not cropped."
)
@click.option("--flip", is_flag=True, help="Mirror training pictures at random; not for digits, signs and letters.")
@click.option(
    "--probe",
    default="synthetic",
    show_default=True,
    help=f"Pictures of the artifact's self-test: {' or '.join(PROBES)} (four of the validation split's go with it).",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write the epochs' figures for TensorBoard into the run's folder too; needs the package tensorboard.",
)
@click.option("--resume", is_flag=True, help="Go on with this task's last unfinished run, if there is one.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done; write nothing.")
@_machine
@click.pass_context
def train(ctx: click.Context, store: str, task: str, source: str, as_json: bool, **flags: Any) -> None:
    """Train TASK on --data SOURCE and pack it into STORE. No earlier task changes by a bit; that is checked each time.

    \b
    SOURCE is a folder of images (train/CLASS/… and optionally val/ and test/;
    or CLASS/…, split 70/15/15 by seed), a .zip of such a folder, an .npz,
    torchvision:DATASET[:ROOT], or sklearn:digits, sklearn:parity,
    sklearn:orientation.
    """  # noqa: D301  (click reads a real backspace, which a raw string has not)
    first = process_index() == 0
    with open_store(store) as opened, reporting() as reporter:
        try:
            report = run_train(opened, task, source, Settings(**flags), reporter)
        except Interrupted as interrupted:
            reporter.close()
            if first:
                click.echo(str(interrupted), err=True)
            ctx.exit(128 + interrupted.number)
        except ToldElsewhere:
            wait_for_the_teller()
            ctx.exit(1)
    if not first:
        return
    if as_json:
        print_json(report.as_json())
    else:
        for line in summary(report):
            click.echo(line)


@click.command("eval")
@click.argument("store")
@click.argument("task", required=False)
@click.option("--data", "source", required=True, metavar="SOURCE", help="Pictures; classes match by name.")
@click.option("--version", default="stable", show_default=True, help="Label, digest or prefix of 12 digits or more.")
@click.option("--split", help=f"{', '.join(SPLITS)}.  [default: test where there is one, else val]")
@_machine
def eval_(
    store: str,
    task: str | None,
    source: str,
    version: str,
    split: str | None,
    device: str,
    threads: int | None,
    seed: int,
    skip_broken: bool,
    as_json: bool,
) -> None:
    """Measure TASK of STORE on --data SOURCE; without TASK, every task that knows all of SOURCE's classes.

    Give the --seed of the training, and a source that is split by seed keeps its test pictures unseen.
    """
    with open_store(store) as opened, reporting() as reporter:
        results = evaluate(
            opened,
            task,
            source,
            version=version,
            split=split,
            seed=seed,
            skip_broken=skip_broken,
            device=device,
            threads=threads,
            reporter=reporter,
        )
    if as_json:
        print_json({"results": [_as_dict(result) for result in results]})
        return
    table = Table("task", "version", "method", "split", "pictures", "accuracy")
    for result in results:
        table.add_row(
            result.task,
            result.version[:19],
            result.method,
            result.split,
            f"{result.score.images:,}",
            f"{100 * result.score.top1:.2f} %",
        )
    Console(highlight=False).print(table)


def summary(report: Report) -> Iterator[str]:
    """The command's last lines."""
    turn = report.plan["turn"]
    at = f"equal:{turn[1]}" if turn else f"{report.prune or 0:g}"
    further = None if report.units else report.tasks_left  # of units, `tell_units` says it
    room = left(Capacity(report.free, report.total), further, at)
    if report.dry_run:
        phases = ", ".join(_told(report.plan["phases"]))
        yield f"dry run: {phases}; batch {report.plan['batch_size']}, on {report.plan['device']}; nothing was written"
        yield room
        return
    where = f"registered, {' and '.join(report.labels) or 'no label'}"
    if report.out or report.version is None:
        where = f"written to {report.out}" if report.out else "a network of its own: --out FILE keeps it"
    test = "no test split" if report.test_top1 is None else f"test {100 * report.test_top1:.1f} %"
    yield f"{report.task} {(report.version or '')[:19]}  {where}"
    validation = f"validation {100 * (report.val_top1 or 0):.1f} %"
    yield f"accuracy: {validation}, {test}; {report.bytes:,} bytes; {report.seconds:.0f} s"
    if report.version is None:
        return
    if report.hidden is not None:
        yield f"hides {report.hidden:,} of the weights that it is built on"
    yield f"earlier tasks changed: {report.changed_bits} bits ({report.compared} compared)"
    if report.trials:
        tried = ", ".join(f"{trial.share:g} costs {100 * trial.drop:+.1f}" for trial in report.trials)
        yield f"prune auto: {tried} points; {report.prune:g} was taken"
    yield room
    if report.units:
        yield from tell_units(report.units)
    elif report.tasks_left == 0:
        yield "the next packnet task would be starved: make a new store, taskpack rm what is not needed, or use clr"


def _told(phases: list[dict[str, Any]]) -> Iterator[str]:
    """The phases of a plan; those in folds, which are many alike, together."""
    in_folds = [p for p in phases if p["fold"] is not None]
    for phase in phases:
        if phase["fold"] is None:
            most = "" if phase["patience"] is None else "up to "
            long = (
                f" {most}{phase['epochs']} epochs at {phase['lr']:g} ({phase['optimizer']})" if phase["epochs"] else ""
            )
            yield phase["name"] + long
        elif phase is in_folds[0]:
            tried = [p for p in in_folds if p["prune"] is not None]
            yield f"in folds {len(in_folds) - len(tried)} times {phase['epochs']} epochs"
            yield f"in folds up to {len(tried)} trials of {tried[0]['epochs']} epochs"


def _as_dict(result: Evaluated) -> dict[str, Any]:
    return {
        "task": result.task,
        "version": result.version,
        "method": result.method,
        "split": result.split,
        "images": result.score.images,
        "top1": result.score.top1,
        "loss": result.score.loss,
    }


@contextmanager
def open_store(path: str) -> Generator[Store]:
    """An open store, closed after the block."""
    with Store.open(Path(path)) as store:
        yield store


@contextmanager
def reporting() -> Generator[Reporter]:
    """Progress goes to stderr, so that stdout holds the result alone; of several processes the first shows it."""
    reporter = reporter_for(sys.stderr) if process_index() == 0 else Silent()
    try:
        yield reporter
    finally:
        reporter.close()


def print_json(fields: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    click.echo(json.dumps(fields, ensure_ascii=True, sort_keys=True, default=os.fspath))
