"""Every error that Taskpack raises on purpose.

TaskpackError
├── InvalidInput            a flag, name, data source or setting is wrong
├── FormatError             bytes that break the format (FORMAT.md)
├── ProbeFailed             a version does not compute what it computed when it was made
├── NotFound                no such store, task, version or label
├── Conflict                the store's state forbids it
│   ├── BackboneMismatch    made for another backbone or another preprocess
│   ├── MissingParent       the version it is built on is not in the store
│   ├── ClaimOverlap        it claims weights that another version owns
│   ├── VersionInUse        labelled, or others build on it
│   └── StoreReserved       another run holds the store's free weights
├── PreconditionFailed      the label is not where the caller believed
├── OutOfCapacity           no free weights, or no disk space
├── StoreUnwritable         no permission, a read-only file system or a failing disk
├── StoreReplaced           another store is where the one that is open was
└── StoreCorrupt            a stored blob or row is not what it must be

The errors know nothing of HTTP or of exit codes; `service/errors.py` and `taskpack.py` map them.
"""

from __future__ import annotations

from collections.abc import Sequence


class TaskpackError(Exception):
    """Base of all errors here: one message for a person, and every fault found, for machines too.

    Args:
        message: what was expected, what came, where, and what to do.
        faults: every fault of the input; the message itself when there is only one.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults: tuple[str, ...] = tuple(faults) or (message,)

    def __reduce__(self) -> tuple[type[TaskpackError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.faults)


class InvalidInput(TaskpackError):
    """A flag, a name, a data source or a setting is wrong; nothing was changed."""


class FormatError(TaskpackError):
    """Bytes that are not a Taskpack file of a version this reader knows."""


class ProbeFailed(TaskpackError):
    """A version's self-test gave other logits than when it was made."""


class NotFound(TaskpackError):
    """No such store, task, version or label."""


class Conflict(TaskpackError):
    """The request is sound but the store's present state forbids it."""


class RegistryLocked(Conflict):
    """Other processes kept the store's registry locked for longer than is waited; the same again may succeed."""


class BackboneMismatch(Conflict):
    """The artifact was made for another backbone or another preprocess."""


class MissingParent(Conflict):
    """The version that the artifact is built on is not in this store."""


class ClaimOverlap(Conflict):
    """The artifact claims weights that another version already owns."""


class VersionInUse(Conflict):
    """The version carries a label, or other versions are built on it."""


class StoreReserved(Conflict):
    """Another run holds the store's free weights."""


class PreconditionFailed(TaskpackError):
    """A label is not where the caller believed it to be."""


class OutOfCapacity(TaskpackError):
    """No free weights are left for a task, or no disk space for a file."""


class StoreUnwritable(TaskpackError):
    """A file or the registry cannot be written, or not be opened: no permission, read-only, a failing disk."""


class StoreReplaced(TaskpackError):
    """At the store's place is not what was opened: it was moved, replaced or restored meanwhile."""


class StoreCorrupt(TaskpackError):
    """A stored blob or registry row is not what it must be."""
