"""The flags that every experiment has, and where its data is."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .permuted import Cut

RESULTS = Path(__file__).parent / "results"


def parser_of(description: str | None, *, epochs: int) -> argparse.ArgumentParser:
    """A parser with the common flags; `epochs` is the protocol's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--train-images", type=int, help="cut the training set (default: all that validation leaves)")
    parser.add_argument("--val-images", type=int, default=6000)
    parser.add_argument("--mnist", type=Path, help="the .npz (default: mnist.npz in $TASKPACK_DATA)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result's JSON and figures")
    parser.add_argument("--work", type=Path, help="folder for stores: a stopped run goes on there (default: temporary)")
    return parser


def cut_of(arguments: argparse.Namespace) -> Cut:
    """The cut that the flags ask for."""
    return Cut(arguments.tasks, arguments.train_images, arguments.val_images)


def mnist_of(arguments: argparse.Namespace) -> Path:
    """Where mnist.npz is.

    Raises:
        SystemExit: nobody said.
    """
    if arguments.mnist is not None:
        return arguments.mnist
    folder = os.environ.get("TASKPACK_DATA")
    if folder is None:
        raise SystemExit("set TASKPACK_DATA to the folder with mnist.npz, or give --mnist FILE")
    return Path(folder) / "mnist.npz"
