"""The client without a network: its flows driven by hand. `test_client_live.py` has it speak to the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from service.client import (
    AsyncClient,
    Busy,
    Client,
    ClientError,
    Conflict,
    NotAServer,
    NotFound,
    PreconditionFailed,
    Rejected,
    ServerError,
    TimedOut,
    Unauthorized,
    Unreachable,
    flows,
)
from service.client.flows import Call, Flow
from service.client.keys import Keys, find_keys

DIGEST = "sha256:" + "ab" * 32


def run(flow: Flow[Any], *responses: httpx.Response) -> tuple[Any, list[Call]]:
    """Drive a flow with prepared responses; returns its result and the calls it made."""
    calls, waiting = [next(flow)], list(responses)
    try:
        while True:
            calls.append(flow.send(waiting.pop(0)))
    except StopIteration as done:
        return done.value, calls


def answer(status: int, body: Any = None, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=content, headers=named, request=httpx.Request("GET", "http://s/"))


def prediction(names: list[str], version: str = DIGEST) -> httpx.Response:
    images = [{"status": "ok", "labels": [{"id": 0, "name": name, "score": 1.0}]} for name in names]
    return answer(200, {"task": "t", "version": version, "predictions": images, "timing_ms": {"total": 2.0}})


def task_body(name: str) -> dict[str, Any]:
    return {
        "task": name,
        "method": "clr",
        "classes": ["a"],
        "labels": {"stable": DIGEST},
        "versions": 1,
        "created": "2026-01-02T03:04:05Z",
    }


# ---------------------------------------------------------------- flows


def test_an_answer_to_many_images_is_joined_in_their_order_and_of_one_version() -> None:
    images = [bytes([i]) for i in range(70)]
    names = [f"n{i}" for i in range(70)]
    result, calls = run(
        flows.predict("t", *images, top_k=1), prediction(names[:32]), prediction(names[32:64]), prediction(names[64:])
    )
    assert [image.best.name for image in result.predictions] == names
    assert [len(call.files) for call in calls] == [32, 32, 6]
    assert [part[1][1] for call in calls for part in call.files] == images
    assert "version" not in calls[0].params
    assert {call.params["version"] for call in calls[1:]} == {DIGEST}  # pinned to what answered the first images
    assert result.timing_ms == {"total": 6.0}


def test_images_are_sent_in_pieces_of_24_mib_and_never_none() -> None:
    mib = 1 << 20
    sizes = [20, 4, 1, 30, 30, 10, 10, 10]
    images = [bytes(size * mib) for size in sizes]
    pieces = [["a", "b"], ["c"], ["d"], ["e"], ["f", "g"], ["h"]]
    result, calls = run(flows.predict("t", *images), *map(prediction, pieces))
    assert [[len(part[1][1]) // mib for part in call.files] for call in calls] == [
        [20, 4], [1], [30], [30], [10, 10], [10]
    ]  # fmt: skip
    assert [image.best.name for image in result.predictions] == list("abcdefgh")
    with pytest.raises(Rejected):
        run(flows.predict("t"), answer(400, {"detail": "the body is empty"}))


@pytest.mark.parametrize("status", [413, 415, 422])
def test_a_bad_image_that_went_alone_does_not_lose_the_answers_to_the_others(status: int) -> None:
    bad = answer(status, {"detail": "no image"})
    names = [f"n{i}" for i in range(32)]
    last, _ = run(flows.predict("t", *[b"x"] * 33), prediction(names), bad)
    assert [image.status for image in last.predictions] == ["ok"] * 32 + ["error"]
    assert last.predictions[32].error == "no image"
    large = bytes(flows.BYTES_PER_REQUEST)
    first, calls = run(flows.predict("t", large, large, b"x"), bad, prediction(["a"]), prediction(["b"]))
    assert [image.error or image.best.name for image in first.predictions] == ["no image", "a", "b"]
    assert [call.params.get("version") for call in calls] == [None, None, DIGEST]
    for images in ([b"x"], [large, large]):  # alone, or none among them that was answered
        with pytest.raises(Rejected, match="no image"):
            run(flows.predict("t", *images), *[bad] * len(images))


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503, 504])
def test_any_other_answer_to_an_image_that_went_alone_is_an_error(status: int) -> None:
    with pytest.raises(ClientError):
        run(flows.predict("t", *[b"x"] * 33), prediction(["a"] * 32), answer(status, {"detail": "no"}))


def test_an_unreadable_image_among_others_keeps_its_place_and_reason() -> None:
    body = {
        "task": "t",
        "version": DIGEST,
        "predictions": [
            {"status": "error", "labels": None, "error": "not an image"},
            {"status": "ok", "labels": [{"id": 1, "name": "b", "score": 0.5}], "error": None},
        ],
        "timing_ms": {},
    }
    result, _ = run(flows.predict("t", b"x", b"y"), answer(200, body))
    assert [(image.error, image.best and image.best.name) for image in result.predictions] == [
        ("not an image", None),
        (None, "b"),
    ]


def test_images_may_be_paths_and_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "three.png"
    path.write_bytes(b"pixels")
    _, calls = run(flows.predict("t", path, str(path)), prediction(["a", "b"]))
    assert list(calls[0].files) == [("image", ("three.png", b"pixels"))] * 2


def test_a_list_is_read_to_its_last_page() -> None:
    pages = [
        answer(200, {"tasks": [task_body("a")], "next": "a"}),
        answer(200, {"tasks": [task_body("b")], "next": None}),
    ]
    result, calls = run(flows.tasks(), *pages)
    assert [found.task for found in result] == ["a", "b"]
    assert [dict(call.params) for call in calls] == [{}, {"cursor": "a"}]


NAMED: dict[str, Callable[[str], Flow[Any]]] = {
    "task": flows.task,
    "delete_task": flows.delete_task,
    "versions": flows.versions,
    "artifact": flows.artifact,
    "artifact's version": lambda name: flows.artifact("a", name),
    "set_label": lambda name: flows.set_label(name, "stable", "canary"),
    "set_label's label": lambda name: flows.set_label("a", name, "canary"),
    "drop_label": lambda name: flows.drop_label(name, "stable"),
    "drop_label's label": lambda name: flows.drop_label("a", name),
    "delete_version": lambda name: flows.delete_version(name, "canary"),
    "delete_version's version": lambda name: flows.delete_version("a", name),
}
"""Every call with a name in its path, by where the name stands."""


@pytest.mark.parametrize("where", NAMED)
def test_a_name_that_would_lead_elsewhere_is_refused_before_anything_is_sent(where: str) -> None:
    for name in ("", ".", "..", "a/..", "../a", "a/labels/stable", "/"):
        with pytest.raises(Rejected, match="is not the name of"):
            next(NAMED[where](name))


@pytest.mark.parametrize("where", NAMED)
def test_the_path_that_is_sent_is_the_one_that_was_built(where: str) -> None:
    sent: list[str] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.raw_path.decode())
        return httpx.Response(404)

    for name in ("a", DIGEST, "...", "..a", ".a", "a b", "%2e%2e", "%2F", "a?b#c", "\u00fc", "a\\..", ";.."):
        built = next(NAMED[where](name)).path
        assert name in unquote(built).split("/")
        with Client("http://s/", key="k", transport=httpx.MockTransport(note)) as client, pytest.raises(NotFound):
            client.drive(NAMED[where](name))
        assert sent.pop() == built


def test_a_registration_says_whether_the_version_is_new() -> None:
    body = task_body("a") | {"version": DIGEST}
    new, calls = run(flows.register(b"bytes", label="none"), answer(201, body))
    known, _ = run(flows.register(b"bytes"), answer(200, body))
    assert (new.is_new, new.version, known.is_new) == (True, DIGEST, False)
    assert dict(calls[0].params) == {"label": "none"}
    assert calls[0].headers["Content-Type"] == "application/octet-stream"


def test_preconditions_travel_as_etags() -> None:
    body = {"task": "a", "label": "stable", "version": DIGEST}
    _, moved = run(flows.set_label("a", "stable", "canary", if_match=DIGEST), answer(200, body))
    _, made = run(flows.set_label("a", "stable", "canary", if_none_match=True), answer(200, body))
    assert moved[0].headers["If-Match"] == f'"{DIGEST}"'
    assert made[0].headers["If-None-Match"] == "*"
    assert "If-Match" not in made[0].headers


def test_a_deletion_that_waits_for_requests_is_told_from_one_that_is_done() -> None:
    assert run(flows.delete_task("a"), answer(204, b""))[0] is True
    assert run(flows.delete_version("a", DIGEST), answer(202, {"status": "draining"}))[0] is False


@pytest.mark.parametrize("retire", [True, False])
def test_a_task_or_a_version_that_others_are_built_on_is_retired_only_when_asked(retire: bool) -> None:
    for flow in (flows.delete_task("a", retire=retire), flows.delete_version("a", DIGEST, retire=retire)):
        _, sent = run(flow, answer(204, b""))
        assert sent[0].params == ({"retire": "true"} if retire else {})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected), (401, Unauthorized), (403, Unauthorized), (404, NotFound), (409, Conflict),
        (412, PreconditionFailed), (413, Rejected), (422, Rejected), (429, Busy), (500, ServerError),
        (503, Busy), (504, TimedOut), (507, ServerError),
    ],
)  # fmt: skip
def test_every_status_has_its_error_with_all_that_the_problem_says(status: int, kind: type[ClientError]) -> None:
    problem = {"detail": "no good", "errors": ["one", "two"], "status": status}
    with pytest.raises(kind) as caught:
        run(flows.task("a"), answer(status, problem, X_Request_Id="r1", Retry_After="7"))
    assert (str(caught.value), caught.value.errors) == ("no good", ("one", "two"))
    assert (caught.value.status, caught.value.request_id, caught.value.retry_after) == (status, "r1", 7.0)


def test_an_error_without_a_problem_document_is_still_told() -> None:
    with pytest.raises(ServerError, match="502"):
        run(flows.task("a"), answer(502, b"<html>bad gateway</html>"))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"hello": 1}', b'"text"'])
def test_an_answer_of_another_program_is_no_task(body: bytes) -> None:
    for flow in (flows.task("a"), flows.tasks()):
        with pytest.raises(NotAServer):
            run(flow, answer(200, body))


def test_progress_ends_at_the_length_of_what_is_sent() -> None:
    told: list[int] = []
    content = bytes(3 * flows.CHUNK + 5)
    assert b"".join(flows.chunks(content, told.append)) == content
    assert told == [flows.CHUNK, 2 * flows.CHUNK, 3 * flows.CHUNK, len(content)]


# ---------------------------------------------------------------- keys


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(home), **more}


def token_file(home: Path, name: str, token: str = "t0ken") -> None:
    (home / "taskpack").mkdir(exist_ok=True)
    (home / "taskpack" / name).write_text(token + "\n")


def found(url: str, environment: dict[str, str]) -> str | None:
    """The token that is found in a file for the server at `url`."""
    key = find_keys(httpx.URL(url), environment).found
    return key.text if key else None


def test_the_token_of_a_local_server_is_found_by_any_name_of_this_machine(tmp_path: Path) -> None:
    token_file(tmp_path, "127.0.0.1_8000.token")
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/", "http://[::1]:8000"):
        assert found(url, environ(tmp_path)) == "t0ken"


def test_the_file_of_the_very_name_that_is_called_goes_first(tmp_path: Path) -> None:
    for name in ("127.0.0.1", "localhost", "::1", "0.0.0.0"):
        token_file(tmp_path, f"{name}_8000.token", f"of {name}")
    for url, name in (
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("[::1]", "::1"),
        ("127.0.0.2", "127.0.0.1"),
    ):
        assert found(f"http://{url}:8000", environ(tmp_path)) == f"of {name}"


def test_the_token_of_a_server_on_all_addresses_is_found_on_this_machine(tmp_path: Path) -> None:
    token_file(tmp_path, "0.0.0.0_8000.token")
    assert found("http://127.0.0.1:8000", environ(tmp_path)) == "t0ken"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8001", "http://example.org:8000", "http://10.0.0.1:8000", "http://127.0.0.1.nip.io:8000"]
)
def test_a_local_token_goes_to_no_other_port_or_host(url: str, tmp_path: Path) -> None:
    for name in ("127.0.0.1_8000.token", "0.0.0.0_8000.token", "localhost_8000.token"):
        token_file(tmp_path, name)
    assert find_keys(httpx.URL(url), environ(tmp_path)) == Keys()


def sent(monkeypatch: pytest.MonkeyPatch, home: Path, *, key: str | None = None, **given: str) -> dict[str, str | None]:
    """The key that each call of the client sends to 127.0.0.1:8000, by the call's name."""
    seen: list[str | None] = []

    def note(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(404)

    for name in ("TASKPACK_API_KEY", "TASKPACK_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**given, "XDG_STATE_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    flow_of: dict[str, Flow[Any]] = {
        "predict": flows.predict("t", b"x"), "tasks": flows.tasks(), "task": flows.task("t"), "info": flows.info(),
        "versions": flows.versions("t"), "ready": flows.ready(), "artifact": flows.artifact("t"),
        "register": flows.register(b"x"), "set_label": flows.set_label("t", "stable", "canary"),
        "drop_label": flows.drop_label("t", "stable"), "delete_task": flows.delete_task("t"),
        "delete_version": flows.delete_version("t", "canary"), "as_admin": flows.as_admin(flows.versions("t")),
    }  # fmt: skip
    with Client("http://127.0.0.1:8000", key=key, transport=httpx.MockTransport(note)) as client:
        for flow in flow_of.values():
            with pytest.raises(NotFound):
                client.drive(flow)
    return {name: key and key.removeprefix("Bearer ") for name, key in zip(flow_of, seen, strict=True)}


ASKS = {"predict", "tasks", "task", "info", "versions", "ready"}
"""The calls that change nothing and need no admin."""


def test_a_token_that_is_found_in_a_file_goes_with_calls_of_the_admin_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("127.0.0.1", "localhost"):
        token_file(tmp_path, f"{name}_8000.token")
    got = sent(monkeypatch, tmp_path)
    assert {name: key for name, key in got.items() if name in ASKS} == dict.fromkeys(ASKS)
    assert {key for name, key in got.items() if name not in ASKS} == {"t0ken"}
    with_key = sent(monkeypatch, tmp_path, TASKPACK_API_KEY="key")
    assert with_key == {name: "key" if name in ASKS else "t0ken" for name in got}


@pytest.mark.parametrize("with_file", [True, False])
def test_a_token_that_was_given_goes_with_every_call_and_before_the_file(
    with_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_file:
        token_file(tmp_path, "127.0.0.1_8000.token")
    assert set(sent(monkeypatch, tmp_path, TASKPACK_ADMIN_TOKEN="admin").values()) == {"admin"}
    assert set(sent(monkeypatch, tmp_path, TASKPACK_ADMIN_TOKEN="admin", key="mine").values()) == {"mine"}
    both = sent(monkeypatch, tmp_path, TASKPACK_ADMIN_TOKEN="admin", TASKPACK_API_KEY="key")
    assert both == {name: "key" if name in ASKS else "admin" for name in both}


def test_a_key_that_is_not_known_is_told_with_its_source_and_the_mend_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            401, json={"detail": "the key is not known here", "errors": ["the key is not known here"]}
        )

    def told(key: str | None = None) -> str:
        transport = httpx.MockTransport(refuse)
        with Client("http://localhost:8000", key=key, transport=transport) as client, pytest.raises(Unauthorized) as no:
            client.register(b"x")
        assert no.value.errors == ("the key is not known here",)
        return str(no.value)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("TASKPACK_API_KEY", "TASKPACK_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert "no key was sent: set TASKPACK_API_KEY" in told()
    token_file(tmp_path, "127.0.0.1_8000.token", "s3cret")
    assert f"came from the file {tmp_path}/taskpack/127.0.0.1_8000.token" in told()
    assert "delete it" in told()
    monkeypatch.setenv("TASKPACK_ADMIN_TOKEN", "s3cret")
    assert "came from the environment variable TASKPACK_ADMIN_TOKEN" in told()
    assert "came from the `key`" in told("s3cret")
    assert "s3cret" not in told() + told("s3cret") + repr(find_keys(httpx.URL("http://localhost:8000")))


def test_a_token_does_not_follow_a_redirect() -> None:
    asked: list[httpx.Request] = []

    def redirect(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(307, headers={"Location": "http://elsewhere.example/tasks"})

    client = Client("http://server", key="secret", transport=httpx.MockTransport(redirect))
    with client, pytest.raises(NotAServer):
        client.tasks()
    assert [request.url.host for request in asked] == ["server"]


# ---------------------------------------------------------------- both transports


def test_both_clients_send_the_same_requests_and_the_key_only_as_a_header(tmp_path: Path) -> None:
    seen: list[tuple[str, str, bytes, str | None, str | None]] = []

    def record(request: httpx.Request) -> httpx.Response:
        body = request.read()
        head = request.headers
        seen.append((request.method, str(request.url), body, head.get("Authorization"), head.get("Content-Length")))
        return httpx.Response(201, json=task_body("a") | {"version": DIGEST})

    async def record_later(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return record(request)

    async def ask() -> None:
        async with AsyncClient("http://s", key="k", transport=httpx.MockTransport(record_later)) as client:
            await client.register(b"x" * 10, progress=lambda sent: None)
            await client.task("a")

    with Client("http://s", key="k", transport=httpx.MockTransport(record)) as client:
        client.register(b"x" * 10, progress=lambda sent: None)
        client.task("a")
    asyncio.run(ask())
    assert seen[:2] == seen[2:]
    assert seen[0] == ("POST", "http://s/tasks", b"x" * 10, "Bearer k", "10")


def test_a_client_waits_longer_than_the_server_was_told_it_may() -> None:
    waits: list[float] = []

    def note(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return prediction(["a"])

    with Client("http://s", key="k", timeout=7.0, transport=httpx.MockTransport(note)) as client:
        client.predict("t", b"x")
        client.predict("t", b"x", timeout_ms=300_000)
    assert waits == [7.0, 307.0]


def test_both_clients_offer_the_same_calls() -> None:
    def calls(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert calls(Client) == calls(AsyncClient)
    assert "predict" in calls(Client)


def test_a_server_that_is_not_there_is_told_in_one_sentence() -> None:
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(Unreachable, match=r"no server answers at http://127.0.0.1:1"),
    ):
        client.ready()


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(NotAServer, match="is not the address of a server"):
        Client(url)
