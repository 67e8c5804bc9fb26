"""A locked registry: changes wait for it in threads of their own, so many at once, and nothing else waits with them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from masks_store import Store
from service import writes

from .web import ADMIN, PNG, Web, picture, probed, problem, running

pytestmark = pytest.mark.anyio

DEFAULT_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Threads that asyncio gives to everything that names none."""
LARGE = picture("PNG", (300, 300))
"""Taken apart in a thread."""


@contextmanager
def locked(store: Store) -> Generator[None]:
    """Another writer has the store's registry meanwhile."""
    other = sqlite3.connect(store.registry.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def put(web: Web, label: str = "canary") -> asyncio.Task[httpx.Response]:
    """A label that is moved, as a task."""
    request = web.client.put(f"/tasks/birds/labels/{label}", json={"version": "stable"}, headers=ADMIN)
    return asyncio.create_task(request)


async def begun(many: int) -> None:
    """Wait until so many changes have a thread each."""
    async with asyncio.timeout(10):
        while sum(thread.name.startswith("write") for thread in threading.enumerate()) < many:
            await asyncio.sleep(0.01)


async def test_while_changes_wait_for_the_registry_everything_else_is_answered(store: Store) -> None:
    many = DEFAULT_THREADS + 1
    async with running(store, max_writes=many) as web:
        await probed(web)
        with locked(store):
            waiting = [put(web) for _ in range(many)]
            await begun(many)
            refused = await web.client.delete("/tasks/leaves", headers=ADMIN)
            assert "being made already" in problem(refused, 503)["detail"]
            assert int(refused.headers["Retry-After"]) >= 1
            async with asyncio.timeout(5):
                for path in ("/tasks", "/tasks/birds", "/metrics", "/info", "/readyz", "/tasks/birds/labels/stable"):
                    assert (await web.client.get(path)).status_code == 200
                for task in ("birds", "plants"):
                    response = await web.client.post(
                        f"/predict?task={task}&timeout_ms=5000", content=LARGE, headers=PNG
                    )
                    assert response.status_code == 200
                await web.app.state.runtime.refresh()
            assert not any(one.done() for one in waiting)
        assert {(await one).status_code for one in waiting} == {200}
        assert (await web.client.delete("/tasks/leaves", headers=ADMIN)).status_code == 204
        assert 'taskpack_rejected_total{reason="max_writes"} 1.0' in (await web.client.get("/metrics")).text


async def test_what_another_store_change_does_is_followed_while_changes_wait(store: Store) -> None:
    async with running(store, max_writes=DEFAULT_THREADS + 1) as web:
        await probed(web)
        await web.predict("birds")
        old, new = store.task("birds").versions
        store.set_label("birds", "stable", new)
        with locked(store):
            waiting = [put(web) for _ in range(DEFAULT_THREADS + 1)]
            await begun(DEFAULT_THREADS + 1)
            async with asyncio.timeout(5):
                while (await web.predict("birds"))["version"] == old:
                    await asyncio.sleep(0.02)
        await asyncio.gather(*waiting)


async def test_a_change_waits_only_so_long_and_is_503(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "WAIT_S", 0.2)
    async with running(store) as web:
        await probed(web)
        with locked(store):
            responses = [
                await put(web),
                await web.client.delete("/tasks/birds/labels/canary", headers=ADMIN),
                await web.client.delete("/tasks/leaves", headers=ADMIN),
                await web.client.delete(f"/tasks/plants/versions/{web.stable('plants')}", headers=ADMIN),
            ]
        for response in responses:
            assert "locked" in problem(response, 503)["detail"]
            assert response.headers["Retry-After"] == "1"
        assert (await put(web)).status_code == 200


async def test_a_prediction_that_no_thread_takes_up_is_504_at_its_deadline(store: Store) -> None:
    """Threads of others are all taken: a task that was not looked up yet, and a large body, wait for one."""
    async with running(store) as web:
        await probed(web)
        await web.predict("birds")
        free = threading.Event()
        held = [asyncio.create_task(asyncio.to_thread(free.wait, 30)) for _ in range(DEFAULT_THREADS)]
        web.app.state.runtime._poller.cancel()  # it would only add to the wait
        await asyncio.sleep(0.05)
        try:
            for query, sent, told in (("plants", picture(), "looked up"), ("birds", LARGE, "taken apart")):
                started = time.monotonic()
                response: Any = await web.client.post(
                    f"/predict?task={query}&timeout_ms=300", content=sent, headers=PNG
                )
                assert told in problem(response, 504)["detail"]
                assert 0.25 < time.monotonic() - started < 5
        finally:
            free.set()
            await asyncio.gather(*held)
        assert (await web.client.post("/predict?task=plants", content=LARGE, headers=PNG)).status_code == 200
