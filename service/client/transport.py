"""The two clients: the same flows, driven by a blocking and by an awaiting transport."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypedDict, TypeVar

import httpx

from service.client import flows
from service.client.errors import SENT_KEY, ClientError, NotAServer, TimedOut, Unreachable
from service.client.flows import Call, Flow
from service.client.keys import Key, find_keys, given_key, is_loopback

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0


def _blocking(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(flow)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.drive(flow(*args, **kwargs))

    return method


def _awaiting(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @functools.wraps(flow)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.drive(flow(*args, **kwargs))

    return method


class Client:
    """Calls a server and waits for its answers.

        with Client("http://127.0.0.1:8000") as client:
            print(client.predict("digits", "three.png").predictions[0].best)

    Args:
        url: the server's address.
        key: the key to send with every call; without one, `find_keys` looks for it.
        timeout: seconds to wait for an answer, beyond the `timeout_ms` of a prediction that names one.
        transport: another way to send requests, for tests (`httpx.BaseTransport`).
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = _base(url)
        self._keys = given_key(key) if key else find_keys(base)
        self._http = httpx.Client(
            base_url=base,
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            **_manners(base),
        )

    def drive(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return its result."""
        try:
            call = next(flow)
            while True:
                call = flow.send(self._send(call))
        except StopIteration as done:
            return done.value

    def _send(self, call: Call) -> httpx.Response:
        content = flows.chunks(call.content, call.progress) if call.content and call.progress else call.content
        key = self._keys.for_call(call.admin)
        try:
            response = self._http.send(_request(self._http, key, call, content))
        except httpx.HTTPError as error:
            raise _failure(error, self._http.base_url) from error
        response.extensions[SENT_KEY] = key
        return response

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    predict = _blocking(flows.predict)
    tasks = _blocking(flows.tasks)
    task = _blocking(flows.task)
    versions = _blocking(flows.versions)
    artifact = _blocking(flows.artifact)
    register = _blocking(flows.register)
    set_label = _blocking(flows.set_label)
    drop_label = _blocking(flows.drop_label)
    delete_task = _blocking(flows.delete_task)
    delete_version = _blocking(flows.delete_version)
    info = _blocking(flows.info)
    ready = _blocking(flows.ready)


class AsyncClient:
    """Calls a server without blocking the event loop. The same calls as `Client`, awaited.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            print(await client.tasks())

    Args:
        url: the server's address.
        key: the key to send with every call; without one, `find_keys` looks for it.
        timeout: seconds to wait for an answer, beyond the `timeout_ms` of a prediction that names one.
        transport: another way to send requests, for tests (`httpx.AsyncBaseTransport`).
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base = _base(url)
        self._keys = given_key(key) if key else find_keys(base)
        self._http = httpx.AsyncClient(
            base_url=base,
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            **_manners(base),
        )

    async def drive(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return its result."""
        try:
            call = next(flow)
            while True:
                call = flow.send(await self._send(call))
        except StopIteration as done:
            return done.value

    async def _send(self, call: Call) -> httpx.Response:
        content = _later(call.content, call.progress) if call.content and call.progress else call.content
        key = self._keys.for_call(call.admin)
        try:
            response = await self._http.send(_request(self._http, key, call, content))
        except httpx.HTTPError as error:
            raise _failure(error, self._http.base_url) from error
        response.extensions[SENT_KEY] = key
        return response

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    predict = _awaiting(flows.predict)
    tasks = _awaiting(flows.tasks)
    task = _awaiting(flows.task)
    versions = _awaiting(flows.versions)
    artifact = _awaiting(flows.artifact)
    register = _awaiting(flows.register)
    set_label = _awaiting(flows.set_label)
    drop_label = _awaiting(flows.drop_label)
    delete_task = _awaiting(flows.delete_task)
    delete_version = _awaiting(flows.delete_version)
    info = _awaiting(flows.info)
    ready = _awaiting(flows.ready)


async def _later(content: bytes, progress: flows.Progress) -> AsyncIterator[bytes]:
    for chunk in flows.chunks(content, progress):
        yield chunk


class Manners(TypedDict):
    """How a connection is made."""

    trust_env: bool
    verify: bool


def _manners(base: httpx.URL) -> Manners:
    """No proxy for calls to this machine; no time spent on reading certificate authorities where HTTP is plain."""
    return {"trust_env": not is_loopback(base.host), "verify": base.scheme == "https"}


def _base(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url if "://" in url else f"http://{url}")
    except httpx.InvalidURL as error:
        raise NotAServer(f"'{url}' is not the address of a server: {error}") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise NotAServer(f"'{url}' is not the address of a server: expected http://host:port")
    return base


def _request(http: httpx.Client | httpx.AsyncClient, key: Key | None, call: Call, content: Any) -> httpx.Request:
    headers = {**({"Authorization": f"Bearer {key.text}"} if key else {}), **call.headers}
    if call.content is not None:
        headers["Content-Length"] = str(
            len(call.content)
        )  # also for a body sent piece by piece, so that it is not chunked
    return http.build_request(
        call.method,
        call.path,
        params=dict(call.params),
        headers=headers,
        content=content,
        files=list(call.files) or None,
        timeout=_patience(http.timeout, call.waits_s),
    )


def _patience(own: httpx.Timeout, longer_s: float) -> httpx.Timeout:
    """A client's own limits, with so much longer to wait for the answer."""
    read = None if own.read is None else own.read + longer_s
    return httpx.Timeout(connect=own.connect, read=read, write=own.write, pool=own.pool)


def _failure(error: httpx.HTTPError, url: httpx.URL) -> ClientError:
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return Unreachable(f"no server answers at {url}: is it running? (taskpack serve STORE)")
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{url} did not answer in time")
    return Unreachable(f"the connection to {url} broke: {error}")
