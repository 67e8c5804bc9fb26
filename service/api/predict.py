"""POST /predict: pictures in, classes out, for one task or several over the same pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, TypeVar

import numpy as np
from fastapi import Query, Request
from starlette.responses import Response

from masks_store import Guess, NotFound, Version

from ..auth import Caller
from ..edge.bodies import Disconnected
from ..edge.record import RequestRecord, record_of
from ..errors import Problem
from ..images import Bad, Picture, Pixels, alone, examine
from ..runtime import Runtime, caller_of, runtime_of
from ..schemas import PredictQuery
from ..settings import Settings
from .answers import Json
from .auto import AUTO, named
from .deadlines import due
from .payloads import check_media_type, images_of
from .predictions import LABELS_AT_ONCE, Answer, write_answers
from .ranking import check_labels, label_count

T = TypeVar("T")

PARSED_ON_THE_LOOP = 64 << 10
"""Bodies up to this many bytes are taken apart on the event loop: a thread would cost more than it saves."""
RANKED_ON_THE_LOOP = 64 << 10
"""So are answers of up to this many scores ranked, if they name few of them."""


async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
    """Classify images with a task.

    The body is one image (`image/jpeg`, `image/png`, `image/webp`), or multipart with `image` parts, or JSON with
    base64. `task` may be repeated: the images are decoded once, and `results` holds one answer per task, in order.
    `task=auto` names the task by the images, which are taken to be for one task; the answer's `auto` says how typical
    of that task they are, and images that are for no task here are refused.

    Among several images a bad one has `"status":"error"` and the reason, and the others are answered; a single bad
    image is an error of its own.
    """
    runtime, record = runtime_of(request), record_of(request)
    deadline = record.started + (query.timeout_ms or runtime.settings.timeout_ms) / 1e3
    check_media_type(request.headers.get("content-type"))
    async with due(deadline, "the task was looked up in the store"):
        versions = await _versions(runtime, record, caller_of(request), query)
    settings = runtime.settings
    guess: Guess | None = None
    async with runtime.bodies.read(request, settings.max_body_bytes, settings.body_timeout_s) as body:
        read = time.monotonic()
        record.took("read", read - record.started)
        async with due(deadline, "the body was waiting to be taken apart"):
            images = await _parsed(request.headers.get("content-type"), body, settings)
        if versions:  # with task=auto as soon as it is known
            check_labels(len(images), versions, query.top_k, settings.max_labels)
        async with unless_disconnected(request):
            decoded = await runtime.decoder.decode(images, deadline)
        record.took("decode", time.monotonic() - read)
    if len(decoded) == 1 and isinstance(decoded[0], Bad):
        raise alone(decoded[0])
    async with unless_disconnected(request):
        if query.task == [AUTO]:
            version, guess = await named(runtime, caller_of(request), decoded, query.version, deadline)
            versions = [version]
            record.tasks.append(version.task)
            check_labels(len(decoded), versions, query.top_k, settings.max_labels)
        answers = await _answers(runtime, record, versions, decoded, deadline)
        if guess is not None:
            answers = [replace(answers[0], auto=guess.score)]
        written = await _written(runtime, record, answers, decoded, query.top_k)
    record.versions.extend(version.version for version in versions)
    return Json(written)


async def _versions(runtime: Runtime, record: RequestRecord, caller: Caller, query: PredictQuery) -> list[Version]:
    tasks = query.task
    if len(tasks) > runtime.settings.max_tasks:
        raise Problem(
            413, f"{len(tasks)} tasks are more than the limit of {runtime.settings.max_tasks}", reason="too_large"
        )
    if AUTO in tasks:
        if len(tasks) > 1:
            raise Problem(400, "task=auto stands alone: it names the one task that the images are for")
        return []  # named when the images are known
    forbidden = [task for task in tasks if not caller.may_use(task)]
    if forbidden:
        raise Problem(403, f"the key {caller.name!r} is not for this task", [f"task: {name!r}" for name in forbidden])
    found: list[Version] = []
    missing: list[str] = []
    for task in tasks:
        try:
            found.append(await runtime.resolve(task, query.version))
        except NotFound as error:
            missing += error.faults
        else:
            record.tasks.append(task)
    if missing:
        raise NotFound(missing[0], missing)
    return found


async def _parsed(content_type: str | None, body: bytes, settings: Settings) -> list[Picture | Bad]:
    if len(body) <= PARSED_ON_THE_LOOP:
        return _examined(content_type, body, settings)
    return await asyncio.to_thread(_examined, content_type, body, settings)


def _examined(content_type: str | None, body: bytes, settings: Settings) -> list[Picture | Bad]:
    return [examine(image, settings.max_pixels) for image in images_of(content_type, body, settings.max_images)]


async def _answers(
    runtime: Runtime,
    record: RequestRecord,
    versions: Sequence[Version],
    decoded: Sequence[Pixels | Bad],
    deadline: float,
) -> list[Answer]:
    good = [image for image in decoded if not isinstance(image, Bad)]
    if not good:
        return [Answer(version, None) for version in versions]
    batch = np.stack(good)  # uint8 [N, H, W, 3]
    inferences = await together(
        *(runtime.serving.infer(version.version, batch, deadline=deadline) for version in versions)
    )
    record.took("queue", max(inference.queue_ms for inference in inferences) / 1e3)
    record.took("infer", max(inference.infer_ms for inference in inferences) / 1e3)
    return [
        Answer(version, inference.logits, inference.queue_ms, inference.infer_ms)
        for version, inference in zip(versions, inferences, strict=True)
    ]


async def _written(
    runtime: Runtime, record: RequestRecord, answers: Sequence[Answer], decoded: Sequence[Pixels | Bad], top_k: int
) -> bytes:
    versions = [answer.version for answer in answers]
    scores = sum(0 if answer.logits is None else answer.logits.size for answer in answers)
    if scores <= RANKED_ON_THE_LOOP and label_count(len(decoded), versions, top_k) <= LABELS_AT_ONCE:
        return write_answers(record, answers, decoded, top_k)
    return await asyncio.get_running_loop().run_in_executor(
        runtime.answering, write_answers, record, answers, decoded, top_k
    )


async def together(*work: Awaitable[T]) -> list[T]:
    """Wait for several things at once; when one fails the others are given up, and its error is raised."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def unless_disconnected(request: Request) -> AsyncGenerator[None]:
    """Give the block up as soon as the caller goes away: the queue drops what nobody waits for.

    Args:
        request: its body has been read.

    Raises:
        Disconnected: the caller went away first.
    """

    async def watch(scope: asyncio.Timeout) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.reschedule(0.0)  # over since long ago: cancels the block

    scope = asyncio.timeout(None)
    try:
        async with scope:
            watching = asyncio.ensure_future(watch(scope))
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if scope.expired():
            raise Disconnected from None
        raise
