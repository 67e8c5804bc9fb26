"""Who may call what: every route has a role, nothing is open by oversight, keys are checked as they should be."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import BaseRoute, Route

from masks_store import InvalidInput, Store
from service.api.routes import ROLES
from service.auth import Keyring, keyring, read_keys
from service.edge.gate import DEFAULT_ROLE
from service.errors import Problem
from service.settings import Settings

from .web import ADMIN, PNG, TOKEN, Web, picture, problem, running

pytestmark = pytest.mark.anyio

KEY = "tp_predict-key-for-tests"
BIRDS = "tp_birds-only-key"
METRICS = "tp_metrics-key"
CHIEF = "tp_admin-key"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys_file(path: Path, keys: Sequence[dict[str, Any]] | None = None) -> Path:
    path.write_text(yaml.safe_dump({"keys": list(keys) if keys is not None else [
        {"name": "shop", "role": "predict", "sha256": hashed(KEY)},
        {"name": "birder", "role": "predict", "sha256": hashed(BIRDS), "tasks": ["birds"]},
        {"name": "prometheus", "role": "metrics", "sha256": hashed(METRICS)},
        {"name": "chief", "role": "admin", "sha256": hashed(CHIEF)},
    ]}))  # fmt: skip
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


EXAMPLES = {"task": "birds", "version": "stable", "label": "stable", "path": "models"}


# ---------------------------------------------------------------- every route


async def test_every_route_of_the_app_stands_in_the_table_of_roles(shared: Web) -> None:
    seen: set[tuple[str, str]] = set()
    for route in walk(shared.app.routes):
        assert isinstance(route, Route), f"{route} is no plain route: the gate must be taught its role"
        seen.update((method, route.path) for method in route.methods or ())
    assert seen == set(ROLES)


def walk(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    found: list[BaseRoute] = []
    for route in routes:
        inner = getattr(route, "routes", None)
        found += walk(inner) if inner else [route]
    return found


@pytest.mark.parametrize(("method", "path"), sorted(ROLES))
async def test_every_route_refuses_exactly_those_whose_role_it_is_not(
    made_store: Path, shared_keys: Web, method: str, path: str
) -> None:
    role = ROLES[method, path]
    allowed = {"public": {None, "p", "m", "a"}, "predict": {"p", "a"}, "metrics": {"m", "a"}, "admin": {"a"}}[role]
    url = path.replace("{path:path}", "{path}").format(**EXAMPLES)
    for who, key in ((None, None), ("p", KEY), ("m", METRICS), ("a", CHIEF)):
        if who == "a" and method in ("PUT", "DELETE"):
            continue  # would change the store that the module shares
        response = await shared_keys.client.request(method, url, headers=bearer(key) if key else {})
        if who in allowed:
            assert response.status_code not in (401, 403)
        else:
            document = problem(response, 403 if who else 401)
            assert role in document["detail"]
            assert who or response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.fixture(scope="module")
async def shared_keys(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil

    path = tmp_path_factory.mktemp("keys")
    store = Store.open(shutil.copytree(made_store, path / "store"))
    async with running(store, keys_file=keys_file(path / "keys.yaml")) as web:
        yield web


async def test_a_route_that_the_table_does_not_name_needs_the_admin(web: Web) -> None:
    async def forgotten(_: Any) -> Any:
        raise AssertionError("must not be reached")

    assert DEFAULT_ROLE == "admin"
    web.app.router.routes.insert(0, Route("/forgotten", forgotten))
    problem(await web.client.get("/forgotten"), 401)


async def test_a_websocket_is_not_let_in(shared: Web) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/predict", "headers": [], "query_string": b"", "app": shared.app}
    await shared.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# ---------------------------------------------------------------- when there are no keys


async def test_on_loopback_predictions_are_open_and_the_store_is_not(shared: Web) -> None:
    assert (await shared.predict())["task"] == "birds"
    assert (await shared.client.get("/metrics")).status_code == 200
    for method, path in (
        ("POST", "/tasks"),
        ("DELETE", "/tasks/birds"),
        ("GET", "/tasks/birds/versions/stable/artifact"),
    ):
        problem(await shared.client.request(method, path), 401)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
async def test_elsewhere_predictions_are_closed_unless_opened(store: Store, host: str) -> None:
    closed = keyring(Settings(host=host), TOKEN)
    assert not closed.open_to_all
    assert keyring(Settings(host=host, open=True), TOKEN).open_to_all


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1", "[::1]"])
def test_loopback_has_many_names(host: str) -> None:
    assert keyring(Settings(host=host), None).open_to_all


async def test_a_server_that_is_not_on_loopback_answers_nobody_without_a_key(store: Store) -> None:
    async with running(store, host="0.0.0.0") as web:
        problem(await web.client.post("/predict?task=birds", content=picture(), headers=PNG), 401)
        problem(await web.client.get("/metrics"), 401)
        assert (await web.client.get("/readyz")).status_code == 200
        response = await web.client.post("/predict?task=birds", content=picture(), headers={**PNG, **ADMIN})
        assert response.status_code == 200


async def test_a_keys_file_closes_what_open_would_open(store: Store, tmp_path: Path) -> None:
    async with running(store, open=True, keys_file=keys_file(tmp_path / "k", [])) as web:
        assert "needs a key" in problem(await web.client.get("/tasks"), 401)["detail"]


def test_without_an_admin_token_nobody_is_the_admin() -> None:
    with pytest.raises(Problem, match="not known"):
        Keyring().authenticate(_headers(bearer("x")))


def _headers(raw: dict[str, str]) -> Any:
    from starlette.datastructures import Headers

    return Headers(raw)


# ---------------------------------------------------------------- keys


async def test_a_key_that_is_not_known_is_refused_even_where_none_is_needed(shared: Web) -> None:
    problem(await shared.client.get("/tasks", headers=bearer("nobody-knows-me")), 401)
    assert (await shared.client.get("/readyz", headers=bearer("nobody-knows-me"))).status_code == 200


async def test_keys_travel_as_bearer_or_x_api_key(shared_keys: Web) -> None:
    for headers in (
        bearer(KEY),
        {"X-API-Key": KEY},
        {"authorization": f"bearer  {KEY} "},
        {**bearer(KEY), "X-API-Key": KEY},
    ):
        assert (await shared_keys.client.get("/tasks", headers=headers)).status_code == 200


async def test_a_malformed_or_doubled_key_is_refused(shared_keys: Web) -> None:
    client = shared_keys.client
    for wrong in (KEY, f"Basic {KEY}", "Bearer"):
        refused = problem(await client.get("/tasks", headers={"Authorization": wrong}), 401)
        assert refused["detail"] == "the Authorization header must be `Bearer KEY`", wrong
    doubled = problem(await client.get("/tasks", headers={**bearer(KEY), "X-API-Key": METRICS}), 400)
    assert "key" in doubled["detail"]


async def test_a_key_for_one_task_sees_and_asks_only_that_one(shared_keys: Web) -> None:
    client, headers = shared_keys.client, bearer(BIRDS)
    assert [task["task"] for task in (await client.get("/tasks", headers=headers)).json()["tasks"]] == ["birds"]
    asked = await client.post("/predict?task=birds", content=picture(), headers={**headers, **PNG})
    assert asked.status_code == 200
    for path in (
        "/tasks/plants",
        "/tasks/plants/versions",
        "/tasks/plants/versions/stable",
        "/tasks/plants/labels/stable",
    ):
        problem(await client.get(path, headers=headers), 403)
    both = await client.post("/predict?task=birds&task=plants", content=picture(), headers={**headers, **PNG})
    assert problem(both, 403)["errors"] == ["task: 'plants'"]


async def test_a_key_for_some_tasks_cannot_find_out_which_others_there_are(shared_keys: Web) -> None:
    there, nowhere = [
        problem(await shared_keys.client.get(path, headers=bearer(BIRDS)), 403)
        for path in ("/tasks/plants", "/tasks/nothing-there")
    ]
    assert there | {"request_id": ""} == nowhere | {"request_id": ""}


async def test_a_rate_is_a_quota_with_a_time_to_come_back(store: Store, tmp_path: Path) -> None:
    keys = [{"name": "slow", "role": "predict", "sha256": hashed(KEY), "rate": 0.2}]
    async with running(store, keys_file=keys_file(tmp_path / "k", keys)) as web:
        assert (await web.client.get("/tasks", headers=bearer(KEY))).status_code == 200
        refused = await web.client.get("/tasks", headers=bearer(KEY))
        problem(refused, 429)
        assert 1 <= int(refused.headers["Retry-After"]) <= 5
        assert 'taskpack_rejected_total{reason="rate"} 1.0' in (await web.client.get("/metrics", headers=ADMIN)).text


async def test_a_keys_file_that_changes_holds_at_once_and_a_broken_one_changes_nothing(
    store: Store, tmp_path: Path
) -> None:
    path = keys_file(tmp_path / "keys.yaml")
    async with running(store, keys_file=path) as web:
        assert (await web.client.get("/tasks", headers=bearer(KEY))).status_code == 200
        for stamp, text in enumerate(("keys: nonsense", "keys: 2024-13-45"), -1):
            path.write_text(text)
            os.utime(path, (stamp + 2, stamp + 2))
            await _polled()
            assert (await web.client.get("/tasks", headers=bearer(KEY))).status_code == 200
        keys_file(path, [{"name": "new", "role": "predict", "sha256": hashed("tp_new")}])
        os.utime(path, (3, 3))
        await _polled()
        problem(await web.client.get("/tasks", headers=bearer(KEY)), 401)
        assert (await web.client.get("/tasks", headers=bearer("tp_new"))).status_code == 200


async def _polled() -> None:
    import asyncio

    await asyncio.sleep(0.4)


def test_every_fault_of_a_keys_file_is_told_and_no_hash_repeated(tmp_path: Path) -> None:
    keys = [
        {"name": "a", "role": "owner", "sha256": hashed("x")},
        {"name": "b", "role": "predict", "sha256": "ABCDEF0123456789"},
        {"name": "c", "role": "predict", "sha256": hashed("y"), "rate": 0, "more": 1},
        {"name": "d", "role": "predict", "sha256": hashed("z")},
        {"name": "d", "role": "predict", "sha256": hashed("z")},
        {"name": "e", "role": "admin", "sha256": hashed("e"), "tasks": ["birds"]},
    ]
    with pytest.raises(InvalidInput) as caught:
        read_keys(keys_file(tmp_path / "k", keys))
    faults = "\n".join(caught.value.faults)
    for place in (
        "keys.0.role",
        "keys.1.sha256",
        "keys.2.rate",
        "keys.2.more",
        "keys.5",
        "'d' stands twice",
        "one key stands twice",
    ):
        assert place in faults
    for secret in (hashed("x"), "ABCDEF0123456789", hashed("z")):
        assert secret not in faults


@pytest.mark.parametrize("text", ["", "[]", "keys:", "keys: {a: 1}", "\x00", "{", "a: 2024-13-45", "[" * 5000])
def test_a_keys_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(InvalidInput, match="--keys-file"):
        read_keys(tmp_path / "k")


def test_every_key_is_compared_in_constant_time_whichever_is_found(tmp_path: Path) -> None:
    compared: list[str] = []

    def compare(one: str, other: str) -> bool:
        compared.append(one)
        return one == other

    keys = read_keys(keys_file(tmp_path / "k"))
    ring = Keyring(keys, hashed(TOKEN), compare=compare)
    assert ring.authenticate(_headers(bearer(KEY))).name == "shop"
    assert compared == [hashed(TOKEN), *(key.sha256 for key in keys)]
    assert Keyring().compare is hmac.compare_digest


# ---------------------------------------------------------------- Host


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("api.example.org", 200),
        ("a.b.example.net:443", 200),
        ("evil.org", 421),
        ("localhost.evil.org", 421),
        ("example.net", 421),
        ("notexample.net", 421),
        ("127.0.0.1.evil.org", 421),
        ("localhost:80@evil.org", 421),
        ("::1", 421),
        ("localhost:eighty", 421),
        ("", 421),
        ("0.0.0.0", 421),
        ("10.1.2.3", 200),
        ("10.1.2.3:8000", 200),
        ("11.1.2.3", 421),
        ("192.168.7.7:8000", 200),
        ("192.168.7.8:8000", 421),
        ("[2001:db8::5]:8000", 200),
        ("[2001:0DB8:0::5]", 200),
        ("[2001:db9::5]:8000", 421),
        ("[fe80:0:0:0:0:0:0:9]", 200),
        ("2001:db8::5", 421),
        ("[10.1.2.3]", 421),
        ("10.1.2.3.evil.org", 421),
        ("10.1.2.3.4", 421),
        ("010.1.2.3", 421),
        ("10.1.2.0/24", 421),
    ],
)
async def test_only_hosts_that_are_named_are_answered(shared_hosts: Web, host: str, status: int) -> None:
    for path in ("/livez", "/"):
        response = await shared_hosts.client.get(path, headers={"Host": host})
        if status == 421:
            problem(response, 421)
        else:
            assert response.status_code in (200, 307)


ALLOWED = "api.example.org, *.example.net, 10.0.0.0/8, 192.168.7.7, 2001:db8::/32, [fe80::9]"


@pytest.fixture(scope="module")
async def shared_hosts(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil

    path = shutil.copytree(made_store, tmp_path_factory.mktemp("hosts") / "store")
    async with running(Store.open(path), allowed_hosts=ALLOWED) as web:
        yield web


async def test_the_host_is_checked_before_the_key(shared_hosts: Web) -> None:
    for key in (ADMIN, bearer("nobody-knows-me")):
        refused = problem(await shared_hosts.client.get("/tasks", headers={"Host": "evil.org", **key}), 421)
        assert "--allowed-hosts" in refused["detail"]


# ---------------------------------------------------------------- secrets


async def test_no_secret_is_in_info_logs_or_errors(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "very-secret-admin-token-42"
    monkeypatch.setenv("TASKPACK_ADMIN_TOKEN", secret)
    caplog.set_level("DEBUG")
    async with running(store, keys_file=keys_file(tmp_path / "k")) as web:
        texts = [(await web.client.get("/info", headers=ADMIN)).text]
        texts.append((await web.client.get("/tasks", headers=bearer("wrong-key-with-a-name"))).text)
        texts.append((await web.client.get("/tasks", headers={"X-API-Key": KEY})).text)
        texts.append((await web.client.get("/metrics", headers=ADMIN)).text)
    texts.append(caplog.text)
    assert "settings" in texts[0]
    for text in texts:
        for word in (secret, TOKEN, KEY, "wrong-key-with-a-name", hashed(KEY), hashed(TOKEN)):
            assert word not in text
