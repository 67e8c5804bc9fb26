"""Taskpack: the command `taskpack` and the Python API.

The three packages below are imported only when a command or a method needs them, so that `taskpack --help` and
`import taskpack` are quick:

    import taskpack

    store = taskpack.open("store")
    report = store.train("flowers", "flowers.zip", method="packnet")
"""

from __future__ import annotations

import sys

try:
    import importlib
    import os
    import warnings
    from collections.abc import Sequence
    from dataclasses import dataclass
    from typing import TYPE_CHECKING, cast

    import click
except KeyboardInterrupt:  # Ctrl-C before `run` is there to tell of it; who imports the API hears of it as ever
    if __name__ != "__main__" and not sys.argv[0].endswith("taskpack"):
        raise
    sys.stderr.write("interrupted\n")
    sys.exit(130)

if TYPE_CHECKING:
    from masks_store import Store
    from trainer import Comparison, Report, StoreReport

__all__ = ["OpenStore", "main", "open"]

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


# ---------------------------------------------------------------- the commands


@dataclass(frozen=True)
class Mounted:
    """Where a command lives, and the line that `taskpack --help` prints for it without importing it."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Mounted] = {
    "init": Mounted("trainer.cli", "init", "Make a store: choose the backbone, and how much of it to keep."),
    "check": Mounted("trainer.cli_check", "check", "Look an image source over before training on it."),
    "train": Mounted("trainer.cli", "train", "Train a task into a store."),
    "eval": Mounted("trainer.cli", "eval_", "Measure the accuracy of a store's tasks on a source."),
    "plan": Mounted("trainer.cli_plan", "plan", "Propose the order in which to pack tasks, and what each would get."),
    "compare": Mounted("trainer.cli_compare", "compare", "Train a task with several methods, and compare them."),
    "report": Mounted("trainer.cli_report", "report", "Write a page with figures on a store and its tasks."),
    "ls": Mounted("masks_store.cli", "ls", "List a store's tasks."),
    "show": Mounted("masks_store.cli", "show", "Describe one task: its versions, sizes and lineage."),
    "export": Mounted("masks_store.cli", "export", "Copy a task's artifact out of a store."),
    "rm": Mounted("masks_store.cli", "rm", "Delete a task, or one version of it."),
    "label": Mounted("masks_store.cli", "label", "Point a label at a version, in a store or on a running server."),
    "verify": Mounted("masks_store.cli", "verify", "Check every byte, lineage, claim and digest of a store or a file."),
    "serve": Mounted("service.cli", "serve", "Serve a store over HTTP."),
    "bench": Mounted("service.cli_bench", "bench", "Measure a store on this machine, beside one network per task."),
    "predict": Mounted("service.cli_client", "predict", "Ask a running server what is on some images."),
    "push": Mounted("service.cli_client", "push", "Send a task to a running server."),
}

REMOTE_LABEL = Mounted("service.cli_client", "label", COMMANDS["label"].help)

LATER = ("key", "backup", "gc", "log", "doctor")
"""Commands that the design names and this version lacks: refused by name, so that nobody looks for a typing error."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None where there is none of that name."""
        mounted = COMMANDS.get(cmd_name)
        return _load(mounted) if mounted else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse what comes later by name, send `label URL …` to the client, and let `serve` heed SIGTERM first."""
        if args and args[0] in LATER:
            raise click.UsageError(
                f"'{args[0]}' is not in this version of Taskpack ({_version()}). Commands: {', '.join(COMMANDS)}"
            )
        if args and args[0] == "label" and any(arg.startswith(("http://", "https://")) for arg in args[1:]):
            return "label", _load(REMOTE_LABEL), args[1:]
        if args and args[0] == "serve":  # loading it takes seconds, in which SIGTERM must not be lost
            from service.early_stop import hear

            ctx.call_on_close(hear())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, mounted.help) for name, mounted in COMMANDS.items()])


def _load(mounted: Mounted) -> click.Command:
    return cast(click.Command, getattr(importlib.import_module(mounted.module), mounted.attribute))


def _version() -> str:
    from importlib.metadata import version

    return version("taskpack")


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"taskpack {_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and leave.",
)
def command() -> None:
    """Pack many image-classification tasks into one network, and serve them all.

    Each command explains itself: taskpack COMMAND --help
    """


# ---------------------------------------------------------------- errors


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong input or usage, 130 interrupted, 1 any other failure."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Errors go to stderr as `error: …`, one fault a line, never a traceback.
    """
    try:
        if not sys.warnoptions:  # Pillow's word on odd EXIF data is no user's concern: what cannot be read is an error
            warnings.filterwarnings("ignore", module=r"PIL\b")
        result = command.main(args, prog_name="taskpack", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`taskpack ls store | head -1`): nobody is left to tell, and Python's own flush at exit
        # must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        return _tell_usage(error)
    except Exception as error:
        return _tell(error)
    return result if isinstance(result, int) else 0


