"""/metrics, /info and health: what is told, and under which names."""

from __future__ import annotations

import re
from html import unescape

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from service.edge.record import RequestRecord
from service.memory import cores, plan
from service.metrics import METRICS
from service.settings import Settings

from .web import ADMIN, PNG, Web, picture

pytestmark = pytest.mark.anyio


async def samples(web: Web) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await web.client.get("/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_metric_of_the_list_is_told_and_no_other(web: Web) -> None:
    await web.predict()
    await web.client.post("/predict?task=birds", content=b"x" * (33 << 20), headers=PNG)  # something rejected
    text = (await web.client.get("/metrics")).text
    told = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert told == set(METRICS)
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert {name: helps[name] for name in METRICS} == METRICS


async def test_requests_are_counted_by_task_and_code(shared: Web) -> None:
    before = await samples(shared)
    await shared.predict()
    await shared.client.post("/predict?task=birds", content=b"no picture", headers=PNG)
    await shared.client.post("/predict?task=birds&task=plants&task=plants", content=picture(), headers=PNG)
    after = await samples(shared)

    def more(task: str, code: str) -> float:
        key = ("taskpack_requests_total", (("code", code), ("task", task)))
        return after.get(key, 0) - before.get(key, 0)

    assert (more("birds", "200"), more("birds", "415"), more("plants", "200")) == (2, 1, 1)


async def test_the_task_label_only_takes_registered_names(web: Web) -> None:
    for name in ("fish", "x" * 64, "<b>", "birds\n"):
        await web.client.post("/predict", params={"task": name}, content=picture(), headers=PNG)
        await web.client.get(f"/tasks/{name.strip()}")
    await web.client.get("/nothing")
    await web.predict()
    found = {dict(labels).get("task") for (name, labels) in await samples(web) if name == "taskpack_requests_total"}
    assert found == {"", "birds"}


async def counted(web: Web) -> dict[str, dict[str, float]]:
    """Task -> status -> requests; of those that named a task."""
    found: dict[str, dict[str, float]] = {}
    for (name, labels), value in (await samples(web)).items():
        if name == "taskpack_requests_total" and dict(labels)["task"]:
            found.setdefault(dict(labels)["task"], {})[dict(labels)["code"]] = value
    return found


async def test_the_series_of_a_task_go_with_its_last_version_and_begin_anew_with_a_new_one(web: Web) -> None:
    artifact = web.store.artifact_bytes(web.stable("leaves"))
    await web.predict("birds")
    await web.predict("leaves")
    await web.client.get("/tasks/leaves/labels/canary")
    assert (await counted(web))["leaves"] == {"200": 1, "404": 1}
    assert (await web.client.delete("/tasks/leaves", headers=ADMIN)).status_code == 204
    assert await counted(web) == {"birds": {"200": 1}}
    await web.client.get("/tasks/leaves")
    assert await counted(web) == {"birds": {"200": 1}}
    assert (await web.register(artifact)).status_code == 201
    await web.predict("leaves")
    assert (await counted(web))["leaves"] == {"200": 1, "201": 1}


async def test_so_they_do_where_another_process_deletes_it_and_requests_still_run(web: Web) -> None:
    runtime = web.app.state.runtime
    late = RequestRecord("id", "trace", "span", "00", tasks=["leaves", "birds"])
    await web.predict("leaves")
    web.store.delete_task("leaves")
    await runtime.refresh()
    assert await counted(web) == {}
    runtime.metrics.answered(late, 200)
    assert await counted(web) == {"birds": {"200": 1}}


async def test_a_version_that_goes_takes_no_series_while_others_are_left(web: Web) -> None:
    await web.predict("birds")
    await web.client.delete("/tasks/birds/labels/canary", headers=ADMIN)
    old = next(v.version for v in web.store.versions("birds") if not v.labels)
    assert (await web.client.delete(f"/tasks/birds/versions/{old}", headers=ADMIN)).status_code == 204
    assert await counted(web) == {"birds": {"200": 1, "204": 2}}


async def test_what_is_refused_for_a_registered_task_counts_as_its_own(web: Web) -> None:
    known, other = "/tasks/plants", web.stable("birds")
    refused = [
        await web.client.delete(known, headers=ADMIN),  # others are built on it
        await web.client.delete(f"{known}/versions/{web.stable('plants')}", headers=ADMIN),  # labelled
        await web.client.delete(f"{known}/versions/{other}", headers=ADMIN),
        await web.client.put(f"{known}/labels/stable", json={"version": other}, headers=ADMIN),
        await web.client.put(f"{known}/labels/newest", json={"version": "stable"}, headers=ADMIN),
        await web.client.delete(f"{known}/labels/canary", headers=ADMIN),
        await web.client.delete(f"{known}/labels/stable", headers={**ADMIN, "If-Match": f'"{other}"'}),
        await web.client.get(f"{known}/labels/canary"),
    ]
    for path in ("/tasks/fish", "/tasks/fish/versions/stable", "/tasks/fish/labels/stable"):
        assert (await web.client.delete(path, headers=ADMIN)).status_code == 404
    assert [response.status_code for response in refused] == [409, 409, 404, 404, 400, 404, 412, 404]
    assert await counted(web) == {"plants": {"409": 2, "404": 4, "400": 1, "412": 1}}


async def test_the_engine_is_counted_too(shared: Web) -> None:
    before = await samples(shared)
    files = [("image", picture(seed=seed)) for seed in range(3)]
    await shared.client.post("/predict?task=birds", files=files)
    after = await samples(shared)

    def value(name: str, found: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> float:
        return found[name, ()]

    assert value("taskpack_inferences_total", after) - value("taskpack_inferences_total", before) >= 3
    assert value("taskpack_batch_size_count", after) == value("taskpack_batches_total", after)
    assert after["taskpack_batch_size_bucket", (("le", "+Inf"),)] == value("taskpack_batches_total", after)
    assert sum(v for (name, _), v in after.items() if name == "taskpack_tasks") == 4


async def test_stages_are_timed(web: Web) -> None:
    await web.predict()
    stages = {dict(labels)["stage"] for (name, labels) in await samples(web) if name == "taskpack_stage_seconds_count"}
    assert stages == {"read", "decode", "queue", "infer"}


async def test_two_apps_in_one_process_count_apart(shared: Web) -> None:
    from service.metrics import Metrics

    await shared.predict()
    assert b'task="birds"' not in Metrics().text()


async def test_info_shows_every_effective_setting_and_what_runs(shared: Web) -> None:
    answer = (await shared.client.get("/info")).json()
    assert set(answer["settings"]) == set(Settings.model_fields)
    assert answer["settings"]["poll_s"] == 0.05
    left_open = {name: answer["settings"][name] for name in ("device", "dtype", "workers", "slot_bytes", "host_bytes")}
    planned = plan(torch.device("cpu"))
    assert left_open == {
        "device": "cpu", "dtype": "fp32", "workers": 1, "slot_bytes": planned.slots, "host_bytes": planned.host
    }  # fmt: skip
    assert answer["settings"]["decode_threads"] == cores()
    assert answer["backbone"]["digest"] == shared.store.backbone_digest
    assert answer["backbone"]["preprocess"]["size"] == 16
    assert answer["tasks"] == 3
    assert answer["libraries"]["torch"]
    assert (answer["device"].partition(" ")[0], answer["dtype"]) == ("cpu", "fp32")


async def test_health_needs_nothing(shared: Web) -> None:
    assert (await shared.client.get("/livez")).json() == {"status": "alive"}
    assert (await shared.client.get("/readyz")).json() == {"status": "ready"}


async def test_the_root_leads_to_a_page_that_needs_no_network(shared: Web) -> None:
    root = await shared.client.get("/")
    assert (root.status_code, root.headers["Location"]) == (307, "/docs")
    page = await shared.client.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", page.text)
    for path, operations in shared.app.openapi()["paths"].items():
        assert path in page.text
        for operation in operations.values():
            assert operation["summary"] in unescape(page.text)
