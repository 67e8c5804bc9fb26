"""POST /predict: how images are sent, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest

from masks_store import NotFound, bind, normalise, open_image, pixels, to_batch
from service.api.predict import together

from .web import JSON, PNG, Web, assert_alike, picture, problem

pytestmark = pytest.mark.anyio


async def test_a_raw_image_is_answered_with_the_reference_scores_of_its_task(shared: Web) -> None:
    sent = picture(seed=3)
    response = await shared.client.post("/predict?task=birds&top_k=4", content=sent, headers=PNG)
    answer = response.json()
    view = shared.store.view(shared.stable())
    batch = to_batch(pixels(open_image(sent), view.preprocess)[None])
    scores = bind(shared.store.backbone, view)(normalise(batch, view.preprocess)).softmax(1)[0].tolist()
    labels = answer["predictions"][0]["labels"]
    assert {label["id"]: label["score"] for label in labels} == pytest.approx(dict(enumerate(scores)), abs=1e-4)
    assert [label["score"] for label in labels] == sorted(scores, reverse=True) or labels[0]["id"] == int(
        np.argmax(scores)
    )
    assert {label["id"]: label["name"] for label in labels} == {i: f"class {i}" for i in range(4)}


async def test_an_answer_has_exactly_the_documented_members(shared: Web) -> None:
    answer = await shared.predict()
    assert set(answer) == {"task", "version", "predictions", "timing_ms"}
    assert answer["task"] == "birds"
    assert answer["version"] == shared.stable()
    assert set(answer["predictions"][0]) == {"status", "labels"}
    assert answer["predictions"][0]["status"] == "ok"
    assert set(answer["predictions"][0]["labels"][0]) == {"id", "name", "score"}
    assert set(answer["timing_ms"]) == {"decode", "queue", "infer", "total"}
    assert all(ms >= 0 for ms in answer["timing_ms"].values())


@pytest.mark.parametrize(("kind", "media"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
async def test_every_allowed_type_is_read_raw(shared: Web, kind: str, media: str) -> None:
    response = await shared.client.post("/predict?task=birds", content=picture(kind), headers={"Content-Type": media})
    assert response.status_code == 200


async def test_raw_multipart_and_json_give_the_same_answer(shared: Web) -> None:
    sent = picture(seed=4)
    body = {"images": [{"b64": base64.b64encode(sent).decode()}]}
    raw = await shared.client.post("/predict?task=birds", content=sent, headers=PNG)
    multipart = await shared.client.post("/predict?task=birds", files={"image": ("x.png", sent, "image/png")})
    as_json = await shared.client.post("/predict?task=birds", json=body)
    assert_alike(raw.json(), multipart.json())
    assert_alike(raw.json(), as_json.json())


async def test_many_images_are_answered_in_their_order(shared: Web) -> None:
    sent = [picture(seed=seed) for seed in range(5)]
    together = await shared.client.post("/predict?task=birds", files=[("image", data) for data in sent])
    alone = [await shared.client.post("/predict?task=birds", content=data, headers=PNG) for data in sent]
    for one, other in zip(together.json()["predictions"], (r.json()["predictions"][0] for r in alone), strict=True):
        assert [label["id"] for label in one["labels"]] == [label["id"] for label in other["labels"]]


async def test_a_bad_image_among_several_is_named_and_the_others_are_answered(shared: Web) -> None:
    files = [("image", picture()), ("image", picture("JPEG")[:60]), ("image", b"GIF89a"), ("image", picture())]
    response = await shared.client.post("/predict?task=birds", files=files)
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert [one["status"] for one in predictions] == ["ok", "error", "error", "ok"]
    assert all(set(one) == {"status", "error"} and one["error"] for one in predictions[1:3])


async def test_several_images_that_are_all_bad_are_still_200(shared: Web) -> None:
    response = await shared.client.post("/predict?task=birds", files=[("image", b"no"), ("image", b"no")])
    assert response.status_code == 200
    assert [one["status"] for one in response.json()["predictions"]] == ["error", "error"]


async def test_one_image_that_cannot_be_decoded_is_422(shared: Web) -> None:
    truncated = picture("JPEG", (200, 200))[:400]
    problem(
        await shared.client.post("/predict?task=birds", content=truncated, headers={"Content-Type": "image/jpeg"}), 422
    )


async def test_one_json_image_that_is_not_base64_is_422(shared: Web) -> None:
    document = problem(await shared.client.post("/predict?task=birds", json={"images": [{"b64": "%%%"}]}), 422)
    assert "base64" in document["detail"]


@pytest.mark.parametrize(
    "media", ["text/plain", "image/gif", "application/x-www-form-urlencoded", "application/octet-stream", ""]
)
async def test_a_content_type_that_is_not_read_is_415(shared: Web, media: str) -> None:
    headers = {"Content-Type": media} if media else {}
    document = problem(await shared.client.post("/predict?task=birds", content=picture(), headers=headers), 415)
    assert "image/png" in document["detail"]


@pytest.mark.parametrize("claimed", ["image/png", "image/jpeg"])
async def test_bytes_of_another_type_are_415_whatever_the_content_type_claims(shared: Web, claimed: str) -> None:
    gif = picture("GIF")
    problem(await shared.client.post("/predict?task=birds", content=gif, headers={"Content-Type": claimed}), 415)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"images":[]}',
        b'{"images":[{"url":"http://x/y.png"}]}',
        b'{"images":[{"b64":3}]}',
        b'{"b64":"aa"}',
        b"\xff\xfe",
    ],
)
async def test_malformed_json_is_400_with_every_fault(shared: Web, body: bytes) -> None:
    problem(await shared.client.post("/predict?task=birds", content=body, headers=JSON), 400)


async def test_every_fault_of_a_json_body_is_told(shared: Web) -> None:
    body = json.dumps({"images": [{"b64": 1}, {"url": "http://x"}], "more": 1}).encode()
    faults = problem(await shared.client.post("/predict?task=birds", content=body, headers=JSON), 400)["errors"]
    assert {fault.partition(":")[0] for fault in faults} == {"images.0.b64", "images.1.b64", "images.1.url", "more"}


async def test_an_image_of_no_bytes_is_422_and_not_a_type_that_is_not_read(shared: Web) -> None:
    for body in ({"files": [("image", ("a.png", b"", "image/png"))]}, {"json": {"images": [{"b64": ""}]}}):
        document = problem(await shared.client.post("/predict?task=birds", **body), 422)
        assert "the image is empty" in document["errors"]


async def test_an_empty_body_is_400(shared: Web) -> None:
    problem(await shared.client.post("/predict?task=birds", content=b"", headers=PNG), 400)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", {"task"}),
        ("task=birds&top_k=0", {"top_k"}),
        ("task=birds&top_k=many&timeout_ms=-1", {"top_k", "timeout_ms"}),
        ("task=birds&taks=plants", {"taks"}),
        ("task=birds&version=", {"version"}),
        ("task=birds&top_k=1&top_k=2&task=plants&version=stable&version=stable", {"top_k", "version"}),
        ("task=birds&x=1&x=2", {"x"}),
    ],
)
async def test_malformed_parameters_are_400_and_each_is_named(shared: Web, query: str, names: set[str]) -> None:
    document = problem(await shared.client.post(f"/predict?{query}", content=picture(), headers=PNG), 400)
    assert {fault.partition(":")[0] for fault in document["errors"]} == names


async def test_a_parameter_that_is_given_twice_is_400_on_every_route(shared: Web) -> None:
    for path in ("/tasks?limit=1&limit=2", "/livez?a=1&a=1", "/tasks/birds/versions?cursor=a&limit=1&limit=1"):
        assert len(problem(await shared.client.get(path), 400)["errors"]) == 1


async def test_when_one_of_several_fails_the_others_are_given_up() -> None:
    given_up = asyncio.Event()

    async def patient() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            given_up.set()

    async def failing() -> None:
        await asyncio.sleep(0)
        raise NotFound("of one task")

    with pytest.raises(NotFound, match="of one task"):
        await together(patient(), failing())
    async with asyncio.timeout(5):
        await given_up.wait()


async def test_an_unknown_task_is_404(shared: Web) -> None:
    problem(await shared.client.post("/predict?task=fish", content=picture(), headers=PNG), 404)


async def test_of_several_unknown_tasks_each_is_named(shared: Web) -> None:
    response = await shared.client.post("/predict?task=fish&task=birds&task=cars", content=picture(), headers=PNG)
    document = problem(response, 404)
    assert len(document["errors"]) == 2
    assert "fish" in document["errors"][0]
    assert "cars" in document["errors"][1]


async def test_a_version_is_named_by_digest_prefix_or_label(shared: Web) -> None:
    canary = shared.store.resolve("birds", "canary").version
    for name in ("canary", canary, canary.removeprefix("sha256:"), canary.removeprefix("sha256:")[:12]):
        assert (await shared.predict(version=name))["version"] == canary


async def test_a_prefix_that_is_too_short_is_400_and_an_unknown_one_404(shared: Web) -> None:
    client = shared.client
    problem(await client.post("/predict?task=birds&version=abc", content=picture(), headers=PNG), 400)
    problem(await client.post("/predict?task=birds&version=0123456789abcdef", content=picture(), headers=PNG), 404)


async def test_top_k_is_five_by_default_and_never_more_than_the_classes(shared: Web) -> None:
    assert len((await shared.predict(top_k=2))["predictions"][0]["labels"]) == 2
    assert len((await shared.predict())["predictions"][0]["labels"]) == 4
    assert len((await shared.predict(top_k=60000))["predictions"][0]["labels"]) == 4


async def test_several_tasks_answer_the_same_images_in_the_order_asked(shared: Web) -> None:
    sent = picture(seed=8)
    response = await shared.client.post("/predict?task=plants&task=birds", content=sent, headers=PNG)
    results = response.json()["results"]
    assert [one["task"] for one in results] == ["plants", "birds"]
    for one in results:
        alone = await shared.client.post(f"/predict?task={one['task']}", content=sent, headers=PNG)
        assert [label["id"] for label in alone.json()["predictions"][0]["labels"]] == [
            label["id"] for label in one["predictions"][0]["labels"]
        ]
    assert response.headers["X-Task-Version"] == f"{shared.stable('plants')}, {shared.stable('birds')}"


async def test_a_deadline_that_has_passed_is_504(shared: Web) -> None:
    big = picture("PNG", (1500, 1500))
    problem(await shared.client.post("/predict?task=birds&timeout_ms=1", content=big, headers=PNG), 504)


async def test_multipart_parts_under_another_name_are_400_and_each_is_named(shared: Web) -> None:
    files = [("image", picture()), ("file", picture()), ("photo", picture())]
    document = problem(await shared.client.post("/predict?task=birds", files=files), 400)
    assert len(document["errors"]) == 2


@pytest.mark.parametrize(
    ("media", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"not multipart"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
    ],
)
async def test_broken_multipart_is_400(shared: Web, media: str, body: bytes) -> None:
    problem(await shared.client.post("/predict?task=birds", content=body, headers={"Content-Type": media}), 400)


async def test_exif_turns_alpha_and_grey_are_answered(shared: Web) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    for sent in (picture("JPEG", exif=exif), _converted("RGBA"), _converted("L"), _converted("P"), _converted("I;16")):
        kind = "image/jpeg" if sent.startswith(b"\xff") else "image/png"
        response = await shared.client.post("/predict?task=birds", content=sent, headers={"Content-Type": kind})
        assert response.status_code == 200


def _converted(mode: str) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    image = Image.open(io.BytesIO(picture())).convert("L")
    (Image.fromarray(np.asarray(image).astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)).save(
        out, "PNG"
    )
    return out.getvalue()


async def test_tasks_without_sums_cannot_be_named_by_their_images(shared: Web) -> None:
    document = problem(await shared.client.post("/predict?task=auto", content=picture(), headers=PNG), 404)
    assert "carry no sums" in document["detail"]
