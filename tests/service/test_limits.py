"""Limits: of bodies, heads, images and tasks, of time, and of all requests together."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from masks_store import Store
from service import images
from service.api import payloads, predict
from service.engine import Engine

from .web import ADMIN, JSON, OCTETS, PNG, Web, client_of, new_task, picture, probed, problem, running

pytestmark = pytest.mark.anyio


async def pieces(total: int, size: int = 1000, sent: list[int] | None = None) -> AsyncIterator[bytes]:
    """A body of unknown length."""
    for _ in range(total // size):
        if sent is not None:
            sent.append(size)
        yield b"x" * size


async def never(first: bytes = b"x") -> AsyncIterator[bytes]:
    """A body that does not end."""
    yield first
    await asyncio.sleep(60)


# ---------------------------------------------------------------- bodies


async def test_a_body_over_the_limit_is_413_by_its_content_length_before_any_of_it_is_read(store: Store) -> None:
    async with running(store, max_body_bytes=5000) as web:
        received = 0

        async def receive() -> dict[str, Any]:
            nonlocal received
            received += 1
            return {"type": "http.disconnect"}

        status = await raw(web, receive, {"content-length": "5001"})
        assert status == 413
        assert received <= 1  # only to let the caller finish, after the answer


async def test_a_body_without_a_length_is_413_as_soon_as_it_is_over(store: Store) -> None:
    async with running(store, max_body_bytes=5000) as web:
        at: list[int] = []
        answered: list[int] = []

        async def receive() -> dict[str, Any]:
            at.append(1000)
            if answered:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        status = await raw(web, receive, {"transfer-encoding": "chunked"}, answered)
        assert status == 413
        assert len(at) <= 8


async def raw(web: Web, receive: Any, headers: dict[str, str], answered: list[int] | None = None) -> int:
    """One request by the bare protocol, with a body that the test controls."""
    status = 0

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            if answered is not None:
                answered.append(status)

    given = {"host": "localhost", "content-type": "image/png", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"task=birds",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await web.app(scope, receive, send)
    return status


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "٣"])
async def test_a_content_length_that_is_no_number_is_400(shared: Web, length: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert await raw(shared, receive, {"content-length": length}) == 400


async def test_a_compressed_body_is_415_and_never_unpacked(shared: Web) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    response = await shared.client.post("/predict?task=birds", content=gzip.compress(b" " * 9999), headers=headers)
    assert "without Content-Encoding" in problem(response, 415)["detail"]


@pytest.mark.parametrize("codings", ["gzip, chunked", "gzip", "chunked, deflate", "x"])
async def test_a_transfer_coding_besides_chunked_is_415(shared: Web, codings: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert await raw(shared, receive, {"transfer-encoding": codings}) == 415
    assert await raw(shared, receive, {"transfer-encoding": "Chunked"}) == 0  # read, and the caller has left


async def test_a_caller_who_leaves_while_sending_is_answered_by_nothing(shared: Web) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert await raw(shared, receive, {"content-length": "10"}) == 0
    assert 'taskpack_requests_total{code="499",task="birds"}' in (await shared.client.get("/metrics")).text


async def test_a_raw_body_that_comes_in_one_piece_is_never_copied(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, given, open_image = picture(), list[bytes](), images.open_image

    def noted(data: bytes, **options: Any) -> Any:
        given.append(data)
        return open_image(data, **options)

    monkeypatch.setattr(images, "open_image", noted)  # the real one, and what it was given
    async with running(store) as web:
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.sleep(60)  # the caller waits for the answer
            return {"type": "http.disconnect"}

        assert await raw(web, receive, {"content-length": str(len(body))}) == 200
    assert len(given) == 1
    assert given[0] is body


async def test_an_artifact_has_a_limit_of_its_own(store: Store) -> None:
    artifact = new_task(store, "cars")
    async with running(store, max_body_bytes=1000, max_artifact_bytes=len(artifact)) as web:
        assert (await web.register(artifact)).status_code == 201
    async with running(store, max_artifact_bytes=len(artifact) - 1) as web:
        problem(await web.register(artifact), 413)


async def test_a_slow_body_is_408_and_closes_the_connection(store: Store) -> None:
    async with running(store, body_timeout_s=0.2) as web:
        response = await web.client.post("/predict?task=birds", content=never(), headers=PNG)
        problem(response, 408)
        assert response.headers["Connection"] == "close"
        label = await web.client.put("/tasks/birds/labels/stable", content=never(b"{"), headers={**ADMIN, **JSON})
        problem(label, 408)


async def test_a_slow_artifact_is_408_by_its_own_clock(store: Store) -> None:
    async with running(store, artifact_timeout_s=0.2) as web:
        response = await web.client.post("/tasks", content=never(), headers={**ADMIN, **OCTETS})
        assert problem(response, 408)["detail"] == "the artifact did not arrive within 0.2 s"


async def test_bodies_together_have_a_limit_and_give_their_room_back(store: Store) -> None:
    async with running(store, max_inflight_bytes=3000, body_timeout_s=5) as web:
        held = [asyncio.create_task(web.client.post("/predict?task=birds", content=never(b"x" * 2000), headers=PNG))]
        await _until(lambda: web.app.state.runtime.bodies.taken == 2000)
        response = await web.client.post("/predict?task=birds", content=b"x" * 1500, headers=PNG)
        problem(response, 503)
        assert int(response.headers["Retry-After"]) >= 1
        held[0].cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await _until(lambda: web.app.state.runtime.bodies.taken == 0)
        problem(await web.client.post("/predict?task=birds", content=b"x" * 1500, headers=PNG), 415)


async def _until(done: Any) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- counts


async def test_images_tasks_and_parts_over_their_limits_are_413(store: Store) -> None:
    async with running(store, max_images=2, max_tasks=1) as web:
        files = [("image", picture())] * 3
        problem(await web.client.post("/predict?task=birds", files=files), 413)
        body = {"images": [{"b64": "aaaa"}] * 3}
        problem(await web.client.post("/predict?task=birds", json=body), 413)
        assert (await web.client.post("/predict?task=birds", files=files[:2])).status_code == 200
        problem(await web.client.post("/predict?task=birds&task=plants", content=picture(), headers=PNG), 413)


@pytest.mark.parametrize("many", [32, 33])
async def test_thirty_two_images_are_answered_and_one_more_is_not(shared: Web, many: int) -> None:
    response = await shared.client.post("/predict?task=birds", files=[("image", picture())] * many)
    assert response.status_code == (200 if many == 32 else 413)


async def test_headers_over_their_limits_are_431(store: Store) -> None:
    async with running(store, max_headers=20, max_header_bytes=2000) as web:
        problem(await web.client.get("/livez", headers={f"X-{i}": "y" for i in range(20)}), 431)
        problem(await web.client.get("/livez", headers={"X-Long": "y" * 2000}), 431)
        problem(await web.client.get("/livez?" + "y" * 2000), 431)
        problem(await web.client.get("/" + "y" * 2000), 431)
        assert (await web.client.get("/livez", headers={"X-Long": "y" * 1000})).status_code == 200


# ---------------------------------------------------------------- at once


async def test_requests_at_once_have_a_limit(store: Store) -> None:
    async with running(store, max_requests=1, body_timeout_s=5) as web:
        held = asyncio.create_task(web.client.post("/predict?task=birds", content=never(), headers=PNG))
        await _until(lambda: web.app.state.runtime.bodies.taken == 1)
        response = await web.client.get("/tasks")
        problem(response, 503)
        assert "Retry-After" in response.headers
        assert (await web.client.get("/livez")).status_code == 200  # health is not work
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert (await web.client.get("/tasks")).status_code == 200


async def test_a_key_has_its_number_of_requests_at_once(store: Store, tmp_path: Any) -> None:
    import hashlib

    import yaml

    line = {"name": "one", "role": "predict", "sha256": hashlib.sha256(b"tp_one").hexdigest(), "concurrency": 1}
    (tmp_path / "keys").write_text(yaml.safe_dump({"keys": [line]}))
    mine = {"Authorization": "Bearer tp_one"}
    async with running(store, keys_file=tmp_path / "keys", body_timeout_s=5) as web:
        held = asyncio.create_task(web.client.post("/predict?task=birds", content=never(), headers={**PNG, **mine}))
        await _until(lambda: web.app.state.runtime.bodies.taken == 1)
        response = await web.client.get("/tasks", headers=mine)
        problem(response, 429)
        assert response.headers["Retry-After"] == "1"
        assert (await web.client.get("/tasks", headers=ADMIN)).status_code == 200
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert (await web.client.get("/tasks", headers=mine)).status_code == 200


async def test_artifacts_at_once_have_a_limit(store: Store) -> None:
    async with running(store, max_uploads=1, artifact_timeout_s=5) as web:
        held = asyncio.create_task(web.client.post("/tasks", content=never(), headers={**ADMIN, **OCTETS}))
        await _until(lambda: web.app.state.runtime.bodies.taken == 1)
        assert "being registered already" in problem(await web.register(b"x"), 503)["detail"]
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        problem(await web.register(b"x"), 422)


async def test_large_bodies_are_taken_apart_off_the_event_loop_and_small_ones_on_it(
    shared: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    threads: list[threading.Thread] = []

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return payloads.images_of(*arguments)

    monkeypatch.setattr(predict, "images_of", noted)  # the real one, and where it ran
    loop = threading.current_thread()
    for size in (16, 300):
        body = {"images": [{"b64": base64.b64encode(picture("PNG", (size, size))).decode()}]}
        assert (await shared.client.post("/predict?task=birds", json=body)).status_code == 200
    small, large = threads
    assert small is loop
    assert large is not loop


async def test_an_app_that_has_not_started_answers_health_and_nothing_else(store: Store) -> None:
    from service import Settings, create_app

    async with client_of(create_app(Settings(), store)) as client:
        assert (await client.get("/livez")).status_code == 200
        problem(await client.get("/readyz"), 503)
        response = await client.post("/predict?task=birds", content=picture(), headers=PNG)
        problem(response, 503)


async def test_a_draining_app_is_not_ready_at_once_and_still_answers(web: Web) -> None:
    web.app.state.runtime.drain()
    response = await web.client.get("/readyz")
    assert "draining" in problem(response, 503)["detail"]
    assert (await web.predict())["task"] == "birds"


async def test_a_full_queue_is_503_with_a_time_to_come_back(store: Store) -> None:
    async with running(store, queue_limit_s=0.001, max_batch=4) as web:
        await probed(web)
        requests = [web.client.post("/predict?task=birds", files=[("image", picture())] * 8) for _ in range(16)]
        responses: list[httpx.Response] = await asyncio.gather(*requests)
        refused = [response for response in responses if response.status_code != 200]
        assert refused
        for response in refused:
            problem(response, 503)
            assert int(response.headers["Retry-After"]) >= 1
        assert 'taskpack_rejected_total{reason="queue_full"}' in (await web.client.get("/metrics")).text


async def test_pictures_that_wait_to_be_decoded_count_as_a_queue(store: Store) -> None:
    many = [("image", picture("PNG", (900, 900)))] * 8
    async with running(store, queue_limit_s=1e-6, decode_threads=1) as web:
        await probed(web)
        first = asyncio.create_task(web.client.post("/predict?task=birds", files=many))
        await _until(lambda: web.app.state.runtime.decoder.pending)
        response = await web.client.post("/predict?task=birds", content=picture(), headers=PNG)
        problem(response, 503)
        assert int(response.headers["Retry-After"]) >= 1
        assert (await first).status_code == 200


async def test_a_caller_who_leaves_while_pictures_are_decoded_frees_the_threads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = httpx.Request("POST", "http://x", files=[("image", picture())] * 12)
    body, gate, begun, decode = [request.read()], threading.Event(), threading.Event(), images.decode
    decoded: list[images.Picture] = []

    def gated(one: images.Picture, *rest: Any) -> images.Pixels | images.Bad:
        begun.set()
        assert gate.wait(30)
        decoded.append(one)
        return decode(one, *rest)

    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop()}
        await asyncio.to_thread(begun.wait, 30)
        return {"type": "http.disconnect"}

    monkeypatch.setattr(images, "decode", gated)
    async with running(store, decode_threads=1) as web:
        try:
            assert await raw(web, receive, {"content-type": request.headers["content-type"]}) == 0
        finally:
            gate.set()
        await _until(lambda: not web.app.state.runtime.decoder.pending)
        assert len(decoded) == 1, "the one that had begun"


async def test_a_caller_who_leaves_while_waiting_frees_the_queue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    body, gate, run = [picture()], threading.Event(), Engine.run
    computed: list[int] = []

    def gated(self: Engine, sight: Any, dtype: str, pictures: Any, tasks: Any) -> Any:
        assert gate.wait(30)
        computed.append(sum(map(len, pictures)))
        return run(self, sight, dtype, pictures, tasks)

    async with running(store) as web:
        await probed(web)
        serving = web.app.state.runtime.serving

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop()}
            await _until(lambda: serving.stats().queue_images == 1)
            return {"type": "http.disconnect"}

        monkeypatch.setattr(Engine, "run", gated)
        files = [("image", picture())] * 2
        before = serving.stats().batches
        first = asyncio.create_task(web.client.post("/predict?task=plants", files=files))
        try:
            await _until(lambda: serving.stats().batches > before)
            assert await raw(web, receive, {"content-length": str(len(body[0]))}) == 0
            assert serving.stats().queue_images == 0, "while the only worker is still busy"
        finally:
            gate.set()
        assert (await first).status_code == 200
        assert computed == [2]
