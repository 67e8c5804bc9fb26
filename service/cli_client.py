"""The commands that speak to a running server: `predict`, `push`, and `label` where it is given a URL."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.client import Client, ClientError, ImageAnswer, LabelChoice, NotFound, Prediction, Registered
from service.client.flows import OF_ONE_IMAGE, as_admin, versions

if TYPE_CHECKING:
    from masks_store import Artifact

LOCAL = "http://127.0.0.1:8000"
_MAX_HEADER = 1 << 20
REGISTER_TIMEOUT_S = 600.0  # the server runs the self-test before it answers


_IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _all_files(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Refuse every path that is no file that can be read, not the first alone."""
    wrong: list[str] = []
    for path in paths:
        try:
            _IMAGE.convert(path, param, ctx)
        except click.BadParameter as error:
            wrong.append(error.message)
    if wrong:
        raise click.BadParameter(" ".join(wrong), ctx, param)
    return paths


@click.command(short_help="Ask a running server what is on some images.")
@click.option("--url", default=LOCAL, show_default=True, help="The server.")
@click.option("--task", required=True, help="The task that answers.")
@click.option("--version", default=None, help="A digest, a unique prefix of it, or a label.  [default: stable]")
@click.option("--top-k", type=click.IntRange(min=1), default=None, help="How many classes to print.  [default: 5]")
@click.option("--timeout-ms", type=click.IntRange(min=1), default=None, help="Give up after this long in the queue.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), callback=_all_files)
def predict(
    url: str,
    task: str,
    version: str | None,
    top_k: int | None,
    timeout_ms: int | None,
    as_json: bool,
    images: tuple[Path, ...],
) -> int:
    """Ask a running server what is on IMAGES (JPEG, PNG or WebP).

    Prints one line per image: its classes, the most probable first, with their probabilities. The exit code is 2 when
    an image could not be read.
    """
    with told(wrong=(400, *OF_ONE_IMAGE)), Client(url) as client:
        answer = client.predict(task, *images, version=version, top_k=top_k, timeout_ms=timeout_ms)
    if as_json:
        click.echo(answer.model_dump_json(indent=2))
    else:
        _print_table(images, answer)
    return Misused.exit_code if any(image.status == "error" for image in answer.predictions) else 0


@click.command(short_help="Send a task to a running server.")
@click.argument("source", type=click.Path(path_type=Path), metavar="STORE|FILE")
@click.argument("task", required=False)
@click.option("--to", "url", required=True, metavar="URL", help="The server.")
@click.option(
    "--version", default="stable", show_default=True, help="Which version of TASK: a digest, a prefix, a label."
)
@click.option(
    "--label",
    type=click.Choice(["stable", "canary", "none"]),
    default=None,
    help="The label it gets there.  [default: stable for a new task, canary for a new version of a known one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was registered as JSON.")
def push(source: Path, task: str | None, url: str, version: str, label: LabelChoice | None, as_json: bool) -> None:
    """Send a task of a store, or an artifact FILE, to a running server.

    From a store the versions that it is built on go first, where the server lacks them; they get no label there.
    Nothing that the server serves is interrupted or changed.
    """
    parcels = _parcels(source, task, version)
    with told(), Client(url, timeout=REGISTER_TIMEOUT_S) as client:
        sent = [_send(client, parcel, "none") for parcel in parcels[:-1] if not _knows(client, parcel)]
        sent.append(_send(client, parcels[-1], label))
    if as_json:
        records = [{"task": done.task, "version": done.version, "new": done.is_new} for done in sent]
        click.echo(json.dumps({"registered": records}, indent=2))
        return
    for done in sent:
        what = "registered" if done.is_new else "was there already:"
        labels = ", ".join(sorted(name for name, at in done.labels.items() if at == done.version)) or "no label"
        click.echo(f"{what} {printable(done.task)} {done.version} ({labels})")


@click.command(short_help="Point a label at a version, in a store or on a running server.")
@click.argument("url")
@click.argument("task")
@click.argument("label", type=click.Choice(["stable", "canary"]))
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Take the label away; no VERSION then.")
@click.option("--if-match", default=None, metavar="VERSION", help="Move the label only if it still names this version.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def label(
    url: str, task: str, label: str, version: str | None, remove: bool, if_match: str | None, as_json: bool
) -> None:
    """Point LABEL (stable or canary) of TASK at VERSION on the server at URL; the way back too."""
    if remove == (version is not None):
        raise click.UsageError("give either VERSION or --remove")
    with told(), Client(url) as client:
        if version is None:
            client.drop_label(task, label, if_match=if_match)
            now = None
        else:
            now = client.set_label(task, label, version, if_match=if_match).version
    if as_json:
        click.echo(json.dumps({"task": task, "label": label, "version": now}, indent=2))
    else:
        click.echo(f"{printable(task)} {printable(label)} -> {now}" if now else f"{printable(task)} {label} removed")


# ---------------------------------------------------------------- push


@dataclass(frozen=True)
class Parcel:
    """One artifact on its way: the task it belongs to and its version where they are known, and its bytes."""

    task: str | None
    version: str | None
    read: Callable[[], bytes]


def _parcels(source: Path, task: str | None, version: str) -> list[Parcel]:
    """What to send, ancestors first."""
    if source.is_file():
        if task is not None:
            raise click.UsageError(f"'{source}' is a file and names its task itself: leave '{task}' out.")
        _check_is_artifact(source)
        return [Parcel(None, None, source.read_bytes)]
    if task is None and not source.exists():
        raise click.ClickException(f"'{source}': there is neither a store nor an artifact")
    if task is None:
        raise click.UsageError(f"'{source}' is a folder: name the task to send, as in push STORE TASK --to URL.")
    from masks_store import Store

    store = Store.open(source)

    def parcel(artifact: Artifact) -> Parcel:
        return Parcel(artifact.manifest.task, artifact.version, lambda: store.artifact_bytes(artifact.version))

    return [parcel(artifact) for artifact in store.lineage(store.resolve(task, version).version)]


def _check_is_artifact(file: Path) -> None:
    """Refuse a fine-tuned network by name before it is sent; whatever else is wrong with a file the server tells."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        text = stream.read(min(length, _MAX_HEADER))
    try:
        manifest = json.loads(json.loads(text)["__metadata__"]["taskpack"])
        network = manifest["kind"] == "network"
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if network:
        raise click.UsageError(
            f"'{file}' is a fine-tuned network of its own, not a task of a store: it cannot be pushed. Pack the task "
            "with another method of taskpack train."
        )


def _knows(client: Client, parcel: Parcel) -> bool:
    if parcel.task is None:
        return False
    try:
        return any(known.version == parcel.version for known in client.drive(as_admin(versions(parcel.task))))
    except NotFound:
        return False


def _send(client: Client, parcel: Parcel, label: LabelChoice | None) -> Registered:
    data = parcel.read()
    with _bar(f"sending {parcel.task or 'the artifact'}", len(data)) as advance:
        return client.register(data, label=label, progress=advance)


@contextmanager
def _bar(what: str, total: int) -> Generator[Callable[[int], None]]:
    """A progress bar on a terminal's stderr, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)

        def advance(sent: int) -> None:
            done = f"{what}: the server checks it" if sent >= total else what
            progress.update(bar, completed=sent, description=done)

        yield advance


# ---------------------------------------------------------------- what people read


class Misused(click.ClickException):
    """The server found a parameter or a picture wrong: the same exit code as for a wrong flag."""

    exit_code = 2


@contextmanager
def told(wrong: Collection[int] = (400,)) -> Generator[None]:
    """Turn what a server answers into the command's error: the message, every fault on its own line, and what to do.

    Args:
        wrong: the statuses that say that what the command was given is wrong.

    Raises:
        Misused: an answer with one of these.
        click.ClickException: any other failure.
    """
    try:
        yield
    except ClientError as error:
        faults = [fault for fault in error.errors if fault not in error.detail]
        lines = [error.detail, *faults, *_mend(error)]
        told = "\n  ".join(printable(line) for line in lines)
        raise (Misused if error.status in wrong else click.ClickException)(told) from error


def _mend(error: ClientError) -> Iterator[str]:
    if error.retry_after is not None:
        yield f"ask again in {error.retry_after:g} s"
    if error.request_id and (error.status or 0) >= 500:
        yield f"request {error.request_id}"


def _print_table(images: Sequence[Path], answer: Prediction) -> None:
    width = max(len(str(path)) for path in images)
    for path, image in zip(images, answer.predictions, strict=True):
        click.echo(f"{printable(str(path)):<{width}}  {_line(image)}")
    sys.stdout.flush()
    click.echo(f"{answer.task} {answer.version}", err=True)


def _line(image: ImageAnswer) -> str:
    if image.status == "error":
        return f"error: {printable(image.error or 'unreadable')}"
    return "  ".join(f"{printable(label.name)} {label.score:.3f}" for label in image.labels)


def printable(text: str) -> str:
    """Text of a stranger's (a class name, a server's message) that cannot steer the terminal it is printed on."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
