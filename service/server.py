"""The server process: one socket, one event loop, and an end that loses no request.

On SIGTERM or SIGINT: /readyz says no at once; for --drain-grace seconds everything is still answered, so that a load
balancer can look away; then nothing more is accepted, and what was accepted has --drain-timeout seconds to finish. A
second signal ends it now.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from masks_store import InvalidInput, TaskpackError

from .early_stop import asked_to_end
from .edge.protocol import protocol_of
from .memory import return_freed, trim
from .runtime import Runtime
from .settings import Settings

BACKLOG = 2048


class AddressInUse(TaskpackError):
    """Another process listens there."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises:
        AddressInUse: another process has it.
        InvalidInput: no such address here, or not allowed to take it.
    """
    bare = host.strip("[]")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(f"--host {host}: not an address of this machine ({error.strerror})") from error
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if bare == "::" else 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"port {port} on {host} is in use already: stop what listens there, or choose another with --port "
                "(0 takes a free one)"
            ) from error
        raise InvalidInput(f"cannot listen on {host} port {port}: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket) -> str:
    """The URL at which a client on this machine reaches a listening socket."""
    bound, port = sock.getsockname()[:2]
    host = str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound, bound))  # noqa: S104  compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, settings: Settings, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Answer on a socket until a signal says to stop.

    Args:
        app: made by `create_app`.
        settings: of the app.
        sock: listening; whoever connects before the engine is up waits.
        ready: called when requests are being answered.

    Raises:
        TaskpackError: the store cannot be opened, or the engine not started.
    """

    def begun() -> None:
        _set_apart()
        trim()
        ready()

    return_freed()
    server = Server(app, settings)
    try:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.live(sock, begun))
    finally:
        gc.unfreeze()  # libraries that count what is left at the end would call it leaked


def _set_apart() -> None:
    """Tell the garbage collector that what the start has made stays.

    It would look through all of it now and then, hundreds of thousands of objects of the imported libraries, and hold
    every thread up for hundreds of milliseconds.
    """
    gc.collect()
    gc.freeze()


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol_of(app.state.runtime),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_timeout,  # pyright: ignore[reportArgumentType]  any number of seconds works
    )


class Server(uvicorn.Server):
    """uvicorn's server, with our way of starting and stopping.

    Args:
        app: made by `create_app`.
        settings: of the app.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(_config(app, settings))
        self._app = app
        self._runtime: Runtime = app.state.runtime
        self._stopping = False

    async def live(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        """Start, answer, drain, stop; nothing of it where SIGTERM came before."""
        if threading.current_thread() is threading.main_thread():
            early = asked_to_end()
            for signal_ in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(signal_, self.stop)
            if early:
                return
        async with self._app.router.lifespan_context(self._app):
            if self._stopping:
                return
            asyncio.get_running_loop().call_soon(ready)
            await self.serve(sockets=[sock])
            if self.server_state.tasks:  # cancelled: let them say so to their callers
                await asyncio.wait(self.server_state.tasks, timeout=1.0)

    def stop(self) -> None:
        """Begin to drain; called again, end now. From the event loop only."""
        self._runtime.drain()
        if self._stopping:
            self._runtime.hurry()
            self.force_exit = True
            self.should_exit = True
        elif self.started:
            grace = self._runtime.settings.drain_grace
            asyncio.get_running_loop().call_later(grace, setattr, self, "should_exit", True)
        else:
            self.should_exit = True
        self._stopping = True

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to `live`: uvicorn would stop accepting at once, and end by raising the signal again."""
        yield
