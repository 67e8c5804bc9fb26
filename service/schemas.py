"""What goes over the wire as JSON: bodies that are read, answers that are written, queries and their limits."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from masks_store import InvalidInput, check_version

VERSION_HELP = "A digest, a unique prefix of it of at least 12 hex digits, or a label (`stable`, `canary`)."


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


# ---------------------------------------------------------------- asked


def decode_cursor(cursor: str) -> str:
    """The name in a cursor.

    Raises:
        ValueError: it is none.
    """
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except ValueError:
        raise ValueError("not one that this server gave") from None


def _cursor(text: str) -> str:
    decode_cursor(text)
    return text


def _version(text: str) -> str:
    try:
        check_version(text)
    except InvalidInput as error:
        raise ValueError(str(error)) from error
    return text


VersionName = Annotated[str, Field(min_length=1, max_length=80, description=VERSION_HELP), AfterValidator(_version)]


class ImageIn(_In):
    """One image of a JSON body."""

    b64: Annotated[str, Field(description="The encoded image, base64 (RFC 4648).")]


class ImagesIn(_In):
    """JSON body of /predict."""

    images: Annotated[list[ImageIn], Field(min_length=1)]


class LabelIn(_In):
    """JSON body of PUT /tasks/{task}/labels/{label}."""

    version: VersionName


class PredictQuery(_In):
    """Query of /predict."""

    task: Annotated[list[str], Field(min_length=1, description="The task; repeated for several answers at once.")]
    version: VersionName = "stable"
    top_k: Annotated[int, Field(ge=1, le=65_536, description="How many classes to answer with.")] = 5
    timeout_ms: Annotated[
        int | None,
        Field(
            ge=1,
            le=600_000,
            description="Milliseconds from the request's head; 504 where no forward pass has begun by then.",
        ),
    ] = None


class RegisterQuery(_In):
    """Query of POST /tasks."""

    label: Annotated[
        Literal["stable", "canary", "none"] | None,
        Field(description="Without it a new task is labelled stable, a new version of a known one canary."),
    ] = None


class PageQuery(_In):
    """Query of lists."""

    cursor: Annotated[
        Annotated[str, AfterValidator(_cursor)] | None,
        Field(max_length=256, description="`next` of the page before."),
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="Most entries on the page.")] = 100


class RetireQuery(_In):
    """Query of DELETE of a task or of one version."""

    retire: Annotated[
        bool, Field(description="Only stop it from answering: versions that others are built on keep their weights.")
    ] = False


class NoQuery(_In):
    """No query."""


# ---------------------------------------------------------------- answered


class LabelOut(_Out):
    """One class of an answer."""

    id: int
    name: str
    score: float = Field(description="Softmax probability.")


class ImageOut(_Out):
    """The answer to one image: its best classes, or why it was not read."""

    status: Literal["ok", "error"]
    labels: list[LabelOut] | None = None
    error: str | None = None


class TimingOut(_Out):
    """Milliseconds by stage."""

    decode: float
    queue: float
    infer: float
    total: float


class AutoOut(_Out):
    """How the task was named, with `task=auto`."""

    score: float = Field(description="How typical of the task the images are: the share of its own that are less so.")


class PredictionOut(_Out):
    """The answer of one task to all images."""

    task: str
    version: str
    predictions: list[ImageOut]
    timing_ms: TimingOut
    auto: AutoOut | None = None


class PredictionsOut(_Out):
    """The answers of several tasks, in the order asked."""

    results: list[PredictionOut]


class VersionOut(_Out):
    """One version of a task."""

    version: str
    task: str
    method: str
    parent: str | None
    state: str
    size: int = Field(description="Bytes of the artifact.")
    created: datetime
    labels: list[str]
    classes: list[str]
    metrics: dict[str, Any]
    backbone: str


class TaskOut(_Out):
    """A task; method and classes are those of `stable`, or of the newest version where nothing is stable."""

    task: str
    method: str
    classes: list[str]
    labels: dict[str, str]
    versions: int = Field(description="How many versions there are.")
    created: datetime


class RegisteredOut(TaskOut):
    """The task after a registration, and the version that was registered."""

    version: str


class TasksOut(_Out):
    """A page of tasks, by name."""

    tasks: list[TaskOut]
    next: str | None


class VersionsOut(_Out):
    """A page of a task's versions, oldest first."""

    versions: list[VersionOut]
    next: str | None


class LabelledOut(_Out):
    """A label and the version it names."""

    task: str
    label: str
    version: str


class AcceptedOut(_Out):
    """Taken out of the store; requests that use it are still being answered."""

    status: Literal["draining"]


class StatusOut(_Out):
    """Health."""

    status: str


class InfoOut(_Out):
    """What runs here."""

    name: str
    version: str
    libraries: dict[str, str]
    backbone: dict[str, Any]
    tasks: int
    device: str
    dtype: str
    settings: dict[str, Any]


class ProblemOut(_Out):
    """RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    errors: list[str]
    request_id: str
