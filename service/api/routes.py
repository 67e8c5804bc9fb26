"""The table of routes: every one with its role, and with every status that it may answer.

It is the only place where a route gets a role; `gate.py` enforces it, `openapi.py` publishes it, and a test walks the
app's routes against it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from .. import schemas
from ..auth import Role
from . import docs, health, later, predict, tasks, versions

Endpoint = Callable[..., Awaitable[Response]]

IMAGE_BODY: Mapping[str, Any] = {
    **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png", "image/webp")},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
            "required": ["image"],
        }
    },
    "application/json": {"schema": {"$ref": "#/components/schemas/ImagesIn"}},
}
ARTIFACT_BODY: Mapping[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"artifact": {"type": "string", "format": "binary"}},
            "required": ["artifact"],
        }
    },
}
LABEL_BODY: Mapping[str, Any] = {"application/json": {"schema": {"$ref": "#/components/schemas/LabelIn"}}}


@dataclass(frozen=True)
class Route:
    """One line of the table.

    Attributes:
        method, path: what is asked.
        role: who may ask.
        endpoint: answers; its docstring is the documentation.
        answers: status -> model of the JSON, media type of other content, or None for no content.
        problems: statuses of errors besides those that every route may answer.
        body: media type -> OpenAPI media type object of the request's body.
        headers: request headers that matter, and what for.
        listed: whether it stands in the documentation.
    """

    method: str
    path: str
    role: Role
    endpoint: Endpoint
    answers: Mapping[int, type[BaseModel] | str | None]
    problems: tuple[int, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    listed: bool = True


EVERYWHERE = (400, 421, 431, 500)
KEYED = (401, 403, 429, 503)
"""Further statuses of every route that is not public."""

_LABEL = "/tasks/{task}/labels/{label}"
_VERSION = "/tasks/{task}/versions/{version}"
_IF_MATCH = {"If-Match": "The version that the label must name now, as a quoted ETag."}
_IF_NONE_MATCH = {"If-None-Match": "The version that is known already, as a quoted ETag."}

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/predict",
        "predict",
        predict.predict,
        {200: schemas.PredictionOut},
        (404, 408, 413, 415, 422, 504),
        IMAGE_BODY,
    ),
    Route(
        "POST",
        "/tasks",
        "admin",
        tasks.register_task,
        {200: schemas.RegisteredOut, 201: schemas.RegisteredOut},
        (408, 409, 413, 415, 422, 507),
        ARTIFACT_BODY,
    ),
    Route("GET", "/tasks", "predict", tasks.list_tasks, {200: schemas.TasksOut}),
    Route("GET", "/tasks/{task}", "predict", tasks.get_task, {200: schemas.TaskOut}, (404,)),
    Route(
        "DELETE", "/tasks/{task}", "admin", tasks.delete_task, {202: schemas.AcceptedOut, 204: None}, (404, 409, 507)
    ),
    Route("GET", "/tasks/{task}/versions", "predict", versions.list_versions, {200: schemas.VersionsOut}, (404,)),
    Route("GET", _VERSION, "predict", versions.get_version, {200: schemas.VersionOut}, (404,)),
    Route(
        "DELETE",
        _VERSION,
        "admin",
        versions.delete_version,
        {202: schemas.AcceptedOut, 204: None},
        (404, 409, 507),
    ),
    Route(
        "GET",
        _VERSION + "/artifact",
        "admin",
        versions.download,
        {200: "application/octet-stream", 304: None},
        (404,),
        headers=_IF_NONE_MATCH,
    ),
    Route(
        "GET",
        _LABEL,
        "predict",
        versions.get_label,
        {200: schemas.LabelledOut, 304: None},
        (404,),
        headers=_IF_NONE_MATCH,
    ),
    Route(
        "PUT",
        _LABEL,
        "admin",
        versions.put_label,
        {200: schemas.LabelledOut, 201: schemas.LabelledOut},
        (404, 408, 409, 412, 413, 415, 507),
        LABEL_BODY,
        {**_IF_MATCH, "If-None-Match": "`*`: only if there is no such label yet."},
    ),
    Route("DELETE", _LABEL, "admin", versions.delete_label, {204: None}, (404, 409, 412, 507), headers=_IF_MATCH),
    Route("GET", "/livez", "public", health.livez, {200: schemas.StatusOut}, (503,)),
    Route("GET", "/readyz", "public", health.readyz, {200: schemas.StatusOut}, (503,)),
    Route("GET", "/metrics", "metrics", health.metrics, {200: "text/plain"}),
    Route("GET", "/info", "metrics", health.info, {200: schemas.InfoOut}),
    Route("GET", "/openapi.json", "predict", docs.openapi_json, {200: "application/json"}),
    Route("GET", "/docs", "predict", docs.docs_page, {200: "text/html"}),
    Route("GET", "/", "public", docs.home, {307: None}),
    Route("POST", "/explain", "predict", later.explain, {}, (404,), listed=False),
    Route("GET", "/v2", "predict", later.v2, {}, (404,), listed=False),
    Route("GET", "/v2/{path:path}", "predict", later.v2, {}, (404,), listed=False),
    Route("POST", "/v2/{path:path}", "predict", later.v2, {}, (404,), listed=False),
)

ROLES: Mapping[tuple[str, str], Role] = {(route.method, route.path): route.role for route in ROUTES}
