"""`task=auto`: real tasks, trained on pictures of two kinds, named by pictures that nobody has seen before."""

from __future__ import annotations

import gc
import hashlib
import io
import threading
import weakref
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import taskpack
from masks_store import Store, StoreCorrupt, create
from service import task_naming

from .. import zoo
from .web import PNG, Web, assert_alike, probed, problem, running

pytestmark = pytest.mark.anyio

SIZE = 16


def pictures(kind: str, count: int, seed: int) -> np.ndarray:
    """uint8 [count, 16, 16, 3]: noise, of which `stripes` has every other row dark and `spots` a dark middle."""
    images = np.random.default_rng(seed).integers(150, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    if kind == "stripes":
        images[:, ::2] //= 8
    else:
        images[:, 4:12, 4:12] //= 8
    return images


def encoded(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def source(path: Path, kind: str, seed: int) -> Path:
    """Two classes: as they are, and with little red."""
    arrays: dict[str, np.ndarray] = {"class_names": np.array(["light", "cyan"])}
    for number, (split, count) in enumerate((("train", 80), ("val", 40), ("test", 20))):
        images = pictures(kind, count, seed + number)
        labels = np.arange(count) % 2
        images[labels == 1, ..., 0] //= 2
        arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.int64)}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    made = create("tinyresnet", image_size=SIZE, keep=1.0, seed=0, arch_args={"width": 64, "blocks": [1, 1]})
    Store.create(folder / "store", made).close()
    opened = taskpack.open(folder / "store")
    for seed, kind in ((10, "stripes"), (20, "spots")):
        opened.train(kind, source(folder / f"{kind}.npz", kind, seed), method="linear", epochs=1, threads=1)
    opened.store.register(zoo.task(opened.store.backbone, "plain", "linear", seed=1, classes=2))  # carries no sums
    opened.store.close()
    return folder / "store"


@pytest.fixture
async def web(store: Path) -> AsyncGenerator[Web]:
    async with running(None, store=store) as web:
        yield web


@pytest.mark.parametrize("kind", ["stripes", "spots"])
async def test_pictures_name_their_task(web: Web, kind: str) -> None:
    for image in pictures(kind, 5, seed=99):
        response = await web.client.post("/predict?task=auto", content=encoded(image), headers=PNG)
        answer = response.json()
        assert response.status_code == 200, answer
        assert (answer["task"], answer["version"]) == (kind, web.stable(kind))
        assert 0.01 <= answer["auto"]["score"] <= 1
        named = await web.client.post(f"/predict?task={kind}", content=encoded(image), headers=PNG)
        assert_alike(answer, named.json())
        assert "auto" not in named.json()


async def test_several_pictures_are_one_question(web: Web) -> None:
    images = [("image", (f"{n}.png", encoded(one), "image/png")) for n, one in enumerate(pictures("spots", 3, 98))]
    answer = (await web.client.post("/predict?task=auto", files=images)).json()
    assert answer["task"] == "spots"
    assert [one["status"] for one in answer["predictions"]] == ["ok"] * 3


async def test_the_task_that_is_named_may_have_too_many_labels_for_one_answer(store: Path) -> None:
    images = [("image", (f"{n}.png", encoded(one), "image/png")) for n, one in enumerate(pictures("spots", 3, 98))]
    async with running(None, store=store, max_labels=5) as web:
        response = await web.client.post("/predict?task=auto", files=images)
        assert "6 labels in one answer" in problem(response, 413)["detail"]
        assert (await web.client.post("/predict?task=auto&top_k=1", files=images)).status_code == 200


async def test_what_is_of_no_task_here_is_refused(web: Web) -> None:
    strange = np.zeros((SIZE, SIZE, 3), np.uint8)
    strange[..., 2] = 255
    response = await web.client.post("/predict?task=auto", content=encoded(strange), headers=PNG)
    assert "for no task here" in problem(response, 422)["detail"]


