"""/tasks: register, list, describe, label, delete, download."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from masks_store import MaskInfo, Registered, RegistryLocked, Store, read_artifact, write_artifact
from masks_store.files import Files
from service.api.files import FileBody

from .. import zoo
from .web import ADMIN, JSON, PNG, Web, new_task, picture, probed, problem, running

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- register


async def test_a_new_task_is_registered_labelled_stable_and_answers_at_once(web: Web) -> None:
    artifact = new_task(web.store, "cars")
    response = await web.register(artifact)
    version = f"sha256:{hashlib.sha256(artifact).hexdigest()}"
    assert response.status_code == 201
    assert response.headers["Location"] == f"/tasks/cars/versions/{version}"
    answer = response.json()
    assert answer["task"] == "cars"
    assert answer["method"] == "clr"
    assert answer["classes"] == ["class 0", "class 1", "class 2"]
    assert answer["labels"] == {"stable": version}
    assert answer["version"] == version
    assert (await web.predict("cars"))["version"] == version
    assert (await web.client.get(response.headers["Location"])).json()["version"] == version


async def test_the_same_artifact_again_is_200_and_changes_nothing(web: Web) -> None:
    artifact = new_task(web.store, "cars")
    first, second = await web.register(artifact), await web.register(artifact)
    assert (first.status_code, second.status_code) == (201, 200)
    assert "Location" not in second.headers
    assert first.json() == second.json()


async def test_a_damaged_version_answers_again_once_its_artifact_is_sent_again(store: Store) -> None:
    artifact = new_task(store, "cars")
    version = store.register(artifact).version.version
    store.blobs.path(version).write_bytes(artifact[:-1])
    async with running(store) as web:
        await probed(web)
        problem(await web.client.post("/predict?task=cars", content=picture(), headers=PNG), 503)
        assert (await web.register(artifact)).status_code == 200
        assert (await web.predict("cars"))["version"] == version


async def test_a_registration_is_answered_though_its_task_is_deleted_at_once(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = web.store.register

    def register_and_delete(*args: Any, **options: Any) -> Registered:
        registered = register(*args, **options)
        web.store.delete_task("cars")
        return registered

    monkeypatch.setattr(web.store, "register", register_and_delete)
    response = await web.register(new_task(web.store, "cars"))
    assert response.status_code == 201
    answer = response.json()
    assert (answer["labels"], answer["versions"]) == ({"stable": answer["version"]}, 1)
    problem(await web.client.get("/tasks/cars"), 404)


async def test_a_change_that_took_effect_is_no_error_though_it_cannot_be_taken_over_yet(
    web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await probed(web)
    canary = web.store.resolve("birds", "canary").version

    def broken() -> int:
        raise RegistryLocked("the registry is locked")

    with monkeypatch.context() as patch:
        patch.setattr(web.store, "last_event", broken)
        moved = await web.client.put("/tasks/birds/labels/stable", json={"version": "canary"}, headers=ADMIN)
        assert (moved.status_code, moved.json()["version"]) == (200, canary)
        assert (await web.client.delete("/tasks/birds/labels/canary", headers=ADMIN)).status_code == 204
        assert (await web.register(new_task(web.store, "cars"))).status_code == 201
        assert (await web.client.delete("/tasks/leaves", headers=ADMIN)).status_code == 202
        assert "could not be taken over yet" in caplog.text
    await web.app.state.runtime.refresh()
    assert (await web.predict("birds"))["version"] == canary
    await web.predict("cars")
    problem(await web.client.post("/predict?task=leaves", content=picture(), headers=PNG), 404)


async def test_server_timing_tells_the_probe_from_the_rest_of_a_registration(web: Web) -> None:
    response = await web.register(new_task(web.store, "cars"))
    stages = (stage.split(";dur=") for stage in response.headers["Server-Timing"].split(", "))
    taken = {name: float(ms) for name, ms in stages}
    assert taken.keys() == {"read", "register", "probe", "total"}
    assert taken["probe"] > 0
    assert taken["register"] > 0
    assert taken["read"] + taken["register"] + taken["probe"] <= taken["total"] + 0.02, "each is rounded to 0.01"


async def test_a_new_version_of_a_known_task_is_canary(web: Web) -> None:
    before = web.stable()
    response = await web.register(new_task(web.store, "birds", classes=4))
    assert response.json()["labels"] == {"stable": before, "canary": response.json()["version"]}


@pytest.mark.parametrize("label", ["stable", "canary", "none"])
async def test_the_label_asked_for_is_given(web: Web, label: str) -> None:
    response = await web.register(new_task(web.store, "cars"), label=label)
    version = response.json()["version"]
    assert response.json()["labels"] == ({} if label == "none" else {label: version})


async def test_a_label_that_is_none_is_400(shared: Web) -> None:
    told = problem(await shared.register(new_task(shared.store, "cars"), label="newest"), 400)
    (fault,) = told["errors"]
    assert fault.startswith("label: ")
    assert all(name in fault for name in ("stable", "canary", "none")), "what it may be"


async def test_an_artifact_may_come_as_a_multipart_part(web: Web) -> None:
    response = await web.client.post("/tasks", files={"artifact": new_task(web.store, "cars")}, headers=ADMIN)
    assert response.status_code == 201


@pytest.mark.parametrize("name", ["file", "image"])
async def test_a_multipart_part_of_another_name_is_400(shared: Web, name: str) -> None:
    sent = await shared.client.post("/tasks", files={name: new_task(shared.store, "cars")}, headers=ADMIN)
    assert "artifact" in str(problem(sent, 400)["errors"]), "the name that is wanted"


async def test_a_label_in_a_second_multipart_part_is_400_and_told_its_place(web: Web) -> None:
    before = web.store.last_event()
    for label in ({"label": "stable"}, {"artifact": "x"}):
        response = await web.client.post("/tasks", files={"artifact": b"x"}, data=label, headers=ADMIN)
        assert "one part, named `artifact`; the label goes into the query" in problem(response, 400)["detail"]
    assert web.store.last_event() == before


async def test_an_artifact_with_another_content_type_is_415(shared: Web) -> None:
    headers = {**ADMIN, "Content-Type": "application/x-www-form-urlencoded"}
    sent = await shared.client.post("/tasks", content=new_task(shared.store, "cars"), headers=headers)
    assert "application/octet-stream" in str(problem(sent, 415)["errors"]), "the type that is wanted"


async def test_an_empty_artifact_is_400(shared: Web) -> None:
    assert "empty" in str(problem(await shared.register(b""), 400)["errors"])


async def test_bytes_that_are_no_artifact_are_422(shared: Web) -> None:
    (fault,) = problem(await shared.register(b"nothing of the kind"), 422)["errors"]
    assert fault.startswith("artifact: a header of "), "its first eight bytes are no length of one"


async def test_every_fault_of_an_artifact_is_told(shared: Web) -> None:
    broken = bytearray(new_task(shared.store, "cars"))
    broken = broken.replace(b'"head.weight"', b'"head.wieght"').replace(b'"head.bias"', b'"haed.bias"')
    faults = problem(await shared.register(bytes(broken)), 422)["errors"]
    assert any("head.wieght" in fault for fault in faults)
    assert any("haed.bias" in fault for fault in faults)


async def test_an_artifact_whose_probe_gives_other_logits_is_422(shared: Web) -> None:
    sound = read_artifact(new_task(shared.store, "cars"))
    lying = {**sound.tensors, "probe.logits": sound.tensors["probe.logits"].flip(0)}
    faults = problem(await shared.register(write_artifact(sound.manifest, lying)), 422)["errors"]
    assert faults[0].startswith("probe: a logit is off by"), faults


async def test_an_artifact_for_another_backbone_is_409(shared: Web) -> None:
    told = problem(await shared.register(zoo.task(zoo.backbone(seed=9), "cars", "clr")), 409)
    assert "backbone" in told["detail"]


async def test_an_artifact_whose_parent_is_missing_is_409(shared: Web) -> None:
    parent = read_artifact(new_task(shared.store, "roots", method="packnet"))
    artifact = zoo.task(shared.store.backbone, "cars", "linear", ancestors=[parent])
    assert parent.version[:19] in problem(await shared.register(artifact), 409)["detail"]


async def test_claims_that_overlap_are_409(shared: Web) -> None:
    rival = zoo.task(shared.store.backbone, "cars", "packnet", seed=77, share=0.9)
    faults = str(problem(await shared.register(rival), 409)["errors"])
    assert "claimed weights belong to" in faults
    assert shared.stable("plants") in faults, "whose they are"


async def test_after_a_refusal_the_store_is_as_it_was(shared: Web) -> None:
    before = shared.store.last_event()
    await shared.register(zoo.task(shared.store.backbone, "cars", "packnet", seed=77, share=0.9))
    await shared.register(b"nothing of the kind")
    assert shared.store.last_event() == before


async def test_the_event_of_a_registration_names_the_key(web: Web) -> None:
    await web.register(new_task(web.store, "cars"))
    assert {event.actor for event in web.store.events(web.store.last_event() - 2)} == {"admin"}


# ---------------------------------------------------------------- lists


async def test_tasks_are_listed_by_name_with_labels_classes_and_method(shared: Web) -> None:
    answer = (await shared.client.get("/tasks")).json()
    assert [task["task"] for task in answer["tasks"]] == ["birds", "leaves", "plants"]
    assert answer["next"] is None
    birds = answer["tasks"][0]
    assert birds["method"] == "clr"
    assert birds["labels"] == {label: shared.store.resolve("birds", label).version for label in ("stable", "canary")}
    assert birds["classes"] == [f"class {i}" for i in range(4)]
    assert birds == (await shared.client.get("/tasks/birds")).json()


async def test_pages_hold_every_task_once(shared: Web) -> None:
    found: list[str] = []
    cursor = None
    for _ in range(4):
        params = {"limit": 1} | ({"cursor": cursor} if cursor else {})
        answer = (await shared.client.get("/tasks", params=params)).json()
        found += [task["task"] for task in answer["tasks"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert found == ["birds", "leaves", "plants"]


async def test_a_page_goes_on_where_it_was_though_its_last_task_is_gone(web: Web) -> None:
    first = (await web.client.get("/tasks", params={"limit": 2})).json()
    assert [task["task"] for task in first["tasks"]] == ["birds", "leaves"]
    assert (await web.client.delete("/tasks/leaves", headers=ADMIN)).status_code == 204
    second = (await web.client.get("/tasks", params={"limit": 2, "cursor": first["next"]})).json()
    assert [task["task"] for task in second["tasks"]] == ["plants"]


async def test_versions_are_listed_in_the_order_of_their_registration(shared: Web) -> None:
    answer = (await shared.client.get("/tasks/birds/versions")).json()
    assert [one["version"] for one in answer["versions"]] == list(shared.store.task("birds").versions)
    assert [one["labels"] for one in answer["versions"]] == [["stable"], ["canary"]]
    first = (await shared.client.get("/tasks/birds/versions?limit=1")).json()
    second = (await shared.client.get("/tasks/birds/versions", params={"limit": 1, "cursor": first["next"]})).json()
    assert first["versions"] + second["versions"] == answer["versions"]
    assert second["next"] is None


async def test_pages_hold_every_version_once_though_the_clock_was_set_back(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        monkeypatch.setattr("masks_store.transaction.time.time", lambda days=seed: 1.6e9 - 86_400 * days)
        web.store.register(new_task(web.store, "cars", seed=seed))
    monkeypatch.undo()
    found: list[str] = []
    params: dict[str, Any] = {"limit": 1}
    while len(found) < 9:
        answer = (await web.client.get("/tasks/cars/versions", params=params)).json()
        found += [one["version"] for one in answer["versions"]]
        params["cursor"] = answer["next"]
        if answer["next"] is None:
            break
    assert tuple(found) == web.store.task("cars").versions
    assert len(found) == 3


@pytest.mark.parametrize("cursor", ["%21", "YmlyZHM", "MjAyNi0wMS0wMQ", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"])
async def test_a_page_of_versions_after_what_no_page_ended_with_is_400(shared: Web, cursor: str) -> None:
    assert "cursor" in str(problem(await shared.client.get(f"/tasks/birds/versions?cursor={cursor}"), 400)["errors"])


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=%21", "cursor=%ff", "page=2"])
async def test_malformed_paging_is_400(shared: Web, query: str) -> None:
    name = query.partition("=")[0]
    assert name in str(problem(await shared.client.get(f"/tasks?{query}"), 400)["errors"])


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("/tasks/fish", "fish"),
        ("/tasks/fish/versions", "fish"),
        ("/tasks/fish/versions/stable", "fish"),
        ("/tasks/fish/labels/stable", "fish"),
        ("/tasks/plants/labels/canary", "canary"),
        ("/tasks/birds/labels/none", "none"),
        ("/tasks/birds/versions/000000000000", "000000000000"),
        ("/tasks/..%2f..%2fetc", ""),  # no route leads there
    ],
)
async def test_what_is_not_there_is_404(shared: Web, path: str, missing: str) -> None:
    assert missing in str(problem(await shared.client.get(path), 404)["errors"])


async def test_a_version_is_described_with_its_lineage(shared: Web) -> None:
    answer = (await shared.client.get("/tasks/leaves/versions/stable")).json()
    assert answer["parent"] == shared.stable("plants")
    assert answer["state"] == "ready"
    assert answer["metrics"]["test_top1"] == 0.5


# ---------------------------------------------------------------- artifact


async def test_an_artifact_is_downloaded_as_it_was_registered(web: Web) -> None:
    artifact = new_task(web.store, "cars")
    version = (await web.register(artifact)).json()["version"]
    for name in (version, "stable"):
        response = await web.client.get(f"/tasks/cars/versions/{name}/artifact", headers=ADMIN)
        assert response.content == artifact
        assert response.headers["ETag"] == f'"{version}"'
        assert response.headers["X-Task-Version"] == version


async def test_a_large_artifact_is_sent_in_pieces_and_is_never_whole_in_memory(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = new_task(web.store, "cars")
    await web.register(artifact)
    monkeypatch.setattr("service.api.files.PIECE", 1000)
    opened: list[BinaryIO] = []
    read_whole: list[str] = []  # by which thread: the probe's may still read the claims
    open_artifact, artifact_bytes = Store.open_artifact, Store.artifact_bytes

    def told(self: Store, version: str) -> bytes:
        read_whole.append(threading.current_thread().name)
        return artifact_bytes(self, version)

    def noted(self: Store, version: str) -> BinaryIO:
        opened.append(open_artifact(self, version))
        return opened[-1]

    monkeypatch.setattr(Store, "artifact_bytes", told)
    monkeypatch.setattr(Store, "open_artifact", noted)
    sizes: list[int] = []
    async with web.client.stream("GET", "/tasks/cars/versions/stable/artifact", headers=ADMIN) as response:
        async for piece in response.aiter_raw():
            sizes.append(len(piece))
        assert int(response.headers["Content-Length"]) == sum(sizes) == len(artifact)
    assert [file.closed for file in opened] == [True]
    assert set(read_whole) <= {"probe"}
    got = await web.client.get("/tasks/cars/versions/stable/artifact", headers=ADMIN)
    assert got.content == artifact
    assert got.headers["Content-Disposition"].startswith('attachment; filename="cars-')


async def test_nothing_more_is_read_of_an_artifact_whose_caller_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(64 << 20))
    file, sent, gone = path.open("rb"), list[int](), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))
        gone.set()
        await asyncio.sleep(0)

    await FileBody(file, 64 << 20, "application/octet-stream", {})({"type": "http"}, receive, send)
    assert sum(sent) < 16 << 20
    assert file.closed


async def test_the_head_of_an_artifact_is_told_without_reading_it(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/tasks/birds/versions/stable/artifact"
    whole = await web.client.get(path, headers=ADMIN)
    monkeypatch.setattr(Store, "open_artifact", None)
    head = await web.client.head(path, headers=ADMIN)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control", "Content-Disposition"):
        assert head.headers[name] == whole.headers[name]
    known = await web.client.head(path, headers={**ADMIN, "If-None-Match": whole.headers["ETag"]})
    assert known.status_code == 304


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
async def test_of_an_artifact_that_is_damaged_on_the_disk_no_byte_is_sent(web: Web, harm: str) -> None:
    artifact = new_task(web.store, "cars")
    version = (await web.register(artifact)).json()["version"]
    blob = web.store.blobs.path(version)
    blob.unlink()
    if harm != "gone":
        blob.write_bytes(artifact[:-1] + (b"?" if harm == "changed" else b""))
    response = await web.client.get("/tasks/cars/versions/stable/artifact", headers=ADMIN)
    assert "damaged" in problem(response, 500)["detail"]


async def test_an_artifact_that_is_known_already_is_304(shared: Web) -> None:
    etag = f'"{shared.stable()}"'
    path = "/tasks/birds/versions/stable/artifact"
    for known in (etag, f'W/"x", W/{etag}', "*"):
        response = await shared.client.get(path, headers={**ADMIN, "If-None-Match": known})
        assert (response.status_code, response.content, response.headers["ETag"]) == (304, b"", etag)
    response = await shared.client.get(path, headers={**ADMIN, "If-None-Match": '"sha256:other"'})
    assert response.status_code == 200


# ---------------------------------------------------------------- labels


async def test_a_label_is_moved_and_the_next_answer_is_the_new_versions(web: Web) -> None:
    before, canary = web.stable(), web.store.resolve("birds", "canary").version
    assert (await web.predict())["version"] == before
    response = await web.client.put("/tasks/birds/labels/stable", json={"version": "canary"}, headers=ADMIN)
    assert response.status_code == 200
    assert response.json() == {"task": "birds", "label": "stable", "version": canary}
    assert response.headers["ETag"] == f'"{canary}"'
    assert (await web.predict())["version"] == canary
    back = await web.client.put("/tasks/birds/labels/stable", json={"version": before}, headers=ADMIN)
    assert back.status_code == 200
    assert (await web.predict())["version"] == before


async def test_a_new_label_is_201_with_its_place(web: Web) -> None:
    response = await web.client.put("/tasks/plants/labels/canary", json={"version": "stable"}, headers=ADMIN)
    assert response.status_code == 201
    found = await web.client.get(response.headers["Location"])
    assert found.json()["version"] == web.stable("plants")
    assert found.headers["ETag"] == response.headers["ETag"]


async def test_if_match_moves_a_label_only_from_where_it_is(web: Web) -> None:
    path, stable = "/tasks/birds/labels/stable", web.stable()
    canary = web.store.resolve("birds", "canary").version
    stale = await web.client.put(path, json={"version": canary}, headers={**ADMIN, "If-Match": f'"{canary}"'})
    problem(stale, 412)
    assert web.stable() == stable
    for header in (f'"{stable}"', f'"other", "{stable}"', "*"):
        good = await web.client.put(path, json={"version": stable}, headers={**ADMIN, "If-Match": header})
        assert good.status_code == 200
    weak = await web.client.put(path, json={"version": canary}, headers={**ADMIN, "If-Match": f'W/"{stable}"'})
    problem(weak, 412)
    assert web.stable() == stable


async def test_if_match_of_a_label_that_is_not_there_is_412(shared: Web) -> None:
    for header in ("*", f'"{shared.stable("plants")}"'):
        headers = {**ADMIN, "If-Match": header}
        problem(
            await shared.client.put("/tasks/plants/labels/canary", json={"version": "stable"}, headers=headers), 412
        )


async def test_if_none_match_star_only_makes_a_new_label(web: Web) -> None:
    headers = {**ADMIN, "If-None-Match": "*"}
    made = await web.client.put("/tasks/plants/labels/canary", json={"version": "stable"}, headers=headers)
    assert made.status_code == 201
    problem(await web.client.put("/tasks/plants/labels/canary", json={"version": "stable"}, headers=headers), 412)


@pytest.mark.parametrize(
    "header", [{"If-Match": "sha256:x"}, {"If-Match": '"x'}, {"If-None-Match": '"x"'}, {"If-Match": ""}]
)
async def test_malformed_conditions_are_400(shared: Web, header: dict[str, str]) -> None:
    response = await shared.client.put(
        "/tasks/birds/labels/stable", json={"version": "canary"}, headers={**ADMIN, **header}
    )
    problem(response, 400)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b'{"version":3}', b'{"version":"stable","more":1}', b'{"version":"abc"}']
)
async def test_a_malformed_label_body_is_400(shared: Web, body: bytes) -> None:
    response = await shared.client.put("/tasks/birds/labels/stable", content=body, headers={**ADMIN, **JSON})
    problem(response, 400)


async def test_a_label_body_that_is_not_json_is_415_and_a_long_one_413(shared: Web) -> None:
    path = "/tasks/birds/labels/stable"
    problem(await shared.client.put(path, content=b"stable", headers={**ADMIN, "Content-Type": "text/plain"}), 415)
    problem(await shared.client.put(path, content=b" " * 70_000, headers={**ADMIN, **JSON}), 413)


async def test_a_label_of_another_name_is_400_and_of_an_unknown_version_404(shared: Web) -> None:
    problem(await shared.client.put("/tasks/birds/labels/newest", json={"version": "stable"}, headers=ADMIN), 400)
    other = shared.stable("plants")
    problem(await shared.client.put("/tasks/birds/labels/stable", json={"version": other}, headers=ADMIN), 404)


async def test_a_label_is_taken_away(web: Web) -> None:
    path = "/tasks/birds/labels/canary"
    problem(await web.client.delete(path, headers={**ADMIN, "If-Match": f'"{web.stable()}"'}), 412)
    assert (await web.client.delete(path, headers=ADMIN)).status_code == 204
    problem(await web.client.delete(path, headers=ADMIN), 404)
    assert (await web.client.get("/tasks/birds")).json()["labels"] == {"stable": web.stable()}


# ---------------------------------------------------------------- delete


async def test_a_piggyback_task_is_registered_answers_and_goes_and_a_broken_one_is_told_every_fault(web: Web) -> None:
    before = (await web.predict())["predictions"]
    artifact = read_artifact(new_task(web.store, "wings", method="piggyback"))
    names = sorted(artifact.manifest.masks)[:2]
    masks = {**artifact.manifest.masks, **dict.fromkeys(names, MaskInfo(codec="raw", bits=9, ones=0))}
    broken = write_artifact(artifact.manifest.model_copy(update={"masks": masks}), artifact.tensors)
    faults = problem(await web.register(broken), 422)["errors"]
    assert [fault for fault in faults if "9 bits where" in fault] == faults
    assert len(faults) == len(names)
    response = await web.register(write_artifact(artifact.manifest, artifact.tensors))
    assert (response.status_code, response.json()["method"]) == (201, "piggyback")
    assert (await web.predict("wings"))["version"] == artifact.version
    assert (await web.client.delete("/tasks/wings", headers=ADMIN)).status_code == 204
    problem(await web.client.post("/predict?task=wings", content=b"x", headers={"Content-Type": "image/png"}), 404)
    assert (await web.predict())["predictions"] == before


async def test_a_deleted_task_answers_no_more_and_the_others_do(web: Web) -> None:
    before = (await web.predict())["predictions"]
    assert (await web.client.delete("/tasks/leaves", headers=ADMIN)).status_code == 204
    problem(await web.client.post("/predict?task=leaves", content=b"x", headers={"Content-Type": "image/png"}), 404)
    problem(await web.client.delete("/tasks/leaves", headers=ADMIN), 404)
    assert (await web.predict())["predictions"] == before


async def test_a_task_that_others_build_on_is_409_with_their_names(shared: Web) -> None:
    document = problem(await shared.client.delete("/tasks/plants", headers=ADMIN), 409)
    assert any("leaves" in fault for fault in document["errors"])
    assert (await shared.predict("plants"))["task"] == "plants"


async def test_a_task_that_others_build_on_is_retired_when_asked(web: Web) -> None:
    leaves = (await web.predict("leaves"))["predictions"]
    assert (await web.client.delete("/tasks/plants?retire=true", headers=ADMIN)).status_code == 204
    problem(await web.client.post("/predict?task=plants", content=b"x", headers={"Content-Type": "image/png"}), 404)
    (version,) = (await web.client.get("/tasks/plants/versions")).json()["versions"]
    assert (version["state"], version["labels"]) == ("retired", [])
    assert (await web.predict("leaves"))["predictions"] == leaves


async def test_a_labelled_version_is_409_and_deleted_once_the_label_is_gone(web: Web) -> None:
    canary = web.store.resolve("birds", "canary").version
    problem(await web.client.delete(f"/tasks/birds/versions/{canary}", headers=ADMIN), 409)
    await web.client.delete("/tasks/birds/labels/canary", headers=ADMIN)
    assert (await web.client.delete(f"/tasks/birds/versions/{canary}", headers=ADMIN)).status_code == 204
    problem(await web.client.get(f"/tasks/birds/versions/{canary}"), 404)


async def test_a_version_that_others_build_on_is_retired_when_asked(web: Web) -> None:
    version, path = web.stable("plants"), f"/tasks/plants/versions/{web.stable('plants')}"
    leaves = (await web.predict("leaves"))["predictions"]
    await web.client.delete("/tasks/plants/labels/stable", headers=ADMIN)
    problem(await web.client.delete(path, headers=ADMIN), 409)
    assert (await web.client.delete(f"{path}?retire=true", headers=ADMIN)).status_code == 204
    problem(
        await web.client.post(
            f"/predict?task=plants&version={version}", content=b"x", headers={"Content-Type": "image/png"}
        ),
        404,
    )
    assert (await web.client.get(path)).json()["state"] == "retired"
    assert (await web.predict("leaves"))["predictions"] == leaves


async def test_a_delete_whose_requests_take_long_is_202_and_done_when_they_end(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.tasks.LEASES_S", 0.1)  # five seconds are long for a test
    await probed(web)
    residency = web.app.state.runtime.serving._residency
    record = residency.lease(web.stable("leaves"))
    response = await web.client.delete("/tasks/leaves", headers=ADMIN)
    assert (response.status_code, response.json()) == (202, {"status": "draining"})
    problem(await web.client.get("/tasks/leaves"), 404)
    problem(await web.client.delete("/tasks/leaves", headers=ADMIN), 404)
    residency.release(record)
    assert (await web.predict("plants"))["task"] == "plants"


async def test_what_the_query_may_not_be_is_400(shared: Web) -> None:
    problem(await shared.client.delete("/tasks/birds/versions/canary?retire=perhaps", headers=ADMIN), 400)
    problem(await shared.client.delete("/tasks/birds?force=true", headers=ADMIN), 400)


# ---------------------------------------------------------------- other processes


async def test_what_another_process_does_to_the_store_is_seen_without_being_told(web: Web) -> None:
    elsewhere = Store.open(web.store.path)
    made = elsewhere.register(new_task(elsewhere, "cars")).version.version
    await _until(web, "cars", made)
    canary = elsewhere.resolve("birds", "canary").version
    elsewhere.set_label("birds", "stable", canary)
    await _until(web, "birds", canary)
    elsewhere.close()


async def _until(web: Web, task: str, version: str) -> None:
    async with asyncio.timeout(30):
        while True:
            response = await web.client.post(
                f"/predict?task={task}", content=b"", headers={"Content-Type": "image/png"}
            )
            if response.status_code == 400 and (await web.predict(task))["version"] == version:  # 404 until it is seen
                return
            await asyncio.sleep(0.02)


async def test_a_store_on_a_full_disk_is_507(made_store: Path, tmp_path: Path) -> None:
    class Full(Files):
        """A disk without room: what the file layer tells the store when a write does not fit."""

        def write(self, descriptor: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    path = shutil.copytree(made_store, tmp_path / "full")
    async with running(Store.open(path, files=Full())) as web:
        document = problem(await web.register(new_task(web.store, "cars")), 507)
        assert str(tmp_path) not in document["detail"]
        assert (await web.predict())["task"] == "birds"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
async def test_a_store_that_cannot_be_written_is_503_and_the_log_says_where(
    made_store: Path, tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(Files):
        """A disk that takes nothing: no permission, mounted read-only, or failing."""

        def create(self, path: Path) -> int:
            raise OSError(code, os.strerror(code), str(path))

    path = shutil.copytree(made_store, tmp_path / "store")
    async with running(Store.open(path, files=Refusing())) as web:
        response = await web.register(new_task(web.store, "cars"))
        assert "cannot be written" in problem(response, 503)["detail"]
        assert response.headers["Retry-After"]
        assert "tmp" not in response.text
        assert os.strerror(code) in str([record.exc_info for record in caplog.records])
        assert (await web.predict())["task"] == "birds"
