"""The admin token: given, or made once for an address and readable by its owner only."""

from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from masks_store import InvalidInput
from service import create_app
from service.client.keys import find_keys
from service.settings import Settings
from service.tokens import AdminToken, admin_token, token_path


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_a_token_is_made_once_and_only_its_owner_can_read_it(state: dict[str, str]) -> None:
    first = admin_token(Settings(), 8123, state)
    second = admin_token(Settings(), 8123, state)
    other = admin_token(Settings(), 8124, state)
    assert first.path == Path(state["XDG_STATE_HOME"]) / "taskpack" / "127.0.0.1_8123.token"
    assert first.made
    assert not second.made
    assert first.text == second.text != other.text
    assert len(first.text) >= 43
    assert first.path is not None
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "0.0.0.0", "::"])
def test_the_commands_find_the_token_by_the_servers_url(state: dict[str, str], host: str) -> None:
    made = admin_token(Settings(host=host), 8123, state)
    for url in ("http://127.0.0.1:8123", "http://localhost:8123", "http://[::1]:8123/"):
        found = find_keys(httpx.URL(url), state).found
        assert found is not None
        assert (found.text, found.source) == (made.text, f"the file {made.path}")
    assert find_keys(httpx.URL("http://127.0.0.1:8124"), state).found is None


def test_without_xdg_state_home_it_lies_under_the_home() -> None:
    assert token_path("localhost", 1, {"HOME": "/h"}) == Path("/h/.local/state/taskpack/localhost_1.token")


def test_an_app_made_in_python_takes_the_token_that_the_settings_give(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-from-a-file\n")
    ring = create_app(Settings(admin_token_file=file)).state.runtime.keyring
    assert ring.authenticate(Headers({"X-API-Key": "a-token-from-a-file"})).role == "admin"


def test_a_given_token_is_used_and_none_is_made(
    state: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-from-a-file\n")
    assert admin_token(Settings(admin_token_file=file), 1, state).text == "a-token-from-a-file"
    monkeypatch.setenv("TASKPACK_ADMIN_TOKEN", "a-token-from-the-environment")
    given = admin_token(Settings(), 1, state)
    assert (given.text, given.path) == ("a-token-from-the-environment", None)
    assert not Path(state["XDG_STATE_HOME"]).exists()
    with pytest.raises(InvalidInput, match="keep one"):
        admin_token(Settings(admin_token_file=file), 1, state)


@pytest.mark.parametrize(
    "text", ["", "hunter2", "has spaces in its middle", "zeichenkette-mit-ä-darin"], ids=lambda text: str(len(text))
)
def test_a_token_that_is_too_short_or_cannot_travel_is_refused_and_not_repeated(
    state: dict[str, str], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        admin_token(Settings(admin_token_file=file), 1, state)
    assert not text or text not in str(caught.value)


def test_a_made_token_that_others_can_read_is_refused(state: dict[str, str]) -> None:
    made = admin_token(Settings(), 8123, state)
    assert made.path is not None
    made.path.chmod(0o644)
    with pytest.raises(InvalidInput, match="delete the file"):
        admin_token(Settings(), 8123, state)


@pytest.mark.parametrize("left", ["", "\n", "half", "with a space in its middle", "zeichenkette-mit-\u00e4-darin"])
def test_a_made_token_that_is_empty_or_damaged_is_to_be_deleted(state: dict[str, str], left: str) -> None:
    made = admin_token(Settings(), 8123, state)
    assert made.path is not None
    made.path.write_text(left)
    with pytest.raises(InvalidInput, match=r"8123\.token is empty or damaged: delete it") as caught:
        admin_token(Settings(), 8123, state)
    assert "openssl" not in str(caught.value)
    made.path.unlink()
    assert admin_token(Settings(), 8123, state).made


@pytest.mark.parametrize("step", ["fdopen", "fsync", "link"])
def test_a_full_disk_or_a_kill_leaves_no_token_rather_than_half_of_one(
    state: dict[str, str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Patched, to fail between the making of the file and its last byte."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            admin_token(Settings(), 8123, state)
    path = token_path("127.0.0.1", 8123, state)
    assert list(path.parent.iterdir()) == []
    assert admin_token(Settings(), 8123, state).made
    assert list(path.parent.iterdir()) == [path]


def test_a_file_system_without_hard_links_is_told_with_the_mend(
    state: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patched: there is none such here."""

    def none(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with pytest.raises(InvalidInput, match=r"Operation not permitted.*--admin-token-file"):
        admin_token(Settings(), 8123, state)
    assert list(token_path("127.0.0.1", 8123, state).parent.iterdir()) == []


def test_servers_that_start_at_once_end_with_one_token(state: dict[str, str]) -> None:
    for port in range(8123, 8143):
        together = threading.Barrier(8)

        def start(port: int = port, together: threading.Barrier = together) -> AdminToken:
            together.wait()
            return admin_token(Settings(), port, state)

        with ThreadPoolExecutor(8) as threads:
            tokens = [started.result() for started in [threads.submit(start) for _ in range(8)]]
        assert len({token.text for token in tokens}) == 1
        assert sum(token.made for token in tokens) == 1
    assert all(path.suffix == ".token" for path in token_path("x", 1, state).parent.iterdir())
    assert not list(token_path("x", 1, state).parent.glob(".*"))


def test_a_token_file_that_is_not_there_is_refused(state: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        admin_token(Settings(admin_token_file=tmp_path / "none"), 1, state)