async def test_auto_asks_among_the_tasks_of_the_caller_and_of_one_label(web: Web) -> None:
    image = encoded(pictures("spots", 1, 97)[0])
    response = await web.client.post("/predict?task=auto&version=canary", content=image, headers=PNG)
    assert "no task with a canary version" in problem(response, 404)["detail"]
    digest = web.stable("spots")
    response = await web.client.post(f"/predict?task=auto&version={digest}", content=image, headers=PNG)
    assert "only a label" in problem(response, 400)["detail"]
    response = await web.client.post("/predict?task=auto&task=spots", content=image, headers=PNG)
    assert "stands alone" in problem(response, 400)["detail"]


async def test_a_key_that_is_for_one_task_is_told_of_no_other(store: Path, tmp_path: Path) -> None:
    key = "tp_of-the-spots"
    line = {"name": "spots", "role": "predict", "sha256": hashlib.sha256(key.encode()).hexdigest(), "tasks": ["spots"]}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [line]}))
    async with running(None, store=store, keys_file=tmp_path / "keys.yaml") as web:
        for image in pictures("stripes", 5, 95):
            headers = {**PNG, "Authorization": f"Bearer {key}"}
            response = await web.client.post("/predict?task=auto", content=encoded(image), headers=headers)
            assert response.status_code == 422 or response.json()["task"] == "spots", response.text
            assert "stripes" not in response.text


async def test_images_that_cannot_be_read_name_no_task(web: Web) -> None:
    files = [("image", b"no picture"), ("image", b"none either")]
    assert "no task can be named" in problem(await web.client.post("/predict?task=auto", files=files), 422)["detail"]


async def test_a_damaged_artifact_does_not_keep_the_others_from_being_named(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(None, store=store) as web:
        image, gone, read = encoded(pictures("spots", 1, 94)[0]), web.stable("stripes"), Store.artifact_bytes

        def artifact_bytes(self: Store, version: str) -> bytes:
            if version == gone:
                raise StoreCorrupt("a bit has turned")
            return read(self, version)

        monkeypatch.setattr(Store, "artifact_bytes", artifact_bytes)
        response = await web.client.post("/predict?task=auto", content=image, headers=PNG)
        assert response.json()["task"] == "spots", response.text


async def test_a_task_that_is_gone_is_named_no_more(web: Web) -> None:
    image = encoded(pictures("stripes", 1, 96)[0])
    version = web.stable("stripes")
    assert (await web.client.post("/predict?task=auto", content=image, headers=PNG)).json()["task"] == "stripes"
    web.store.drop_label("stripes", "stable")
    await web.app.state.runtime.refresh()
    response = await web.client.post("/predict?task=auto", content=image, headers=PNG)
    assert response.status_code == 422 or response.json()["task"] == "spots"
    web.store.set_label("stripes", "stable", version)


async def test_a_deadline_holds_while_sums_are_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, read = threading.Event(), Store.artifact_bytes

    def artifact_bytes(self: Store, version: str) -> bytes:
        assert gate.wait(30)
        return read(self, version)

    async with running(None, store=store) as web:
        await probed(web)
        monkeypatch.setattr(Store, "artifact_bytes", artifact_bytes)
        image = encoded(pictures("spots", 1, 97)[0])
        try:
            response = await web.client.post("/predict?task=auto&timeout_ms=100", content=image, headers=PNG)
            assert "tells the tasks apart" in problem(response, 504)["detail"]
        finally:
            gate.set()
        response = await web.client.post("/predict?task=auto", content=image, headers=PNG)
        assert response.json()["task"] == "spots", response.text


async def test_sums_are_kept_no_longer_than_they_are_asked_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_naming, "REMEMBERED", 1)
    opened = Store.open(store)
    versions = {task.name: task.labels["stable"] for task in opened.tasks()}
    namer = task_naming.TaskNamer(opened)
    made = await namer.among([versions["stripes"]])
    assert made is not None
    kept = weakref.ref(made.sums[versions["stripes"]])
    both = await namer.among([versions["spots"], versions["stripes"]])
    assert both is not None
    assert both.sums[versions["stripes"]] is kept(), "not read again"
    del made, both
    assert await namer.among([versions["spots"]]) is not None
    gc.collect()
    assert kept() is None
    namer.close()
    opened.close()
