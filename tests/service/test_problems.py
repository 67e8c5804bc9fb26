"""Errors as answers: one shape, every fault, the right status, and nothing of the inside."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

import masks_store
from masks_store import InvalidInput, NotFound, Store, StoreCorrupt, TaskpackError
from service.engine import Engine
from service.engine import errors as engine_errors
from service.engine.errors import DeadlinePassed, Draining, QueueFull, VersionFailed
from service.errors import STATUS, Problem, problem_of, retry_after

from .web import ADMIN, PNG, Web, new_task, picture, probed, problem, running

pytestmark = pytest.mark.anyio

TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]")


def _all_of(base: type[Exception]) -> set[type[Exception]]:
    return {base} | {kind for child in base.__subclasses__() for kind in _all_of(child)}


def test_every_domain_error_has_a_status() -> None:
    abstract = {TaskpackError, engine_errors.ServingError}
    ours = {
        kind for kind in _all_of(TaskpackError) if kind.__module__.startswith(("masks_store.errors", "service.engine"))
    }
    assert ours - abstract
    for kind in ours - abstract:
        assert any(base in STATUS for base in kind.__mro__), f"{kind.__name__} has no status"
    assert all(
        getattr(masks_store, kind.__name__, None) is kind for kind in STATUS if kind.__module__ == "masks_store.errors"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("x"), 400),
        (NotFound("x"), 404),
        (masks_store.Conflict("x"), 409),
        (masks_store.RegistryLocked("x"), 503),
        (masks_store.BackboneMismatch("x"), 409),
        (masks_store.MissingParent("x"), 409),
        (masks_store.ClaimOverlap("x"), 409),
        (masks_store.VersionInUse("x"), 409),
        (masks_store.StoreReserved("x"), 409),
        (masks_store.PreconditionFailed("x"), 412),
        (masks_store.FormatError("x"), 422),
        (masks_store.ProbeFailed("x"), 422),
        (StoreCorrupt("x"), 500),
        (masks_store.StoreReplaced("x"), 503),
        (masks_store.StoreUnwritable("x"), 503),
        (QueueFull(2.5), 503),
        (Draining("x"), 503),
        (VersionFailed("sha256:0", "x"), 503),
        (DeadlinePassed("x"), 504),
        (masks_store.OutOfCapacity("x"), 507),
        (OSError(errno.ENOSPC, "x"), 507),
    ],
)
def test_errors_have_the_status_that_the_design_gives_them(error: Exception, status: int) -> None:
    found = problem_of(error)
    assert found is not None
    assert found.status == status
    assert ("Retry-After" in found.headers) == (status == 503)


def test_an_error_that_nobody_foresaw_is_not_explained() -> None:
    assert problem_of(ValueError("secret")) is None
    assert problem_of(TaskpackError("of no kind")) is None
    assert problem_of(OSError(errno.EACCES, "x", "/etc/passwd")) is None


def test_retry_after_is_in_whole_seconds_and_at_least_one() -> None:
    assert [retry_after(s)["Retry-After"] for s in (0.0, 0.2, 1.0, 1.01, 59.5)] == ["1", "1", "1", "2", "60"]
    full = problem_of(QueueFull(2.5))
    assert full is not None
    assert full.headers["Retry-After"] == "3"


def test_paths_are_taken_out_of_what_a_client_reads() -> None:
    error = InvalidInput(
        "store /srv/my store is bad", ["/srv/my store/blobs/x: missing", "see /var/lib/x/y.z, or /tmp/a"]
    )
    found = problem_of(error, private=("/srv/my store",))
    assert found is not None
    everything = " ".join((found.detail, *found.faults))
    for part in ("/srv", "/var/lib", "/tmp"):
        assert part not in everything
    assert "the store is bad" in found.detail
    routes = problem_of(InvalidInput("GET /tasks lists them; POST /tasks/birds/labels/stable"))
    assert routes is not None
    assert routes.detail == "GET /tasks lists them; POST /tasks/birds/labels/stable"


def test_only_the_whole_path_of_the_store_is_replaced() -> None:
    said = ["/a/s is bad", "in /a/s.", "'/a/s/x'", "/a/s2 and /a/s.bak", "b/a/s", "no task 'x' in this store, s"]
    found = problem_of(InvalidInput("x", said), private=("/a/s",))
    assert found is not None
    assert list(found.faults) == [
        "the store is bad", "in the store.", "'the store/x'", "/a/s2 and /a/s.bak", "b/a/s", said[-1]
    ]  # fmt: skip


async def test_a_store_whose_path_is_a_word_of_the_messages_changes_none_of_them(
    made_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made_store, "store")
    for opened in (Store.open(Path("store")), None):
        async with running(opened, store=Path("store")) as web:
            assert (await web.client.get("/info")).json()["settings"]["store"] == str(tmp_path / "store")
            assert "in this store" in problem(await web.client.get("/tasks/x"), 404)["detail"]


# ---------------------------------------------------------------- through the app


async def test_an_unknown_route_is_404_and_another_method_405_with_what_is_allowed(shared: Web) -> None:
    for path in ("/nothing", "/tasks/birds/", "/predict/", "/tasks/a/b/c", "/Predict"):
        problem(await shared.client.get(path), 404)
    for method, path, allowed in (
        ("GET", "/predict", "POST"),
        ("PATCH", "/tasks/birds", "DELETE, GET, HEAD"),
        ("DELETE", "/tasks", "GET, HEAD, POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("PUT", "/tasks/birds/versions/stable", "DELETE, GET, HEAD"),
        ("POST", "/tasks/birds/labels/stable", "DELETE, GET, HEAD, PUT"),
    ):
        response = await shared.client.request(method, path)
        problem(response, 405)
        assert response.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/explain?task=birds"), ("GET", "/v2/models/birds"), ("POST", "/v2/x"), ("GET", "/v2")],
)
async def test_what_comes_later_is_refused_by_name(shared: Web, method: str, path: str) -> None:
    assert "not in this version" in problem(await shared.client.request(method, path), 404)["detail"]


async def test_an_error_that_nobody_foresaw_is_500_with_its_request_id_in_the_log(
    web: Web, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the secret at /etc/shadow")

    monkeypatch.setattr(web.app.state.runtime.store, "task_page", broken)
    response = await web.client.get("/tasks", headers={"X-Request-Id": "find-me"})
    document = problem(response, 500)
    assert document["request_id"] == "find-me"
    assert "secret" not in response.text
    assert "RuntimeError" not in response.text
    record = next(record for record in caplog.records if record.levelname == "ERROR")
    assert "find-me" in record.getMessage()
    assert record.exc_info is not None
    assert "the secret at /etc/shadow" in str(record.exc_info[1])


async def test_a_damaged_blob_is_500_without_its_place(web: Web) -> None:
    version = web.stable()
    blob = web.store.blobs.path(version)
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    response = await web.client.get(f"/tasks/birds/versions/{version}/artifact", headers=ADMIN)
    assert str(web.store.path) not in response.text
    assert "blobs" not in problem(response, 500)["detail"]


@pytest.mark.parametrize("gone", [True, False])
async def test_a_server_whose_device_is_gone_says_so_to_what_watches_it(
    web: Web, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU that breaks is at hand: the forward fails here as one does after an illegal access."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    await probed(web)
    monkeypatch.setattr(Engine, "run", broken)
    monkeypatch.setattr(Engine, "answers", lambda _: not gone)
    answer = await web.client.post("/predict?task=birds", content=picture(), headers=ADMIN | PNG)
    problem(answer, 500)
    for path in ("/livez", "/readyz"):
        answer = await web.client.get(path)
        if gone:
            assert "start the server anew" in problem(answer, 503)["detail"]
        else:
            assert answer.status_code == 200


async def test_a_store_that_cannot_be_read_is_not_ready_until_it_can(web: Web) -> None:
    await probed(web)
    registry = web.store.path / "registry.sqlite3"
    hidden = registry.with_suffix(".hidden")
    web.store.close()
    registry.rename(hidden)
    registry.mkdir()
    response = await _ready(web, 503)
    problem(response, 503)
    assert response.headers["Retry-After"] == "1"
    assert (await web.client.get("/livez")).status_code == 200
    registry.rmdir()
    hidden.rename(registry)
    await _ready(web, 200)


async def test_a_store_that_was_replaced_takes_no_change_and_is_not_ready_until_it_is_back(
    web: Web, made_store: Path
) -> None:
    await probed(web)
    cars = new_task(web.store, "cars")
    assert (await web.register(cars)).status_code == 201
    await web.predict("birds")
    moved = web.store.path.rename(web.store.path.with_name("moved"))
    shutil.copytree(made_store, web.store.path)
    for refused in (
        await web.register(new_task(web.store, "boats")),
        await web.register(cars),
        await web.client.put("/tasks/birds/labels/stable", json={"version": "canary"}, headers=ADMIN),
        await web.client.delete("/tasks/cars", headers=ADMIN),
        await _ready(web, 503),
    ):
        assert "was replaced" in problem(refused, 503)["detail"]
        assert str(web.store.path) not in refused.text
    await web.predict("birds")  # the registry need not be asked for it again
    with Store.open(web.store.path) as other, Store.open(moved) as own:
        assert [task.name for task in other.tasks()] == ["birds", "leaves", "plants"]
        assert [task.name for task in own.tasks()] == ["birds", "cars", "leaves", "plants"]
    shutil.rmtree(web.store.path)
    moved.rename(web.store.path)
    await _ready(web, 200)
    assert (await web.register(new_task(web.store, "boats"))).status_code == 201


async def _ready(web: Web, status: int) -> httpx.Response:
    async with asyncio.timeout(10):
        while (response := await web.client.get("/readyz")).status_code != status:
            await asyncio.sleep(0.02)
    return response


async def test_head_is_get_without_the_body_and_needs_the_same_key(shared: Web) -> None:
    for path in ("/livez", "/tasks/birds", "/tasks/none", "/docs"):
        got, headed = await shared.client.get(path), await shared.client.head(path)
        assert headed.content == b""
        for name in ("Content-Type", "Content-Length"):
            assert headed.headers[name] == got.headers[name]
        assert headed.status_code == got.status_code
    assert (await shared.client.head("/tasks/birds/versions/stable/artifact")).status_code == 401
    assert (await shared.client.head("/predict")).status_code == 405


# ---------------------------------------------------------------- headers of every answer


@pytest.mark.parametrize("sane", ["a", "req-1", "0123456789abcdef0123456789abcdef", "a/b:c@d=e+f", "x" * 128])
async def test_a_sane_request_id_is_kept(shared: Web, sane: str) -> None:
    for path in ("/livez", "/nothing", "/tasks/none"):
        assert (await shared.client.get(path, headers={"X-Request-Id": sane})).headers["X-Request-Id"] == sane


@pytest.mark.parametrize("odd", ["", " ", "x" * 129, "a b", "a\tb", "<script>", 'a"b', "-x", "a;b", "{}"])
async def test_an_odd_request_id_is_replaced(shared: Web, odd: str) -> None:
    given = (await shared.client.get("/livez", headers=[("X-Request-Id", odd)])).headers["X-Request-Id"]
    assert re.fullmatch(r"[0-9a-f]{32}", given)


async def test_requests_without_an_id_get_one_each(shared: Web) -> None:
    ids = {(await shared.client.get("/livez")).headers["X-Request-Id"] for _ in range(5)}
    assert len(ids) == 5


async def test_a_trace_goes_on_under_a_new_span(shared: Web) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    for flags, kept in (("01", "01"), ("00", "00"), ("03", "01")):
        given = f"00-{trace}-b7ad6b7169203331-{flags}"
        answered = (await shared.client.get("/livez", headers={"traceparent": given})).headers["traceparent"]
        assert TRACEPARENT.fullmatch(answered)
        assert answered.split("-")[1] == trace
        assert answered.split("-")[2] != "b7ad6b7169203331"
        assert answered.split("-")[3] == kept
    later_version = f"cc-{trace}-b7ad6b7169203331-01-what-the-future-brings"
    assert trace in (await shared.client.get("/livez", headers={"traceparent": later_version})).headers["traceparent"]


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    ],
)
async def test_a_broken_trace_is_begun_anew(shared: Web, broken: str) -> None:
    answered = (await shared.client.get("/livez", headers={"traceparent": broken})).headers["traceparent"]
    assert TRACEPARENT.fullmatch(answered)
    assert "0af7651916cd43dd8448eb211c80319c" not in answered


async def test_server_timing_names_the_stages(shared: Web) -> None:
    def stages(header: str) -> dict[str, float]:
        return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}

    response = await shared.client.post("/predict?task=birds", content=picture(), headers=PNG)
    found = stages(response.headers["Server-Timing"])
    assert set(found) == {"read", "decode", "queue", "infer", "total"}
    assert found["total"] >= found["infer"]
    assert set(stages((await shared.client.get("/nothing")).headers["Server-Timing"])) == {"total"}


@pytest.mark.parametrize(
    ("method", "path", "body", "told"),
    [
        (
            "POST",
            "/predict?task=birds&top_k=0&foo=1&version=zz",
            None,
            ["top_k: Input should be", "foo: Extra inputs", "version: 'zz' is not a version: give a label"],
        ),
        (
            "POST",
            "/predict?task=birds",
            {"images": [{"b64": "@@"}, {"url": "x"}, 1, {"b64": 1}], "z": 1},
            [
                "images.1.b64: Field required",
                "images.1.url: Extra inputs",
                "images.2: Input should be",
                "images.3.b64: Input should be",
                "z: Extra inputs",
                "images.0.b64 is not base64",
            ],
        ),
        ("POST", "/predict?task=birds", {"images": None}, ["images: Input should be"]),
        ("GET", "/tasks?limit=0&cursor=x", None, ["limit: Input should be", "cursor: not one that this server gave"]),
        (
            "PUT",
            "/tasks/birds/labels/stabel",
            {"versio": 1},
            ["version: Field required", "versio: Extra inputs", "'stabel' is not a label"],
        ),
        (
            "PUT",
            "/tasks/birds/labels/stabel",
            {"version": "zz"},
            ["version: 'zz' is not a version", "'stabel' is not a label"],
        ),
    ],
)
async def test_every_fault_of_query_path_and_body_is_told_at_once(
    shared: Web, method: str, path: str, body: object, told: list[str]
) -> None:
    sent = {} if body is None else {"json": body}
    faults = problem(await shared.client.request(method, path, headers=ADMIN, **sent), 400)["errors"]
    assert len(faults) == len(told), faults
    for words in told:
        assert any(fault.startswith(words) for fault in faults), (words, faults)


async def test_answers_about_a_version_name_it(shared: Web) -> None:
    response = await shared.client.post("/predict?task=birds&version=canary", content=picture(), headers=PNG)
    assert response.headers["X-Task-Version"] == shared.store.resolve("birds", "canary").version
    assert "X-Task-Version" not in (await shared.client.get("/tasks")).headers
    refused = await shared.client.post("/predict?task=birds", content=b"no", headers=PNG)
    assert "X-Task-Version" not in refused.headers


async def test_no_answer_may_be_guessed_at_or_kept(shared: Web) -> None:
    for path in ("/tasks", "/tasks/none", "/info", "/docs"):
        assert (await shared.client.get(path)).headers["X-Content-Type-Options"] == "nosniff"
    assert (await shared.client.get("/tasks")).headers["Cache-Control"] == "no-store"


async def test_a_log_line_cannot_be_forged(shared: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "taskpack.access")
    await shared.client.get("/tasks/x%0a2026-01-01 INFO admin DELETE everything")
    lines = [record.getMessage() for record in caplog.records if record.name == "taskpack.access"]
    assert len(lines) == 1
    assert "\n" not in lines[0]


def test_a_problem_tells_its_one_fault_where_there_is_one() -> None:
    assert Problem(400, "x").faults == ("x",)
    assert Problem(400, "2 faults", ["a", "b"]).faults == ("a", "b")
