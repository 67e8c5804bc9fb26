"""Answers: which classes are best, how they are written, how many there may be, and where the work is done."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from masks_store import Store
from service.api import predict, predictions
from service.api.predictions import LABELS_AT_ONCE, Answer, write_answers
from service.api.ranking import FEW_CLASSES, rank
from service.edge.record import RequestRecord
from service.images import Bad, Decoder

from . import live
from .web import PNG, Web, picture, probed, problem, running

pytestmark = pytest.mark.anyio

CLASSES = 3000


def test_scores_are_a_softmax_ranked_with_ties_in_the_order_of_the_classes() -> None:
    logits = np.array([[1000.0, 0.0, 1000.0], [0.0, np.log(3.0), 0.0]], dtype=np.float32)
    ids, scores = rank(logits, 3)
    assert ids.tolist() == [[0, 2, 1], [1, 0, 2]]
    assert scores[0].tolist() == [0.5, 0.5, 0.0]
    assert scores[1].tolist() == pytest.approx([0.6, 0.2, 0.2], abs=1e-6)


def test_logits_that_are_not_finite_are_never_answered_as_scores() -> None:
    with pytest.raises(FloatingPointError):
        rank(np.array([[np.nan, 1.0]], dtype=np.float32), 1)


@given(
    classes=st.sampled_from([1, 5, FEW_CLASSES, FEW_CLASSES + 1, 1000]),
    top_k=st.sampled_from([1, 2, 5, 100, 499, 500, 501, 1000, 65_536]),
    distinct=st.sampled_from([1, 2, 7, 100, 1 << 20]),
    seed=st.integers(0, 1 << 16),
)
def test_the_best_of_many_are_those_of_a_full_stable_sort(classes: int, top_k: int, distinct: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.integers(0, distinct, (3, classes)) / 8 * random.choice([-1, 1], (3, classes))).astype(np.float32)
    ids, scores = rank(logits, top_k)
    full = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    assert np.array_equal(ids, full)
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    every = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.array_equal(scores, np.take_along_axis(every, full, axis=1))


def twin(answer: Answer, images: list[Any], top_k: int, total: float) -> dict[str, Any]:
    """An answer as one JSON object, slowly."""
    assert answer.logits is not None
    ids, scores = rank(answer.logits, top_k)
    rows = iter(zip(ids.tolist(), scores.tolist(), strict=True))
    predictions: list[dict[str, Any]] = []
    for image in images:
        if isinstance(image, Bad):
            predictions.append({"status": "error", "error": image.reason})
            continue
        labels = [
            {"id": i, "name": answer.version.manifest.classes[i], "score": score}
            for i, score in zip(*next(rows), strict=True)
        ]
        predictions.append({"status": "ok", "labels": labels})
    timing = {"decode": 0.0, "queue": 1.235, "infer": 2.0, "total": total}
    told = {"task": answer.version.task, "version": answer.version.version, "predictions": predictions}
    return told | {"timing_ms": timing} | ({} if answer.auto is None else {"auto": {"score": answer.auto}})


def test_what_is_written_in_pieces_is_what_is_written_at_once(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestRecord, "elapsed", 0.004)
    version = many.resolve("many")
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, CLASSES)).astype(np.float32)
    pixels = np.zeros((16, 16, 3), np.uint8)
    images = [pixels, Bad(422, 'no "picture"'), pixels]
    record = RequestRecord("id", "trace", "span", "00")
    one, other = Answer(version, logits, 1.2349, 2.0), Answer(version, -logits, 1.2349, 2.0, auto=0.42)
    for top_k in (1, LABELS_AT_ONCE, LABELS_AT_ONCE + 1, CLASSES):
        told = [twin(answer, images, top_k, 4.0) for answer in (one, other)]
        assert write_answers(record, [one], images, top_k) == to_json(told[0])
        assert write_answers(record, [other], images, top_k) == to_json(told[1])
        assert write_answers(record, [one, other], images, top_k) == to_json({"results": told})


@pytest.fixture
def many(tmp_path: Any) -> Store:
    """A store of one task of many classes."""
    store = live.empty_store(tmp_path / "many")
    live.add(store, "many", "clr", classes=CLASSES)
    return store


async def test_large_answers_are_ranked_and_written_off_the_event_loop_and_small_ones_on_it(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[bool, int]] = []
    loop = threading.current_thread()
    write, dump = predictions.write_answers, orjson.dumps

    def noted(*arguments: Any) -> bytes:
        ran.append((threading.current_thread() is loop, 0))
        return write(*arguments)

    def sized(value: Any) -> bytes:
        written = dump(value)
        ran[-1] = ran[-1][0], max(ran[-1][1], len(written))
        return written

    monkeypatch.setattr(predict, "write_answers", noted)  # the real ones, where they ran and what they wrote at once
    monkeypatch.setattr(orjson, "dumps", sized)
    async with running(many) as web:
        files = [("image", picture(seed=seed)) for seed in range(8)]
        for query in ("task=many", f"task=many&top_k={CLASSES}", "task=many" + "&task=many" * 2):
            response = await web.client.post(f"/predict?{query}", files=files)
            assert response.status_code == 200
    assert [on_the_loop for on_the_loop, _ in ran] == [True, False, False], "few scores, many labels, many scores"
    assert max(size for _, size in ran) < 100 * LABELS_AT_ONCE


async def test_an_answer_of_too_many_labels_is_413_before_anything_is_decoded(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    async def ask(web: Web, images: int, top_k: int, tasks: int = 1) -> Any:
        files = [("image", picture())] * images
        query = "&".join(["task=many"] * tasks)
        return await web.client.post(f"/predict?{query}&top_k={top_k}", files=files)

    async with running(many, max_labels=2 * CLASSES) as web:
        await probed(web)
        assert (await ask(web, 2, 65_536)).status_code == 200, "no more than there are classes"
        assert (await ask(web, 3, 1000, 2)).status_code == 200
        monkeypatch.setattr(Decoder, "decode", decoded)
        document = problem(await ask(web, 3, 1001, 2), 413)
        for told in ("3 image(s)", "2 task(s)", "top_k=1001", "6006 labels", "limit of 6000", "top_k=1000 or less"):
            assert told in document["detail"]
        problem(await ask(web, 3, 65_536), 413)
        assert 'taskpack_rejected_total{reason="too_large"} 2.0' in (await web.client.get("/metrics")).text
    async with running(many, max_labels=1) as web:
        problem(await ask(web, 2, 1), 413)
        assert "top_k=0" not in problem(await ask(web, 2, 1), 413)["detail"]


async def test_ordinary_calls_are_far_below_the_limit_of_labels(many: Store) -> None:
    async with running(many) as web:
        files = [("image", picture())] * 32
        response = await web.client.post("/predict?" + "&".join(["task=many"] * 16), files=files)
        assert response.status_code == 200
        response = await web.client.post(f"/predict?task=many&top_k={CLASSES}", files=files)
        assert response.status_code == 200
        response = await web.client.post("/predict?task=many", content=picture(), headers=PNG)
        assert response.status_code == 200
