"""The answer of /predict as bytes, ranked and written image by image.

What writes JSON lets no other thread run meanwhile: in pieces of a thousand labels a large answer, written in a thread
of its own, stops nobody else for longer than a millisecond at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from masks_store import Version

from ..edge.record import RequestRecord
from ..images import Bad, Pixels
from .ranking import rank

LABELS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """What one version says to the images of a request.

    Attributes:
        version: that answers.
        logits: float32 [good images, classes]; None where no image is good.
        queue_ms, infer_ms: of its forward pass.
        auto: with task=auto, how typical of the task the images are.
    """

    version: Version
    logits: npt.NDArray[np.float32] | None
    queue_ms: float = 0.0
    infer_ms: float = 0.0
    auto: float | None = None


def write_answers(
    record: RequestRecord, answers: Sequence[Answer], images: Sequence[Pixels | Bad], top_k: int
) -> bytes:
    """The answers as JSON: one as it is, several under `results`.

    Args:
        record: of the request; tells the time that its stages took.
        answers: of the tasks in the order asked.
        images: what was sent, in its order.
        top_k: labels of each image; all where there are fewer classes.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    if len(answers) == 1:
        return b"".join(_answer(record, answers[0], images, top_k))
    return b"".join(_results(record, answers, images, top_k))


def _results(
    record: RequestRecord, answers: Sequence[Answer], images: Sequence[Pixels | Bad], top_k: int
) -> Iterator[bytes]:
    for place, answer in enumerate(answers):
        yield b"," if place else b'{"results":['
        yield from _answer(record, answer, images, top_k)
    yield b"]}"


def _answer(record: RequestRecord, answer: Answer, images: Sequence[Pixels | Bad], top_k: int) -> Iterator[bytes]:
    version = answer.version
    head = orjson.dumps({"task": version.task, "version": version.version})
    yield head.removesuffix(b"}") + b',"predictions":['
    ranked = iter(()) if answer.logits is None else zip(*rank(answer.logits, top_k), strict=True)
    for place, image in enumerate(images):
        if place:
            yield b","
        if isinstance(image, Bad):
            yield orjson.dumps({"status": "error", "error": image.reason})
        else:
            yield b'{"status":"ok","labels":['
            yield from _labels(*next(ranked), version.manifest.classes)
            yield b"]}"
    timing = {
        "decode": record.stages.get("decode", 0.0) * 1e3,
        "queue": answer.queue_ms,
        "infer": answer.infer_ms,
        "total": record.elapsed * 1e3,
    }
    yield b'],"timing_ms":' + orjson.dumps({stage: round(ms, 3) for stage, ms in timing.items()})
    if answer.auto is not None:
        yield b',"auto":' + orjson.dumps({"score": answer.auto})
    yield b"}"


def _labels(ids: npt.NDArray[np.intp], scores: npt.NDArray[np.float64], classes: Sequence[str]) -> Iterator[bytes]:
    """The labels of one image, best first, as members of a JSON list; some at once."""
    for start in range(0, len(ids), LABELS_AT_ONCE):
        some = slice(start, start + LABELS_AT_ONCE)
        pairs = zip(ids[some].tolist(), scores[some].tolist(), strict=True)
        if start:
            yield b","
        yield orjson.dumps([{"id": i, "name": classes[i], "score": score} for i, score in pairs])[1:-1]