def _tell_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    click.echo(f"error: {error.format_message()}", err=True)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"  {error.ctx.get_usage()}", err=True)
        click.echo(f"  more: {error.ctx.command_path} --help", err=True)
    return error.exit_code


def _tell(error: Exception) -> int:
    if os.environ.get("TASKPACK_TRACEBACK"):
        raise error
    if "masks_store.errors" in sys.modules:  # who raised one of these has imported them: an import here costs nothing
        from masks_store.errors import InvalidInput, TaskpackError

        if isinstance(error, TaskpackError):
            _tell_faults(str(error), error.faults)
            return USAGE if isinstance(error, InvalidInput) else FAILURE
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror}", err=True)
        return FAILURE
    click.echo(f"error: {type(error).__name__}: {error}", err=True)
    click.echo(
        "  this is a defect in Taskpack: please report it, with what TASKPACK_TRACEBACK=1 prints for the same command",
        err=True,
    )
    return FAILURE


def _tell_faults(message: str, faults: Sequence[str]) -> None:
    click.echo(f"error: {message}", err=True)
    for fault in faults:
        if fault not in message:
            click.echo(f"  {fault}", err=True)


# ---------------------------------------------------------------- the Python API


@dataclass(frozen=True)
class OpenStore:
    """A store, and what can be done with it from Python."""

    store: Store

    def train(self, name: str, data: str | os.PathLike[str], *, method: str = "packnet", **settings: object) -> Report:
        """Train a task into the store, as `taskpack train STORE NAME --data DATA --method METHOD` does.

        Args:
            name: the task's name.
            data: a folder, `.zip` or `.npz` of images, or `torchvision:<Dataset>`.
            method: `packnet`, `clr`, `clnp`, `piggyback`, `bn` or `linear`.
            settings: the command's other flags, with `_` for `-`: `on="digits"`, `epochs=5`, `out="file.safetensors"`.

        Raises:
            masks_store.TaskpackError: whatever the command would print.
        """
        import trainer

        return trainer.train(self.store, name, os.fspath(data), method=method, **settings)

    def compare(
        self, name: str, data: str | os.PathLike[str], methods: Sequence[str], **settings: object
    ) -> Comparison:
        """Train a task with several methods and measure them side by side, as `taskpack compare` does; none is kept.

        Args:
            name: the task's name.
            data: see `train`.
            methods: such as `["packnet", "clr"]`.
            settings: the command's other flags, with `_` for `-`.

        Raises:
            masks_store.TaskpackError: whatever the command would print.
        """
        import trainer

        return trainer.compare(self.store, name, os.fspath(data), methods, **settings)

    def report(self, out: str | os.PathLike[str] | None = None) -> StoreReport:
        """Write a page with figures on the store, as `taskpack report` does.

        Args:
            out: the folder; a report that is in it is replaced whole. None: `report` in the store's own.

        Raises:
            masks_store.TaskpackError: whatever the command would print.
        """
        import trainer

        return trainer.report(self.store, out)


def open(path: str | os.PathLike[str]) -> OpenStore:
    """Open a store that `taskpack init` made.

    Raises:
        masks_store.NotFound: there is no store at `path`.
    """
    from pathlib import Path

    from masks_store import Store

    return OpenStore(Store.open(Path(path)))


if __name__ == "__main__":
    main()
