"""The commands that read and tidy a store: ls, show, export, rm, label, verify.

Tables on a terminal, tab-separated lines elsewhere, and one JSON object with `--json`.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .errors import InvalidInput
from .inventory import describe_task, first_method, list_tasks
from .records import LABELS
from .store import Store
from .verify import file_faults, kind_of

SHOWN_CLASSES = 20
Command = TypeVar("Command", bound=Callable[..., Any])


def _store(command: Command) -> Command:
    return click.argument("store")(command)


def _as_json(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


@click.command()
@_store
@_as_json
def ls(store: str, as_json: bool) -> None:
    """List the tasks of STORE."""
    with _open(store) as opened:
        listed = list_tasks(opened)
        method = first_method(opened) if not listed["tasks"] else ""
    if as_json:
        _print_json(listed)
        return
    rows = [
        (
            task["task"],
            task["method"],
            *(_short(task["labels"].get(label)) for label in LABELS),
            task["versions"] if task["retired"] < task["versions"] else "retired",
            task["classes"],
            _percent(task["test_top1"]),
            f"{task['size']:,}",
        )
        for task in listed["tasks"]
    ]
    if not rows:
        next_ = f"taskpack train {shlex.quote(store)} NAME --data SOURCE --method {method}"
        click.echo(f"no tasks yet; add one: {next_}", err=True)
        return
    _print_table(("task", "method", *LABELS, "versions", "classes", "test", "bytes"), rows)


@click.command()
@_store
@click.argument("task")
@_as_json
def show(store: str, task: str, as_json: bool) -> None:
    """Describe TASK: its versions, labels, classes, accuracy, lineage and sizes, and what is free in STORE."""
    with _open(store) as opened:
        told = describe_task(opened, task)
    if as_json:
        _print_json(told)
        return
    labels = ", ".join(f"{label} {_short(version)}" for label, version in told["labels"].items())
    facts = [
        ("task", told["task"]),
        ("method", told["method"]),
        ("labels", labels or "none: no request without a version is answered"),
        ("classes", _class_names(told["classes"])),
        (f"free {told['capacity']['of']}", _share(told["capacity"]["free"], told["capacity"]["total"])),
    ]
    for name, value in facts:
        click.echo(f"{name:<13} {_printable(value)}")
    for version in told["versions"]:
        click.echo()
        for name, value in _version_facts(version):
            click.echo(f"{name:<13} {_printable(value)}")


@click.command()
@_store
@click.argument("task")
@click.option("--version", default="stable", show_default=True, help="A label, a digest, or 12 or more of its digits.")
@click.option("-o", "--output", required=True, help="The file to write; - for standard output.")
@_as_json
def export(store: str, task: str, version: str, output: str, as_json: bool) -> None:
    """Write the artifact of TASK to a file."""
    with _open(store) as opened:
        found = opened.resolve(task, version)
        if output == "-":
            sys.stdout.buffer.write(opened.artifact_bytes(found.version))
            return
        opened.export(found.version, Path(output))
    if as_json:
        _print_json({"task": found.task, "version": found.version, "size": found.size, "file": output})
    else:
        click.echo(f"{output}: {found.size:,} bytes, {found.task} {found.version}")


@click.command()
@_store
@click.argument("task")
@click.option("--version", help="Delete this version only: a digest, or 12 or more of its digits.")
@click.option("--retire", is_flag=True, help="Keep, retired, what others are built on: it answers no more.")
@_as_json
def rm(store: str, task: str, version: str | None, retire: bool, as_json: bool) -> None:
    """Delete TASK with its labels and versions, or one version of it."""
    with _open(store) as opened:
        before = {known.version: known.state for known in opened.versions(task)}
        if version is None:
            opened.delete_task(task, retire=retire, actor=_actor())
        else:
            opened.delete_version(task, version, retire=retire, actor=_actor())
        left = {known.version: known.state for known in opened.versions() if known.version in before}
    done = {
        "task": task,
        "deleted": [known for known in before if known not in left],
        "retired": [known for known, state in before.items() if left.get(known, state) != state],
    }
    if as_json:
        _print_json(done)
        return
    for what in ("deleted", "retired"):
        for known in done[what]:
            click.echo(f"{what} {task} {known}")


@click.command()
@_store
@click.argument("task")
@click.argument("label")
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Take the label away; no VERSION then.")
@_as_json
def label(store: str, task: str, label: str, version: str | None, remove: bool, as_json: bool) -> None:
    """Point LABEL (stable or canary) of TASK at VERSION: a digest, 12 or more of its digits, or another label."""
    if remove == (version is not None):
        raise click.UsageError("give either VERSION or --remove")
    with _open(store) as opened:
        if version is None:
            opened.drop_label(task, label, actor=_actor())
            now = None
        else:
            now = opened.set_label(task, label, version, actor=_actor()).version
    if as_json:
        _print_json({"task": task, "label": label, "version": now})
    else:
        click.echo(f"{task} {label} -> {now}" if now else f"{task} {label} removed")


@click.command()
@click.argument("path", metavar="STORE|FILE")
@click.option("--store", help="Check FILE against this store too: backbone, lineage, claim, digest and probe.")
@_as_json
@click.pass_context
def verify(context: click.Context, path: str, store: str | None, as_json: bool) -> None:
    """Check every byte, row, lineage, claim, digest and probe of a store, or a single file; exit 1 on any fault."""
    _check_local(path)
    if Path(path).is_file():
        faults, checked = _verify_file(Path(path), store)
    else:
        if store is not None:
            raise click.UsageError("--store goes with a FILE; a store is checked by itself")
        faults, checked = _verify_store(path)
    if as_json:
        _print_json({"path": path, "sound": not faults, "faults": faults})
    for line in () if as_json else [*map(_printable, faults), f"{path}: {_outcome(faults)} ({checked})"]:
        click.echo(line)
    context.exit(1 if faults else 0)


# ---------------------------------------------------------------- opening


@contextmanager
def _open(path: str) -> Generator[Store, None, None]:
    _check_local(path)
    with Store.open(path) as store:
        yield store


def _check_local(path: str) -> None:
    if path.startswith(("http://", "https://")):
        raise InvalidInput(
            f"{path} is a server, this command takes the path of a store; "
            "`taskpack label URL TASK LABEL VERSION` and `taskpack push … --to URL` speak to servers"
        )


def _actor() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"cli:{os.getuid()}"


# ---------------------------------------------------------------- verify


def _verify_file(path: Path, store: str | None) -> tuple[list[str], str]:
    data = path.read_bytes()
    if store is None:
        faults = file_faults(data, where=str(path))
        alone = not faults and kind_of(data) == "task"
        return faults, "the file alone; --store STORE checks lineage, claim and probe too" if alone else "the file"
    with _open(store) as opened:
        return file_faults(data, opened, where=str(path)), f"the file against {store}"


def _verify_store(path: str) -> tuple[list[str], str]:
    console = Console(stderr=True)
    with _open(path) as opened, Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("versions", total=None)
        faults = opened.verify(lambda done, total: bar.update(task, completed=done, total=total))
        return faults, f"{opened.task_count()} tasks, {len(opened.versions())} versions" if not faults else "the store"


def _outcome(faults: Sequence[str]) -> str:
    return f"{len(faults)} fault(s)" if faults else "sound"


# ---------------------------------------------------------------- printing


def _version_facts(version: dict[str, Any]) -> list[tuple[str, str]]:
    metrics = version["metrics"]
    marks = [*version["labels"], *([] if version["state"] == "ready" else [version["state"]])]
    path = " <- ".join(f"{part['task']} {_short(part['version'])}" for part in version["lineage"])
    return [
        ("version", " ".join([version["version"], *marks])),
        ("  created", version["created"][:19].replace("T", " ") + " UTC"),
        ("  method", version["method"]),
        ("  lineage", f"backbone <- {path}"),
        ("  accuracy", f"validation {_percent(metrics['val_top1'])}, test {_percent(metrics['test_top1'])}"),
        ("  bytes", f"{version['size']:,}"),
        ("  masks", _mask_sizes(version["masks"])),
        *([("  selection", _mask_sizes(version["selection"]))] if version["selection"]["raw"] else []),
    ]


def _mask_sizes(masks: dict[str, Any]) -> str:
    if not masks["raw"]:
        return "none"
    what = f"{masks['ones']:,} weights"
    if masks["of"] == "units":
        what = f"{masks['ones']:,} units, {masks['new']:,} of them new"
    return (
        f"{what}: {masks['raw']:,} bytes raw, {masks['coded']:,} coded, "
        f"{masks['entropy_bound']:,} at the entropy bound of independent bits"
    )


def _print_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on a terminal; elsewhere tab-separated lines under one line of names."""
    console = Console()
    cells = [[_printable(str(cell)) for cell in row] for row in rows]
    if not console.is_terminal:
        for line in (names, *cells):
            click.echo("\t".join(line))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index > 3 else "left", no_wrap=index < 4)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # a Text is never read as markup
    console.print(table)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _class_names(names: Sequence[str]) -> str:
    more = f", … and {len(names) - SHOWN_CLASSES} more (--json lists all)" if len(names) > SHOWN_CLASSES else ""
    return f"{len(names)}: {', '.join(names[:SHOWN_CLASSES])}{more}"


def _short(version: str | None) -> str:
    return "-" if version is None else version.removeprefix("sha256:")[:12]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}%"


def _share(free: int, total: int) -> str:
    return f"{free:,} of {total:,} ({_percent(free / total)})" if total else "none"  # rounded as the report does


def _printable(text: str) -> str:
    """Text without the control characters by which a class name could steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
