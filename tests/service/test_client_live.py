"""The client and its commands against the real server: `taskpack serve` in a process, found by its token file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

import taskpack
from masks_store import Store, create, read_artifact
from service.client import (
    AsyncClient,
    Client,
    Conflict,
    NotFound,
    PreconditionFailed,
    Rejected,
    Unauthorized,
)

from .. import zoo
from .web import new_task, picture

WIDTH_4 = {"width": 4}


@dataclass(frozen=True)
class Served:
    """A running server, and a copy of the store it started from."""

    url: str
    origin: Path
    state: Path


@pytest.fixture(scope="module")
def served(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    folder = tmp_path_factory.mktemp("served")
    store = shutil.copytree(made_store, folder / "store")
    state = folder / "state"
    command = [sys.executable, "-m", "taskpack", "serve", str(store), "--port", "0", "--workers", "1"]
    environ = {**os.environ, "XDG_STATE_HOME": str(state), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = re.search(r"http://\S+:\d+", process.stdout.readline())
        assert url, "the server did not say where it listens"
        yield Served(url[0], made_store, state)
    finally:
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not list(state.rglob("*.token"))  # nobody will look for a port that was only taken because it was free


@pytest.fixture(autouse=True)
def home(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the user who serves."""
    monkeypatch.setenv("XDG_STATE_HOME", str(served.state))
    for name in ("TASKPACK_ADMIN_TOKEN", "TASKPACK_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(served: Served) -> Generator[Client]:
    with Client(served.url) as opened:
        yield opened


@pytest.fixture
def origin(served: Served, tmp_path: Path) -> Store:
    """A store with the server's backbone, of the test's own."""
    return Store.open(shutil.copytree(served.origin, tmp_path / "origin"))


# ---------------------------------------------------------------- the client


def test_a_prediction_has_the_classes_of_the_task_best_first(client: Client, origin: Store) -> None:
    answer = client.predict("birds", picture(seed=1), picture(seed=2), top_k=3)
    stable = origin.resolve("birds")
    assert (answer.task, answer.version) == ("birds", stable.version)
    assert set(answer.timing_ms) == {"decode", "queue", "infer", "total"}
    for image in answer.predictions:
        scores = [label.score for label in image.labels]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert all(stable.manifest.classes[label.id] == label.name for label in image.labels)


def test_more_images_than_a_request_may_hold_are_answered_in_their_order(client: Client) -> None:
    pictures = [picture(seed=seed) for seed in range(35)]
    together = client.predict("birds", *pictures, top_k=1)
    assert len(together.predictions) == 35
    last = client.predict("birds", pictures[-1], top_k=1).predictions[0]
    assert together.predictions[-1].best is not None
    assert last.best is not None
    assert together.predictions[-1].best.name == last.best.name


def test_a_bad_image_that_is_left_over_is_an_answer_too(client: Client) -> None:
    answer = client.predict("birds", *[picture()] * 32, b"no image", timeout_ms=60_000)
    assert [image.status for image in answer.predictions] == ["ok"] * 32 + ["error"]


def test_a_bad_image_among_good_ones_is_an_answer_and_alone_an_error(client: Client) -> None:
    answer = client.predict("birds", picture(), b"no image")
    assert [image.status for image in answer.predictions] == ["ok", "error"]
    assert answer.predictions[1].error
    with pytest.raises(Rejected) as caught:
        client.predict("birds", b"no image")
    assert caught.value.status in (415, 422)
    assert caught.value.request_id


def test_tasks_and_versions_are_described(client: Client, origin: Store) -> None:
    assert {task.task for task in client.tasks()} >= {"birds", "leaves", "plants"}
    birds = client.task("birds")
    assert birds.labels == origin.task("birds").labels
    assert [version.version for version in client.versions("birds")] == list(origin.task("birds").versions)
    leaves = client.versions("leaves")[0]
    assert (leaves.parent, leaves.method) == (origin.resolve("plants").version, "linear")
    with pytest.raises(NotFound, match="nosuch"):
        client.task("nosuch")


def test_an_artifact_comes_back_as_it_was_stored(client: Client, origin: Store) -> None:
    assert client.artifact("birds", "canary") == origin.artifact_bytes(origin.resolve("birds", "canary").version)


def test_a_task_lives_through_the_client(client: Client, origin: Store, tmp_path: Path) -> None:
    told: list[int] = []
    path = tmp_path / "cars.safetensors"
    path.write_bytes(first := new_task(origin, "cars", seed=21))
    one = client.register(path, progress=told.append)
    assert (one.is_new, one.labels, told[-1]) == (True, {"stable": one.version}, len(first))
    assert client.register(first).is_new is False
    two = client.register(new_task(origin, "cars", seed=22))
    assert two.labels == {"stable": one.version, "canary": two.version}

    with pytest.raises(PreconditionFailed):
        client.set_label("cars", "stable", two.version, if_match=two.version)
    assert client.set_label("cars", "stable", "canary", if_match=one.version).version == two.version
    assert client.predict("cars", picture()).version == two.version
    with pytest.raises(PreconditionFailed):
        client.drop_label("cars", "stable", if_match=one.version)
    client.drop_label("cars", "canary", if_match=two.version)
    assert client.delete_version("cars", one.version) is True
    assert client.delete_task("cars") is True
    with pytest.raises(NotFound):
        client.task("cars")


def test_a_refused_artifact_says_every_fault(client: Client, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", create("tinyresnet", image_size=16, keep=0.5, seed=9, arch_args=WIDTH_4))
    with pytest.raises(Conflict, match="backbone"):
        client.register(new_task(other, "cars"))
    with pytest.raises(Rejected) as caught:
        client.register(b"no artifact")
    assert caught.value.status == 422
    assert caught.value.errors


def test_without_the_token_a_client_may_ask_and_not_change(
    served: Served, origin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Client(served.url) as stranger:
        assert stranger.ready()
        assert stranger.predict("birds", picture()).task == "birds"
        with pytest.raises(Unauthorized):
            stranger.register(new_task(origin, "cars"))
    with Client(served.url, key="not-the-right-token") as liar, pytest.raises(Unauthorized):
        liar.register(new_task(origin, "cars"))


def test_a_file_that_another_server_left_costs_no_prediction_and_is_named_where_it_fails(
    served: Served, origin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taskpack").mkdir()
    left = tmp_path / "taskpack" / f"127.0.0.1_{served.url.rpartition(':')[2]}.token"
    left.write_text("of-a-server-that-is-no-more\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Client(served.url) as late:
        assert late.predict("birds", picture()).task == "birds"
        assert late.info()["name"] == "taskpack"
        with pytest.raises(Unauthorized, match=f"the key is not known here; .* {left}: .*delete it"):
            late.register(new_task(origin, "cars"))


@pytest.mark.anyio
async def test_the_awaited_client_does_the_same(served: Served, client: Client, origin: Store) -> None:
    async with AsyncClient(served.url) as awaited:
        assert await awaited.ready()
        assert [task.task for task in await awaited.tasks()] == [task.task for task in client.tasks()]
        answer = await awaited.predict("birds", picture(seed=3))
        assert answer.predictions[0].best is not None
        made = await awaited.register(new_task(origin, "ships", seed=31), label="none", progress=lambda sent: None)
        assert (made.is_new, made.labels) == (True, {})
        assert (await awaited.info())["name"] == "taskpack"
        assert await awaited.delete_task("ships") is True


# ---------------------------------------------------------------- the commands


def said(capfd: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """Run a command in this process; returns what it printed, on stderr if it is to fail."""
    got = taskpack.run(args)
    out, err = capfd.readouterr()
    assert got == code, err
    return err if code else out


def test_predict_prints_one_line_per_image_and_ends_with_2_for_an_unreadable_one(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture())
    bad.write_bytes(b"no image")
    args = ["predict", "--url", served.url, "--task", "birds", "--top-k", "2"]
    (line,) = said(capfd, *args, str(good)).splitlines()
    assert re.fullmatch(r"\S+good\.png(  class \d [01]\.\d{3}){2}", line)
    code = taskpack.run([*args, str(good), str(bad)])
    lines = capfd.readouterr().out.splitlines()
    assert code == 2
    assert re.search(r"bad\.png +error: \S", lines[1])
    assert "error: " in said(capfd, *args, str(bad), code=2)
    bad.write_bytes(picture()[:60])  # its header is read, and no more
    assert "error: " in said(capfd, *args, str(bad), code=2)
    bad.write_bytes(picture() + bytes(40 << 20))
    assert "over the limit" in said(capfd, *args, str(bad), code=2)
    assert "error: " in said(capfd, *args[:3], "--task", "nosuch", str(good), code=1)
    answer = json.loads(said(capfd, *args, "--json", str(good)))
    assert answer["predictions"][0]["status"] == "ok"


def test_push_sends_missing_ancestors_first_across_tasks(
    served: Served, origin: Store, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    plants = origin.lineage(origin.resolve("plants").version)
    root = zoo.task(origin.backbone, "trees", "packnet", ancestors=plants, seed=41, share=0.1)
    middle = read_artifact(root)
    origin.register(root)
    leaf = origin.register(zoo.task(origin.backbone, "bark", "linear", ancestors=[*plants, middle], seed=42)).version

    pushed = json.loads(said(capfd, "push", str(origin.path), "bark", "--to", served.url, "--json"))["registered"]
    assert [(one["task"], one["version"]) for one in pushed] == [("trees", middle.version), ("bark", leaf.version)]
    assert client.task("trees").labels == {}
    assert client.task("bark").labels == {"stable": leaf.version}
    assert client.predict("bark", picture()).version == leaf.version

    again = said(capfd, "push", str(origin.path), "bark", "--to", served.url)
    assert again.startswith("was there already: bark")
    assert len(again.splitlines()) == 1
    client.delete_task("bark")
    client.delete_task("trees")


def test_push_of_a_file_without_its_parent_says_what_is_missing(
    served: Served, origin: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plants = origin.lineage(origin.resolve("plants").version)
    middle = read_artifact(zoo.task(origin.backbone, "moss", "packnet", ancestors=plants, seed=51, share=0.1))
    file = tmp_path / "fern.safetensors"
    file.write_bytes(zoo.task(origin.backbone, "fern", "linear", ancestors=[*plants, middle], seed=52))
    message = said(capfd, "push", str(file), "--to", served.url, code=1)
    assert message.startswith("error: ")
    assert middle.version[:19] in message


def test_push_of_what_is_not_there_fails_as_any_command_without_its_store(
    served: Served, origin: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    none = str(tmp_path / "none")
    assert none in said(capfd, "push", none, "birds", "--to", served.url, code=1)
    assert none in said(capfd, "push", f"{none}.safetensors", "--to", served.url, code=1)
    assert "nosuch" in said(capfd, "push", str(origin.path), "nosuch", "--to", served.url, code=1)
    assert "name the task" in said(capfd, "push", str(origin.path), "--to", served.url, code=2)


def test_push_gives_the_label_that_is_asked_for(
    served: Served, origin: Store, client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "snow.safetensors"
    file.write_bytes(new_task(origin, "snow", seed=61))
    assert said(capfd, "push", str(file), "--to", served.url, "--label", "none").endswith("(no label)\n")
    assert said(capfd, "push", str(file), "--to", served.url, "--label", "canary").endswith("(canary)\n")
    client.delete_task("snow")


def test_push_without_the_token_says_how_to_get_it(
    served: Served, origin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    message = said(capfd, "push", str(origin.path), "birds", "--to", served.url, code=1)
    assert "TASKPACK_ADMIN_TOKEN" in message


def test_label_on_a_server_moves_back_and_forth_and_heeds_if_match(
    served: Served, origin: Store, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = origin.task("birds").labels
    stable, canary = labels["stable"], labels["canary"]
    assert said(capfd, "label", served.url, "birds", "stable", "canary") == f"birds stable -> {canary}\n"
    stale = said(capfd, "label", served.url, "birds", "stable", stable, "--if-match", stable, code=1)
    assert stale.startswith("error: ")
    said(capfd, "label", served.url, "birds", "stable", stable[:19])
    assert client.task("birds").labels["stable"] == stable
    assert "error: " in said(capfd, "label", served.url, "birds", "newest", stable, code=2)
    assert "error: " in said(capfd, "label", served.url, "birds", "stable", code=2)
    for label in ("..", ".", "birds"):
        assert "error: " in said(capfd, "label", served.url, "birds", label, "--remove", code=2)
    assert client.task("birds").labels == labels | {"stable": stable}
