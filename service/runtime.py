"""What one running app holds: settings, keys, metrics from its making on; store, engine and threads while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic_core import to_json
from starlette.requests import Request

from masks_store import InvalidInput, NotFound, Store, StoreReplaced, TaskpackError, Version

from .auth import Caller, Keyring, keyring
from .device_decode import device_decoder
from .edge.bodies import Bodies
from .edge.quota import Quotas
from .errors import Problem, retry_after
from .images import Decoder
from .metrics import Metrics
from .serving import Serving
from .settings import Settings
from .task_naming import TaskNamer
from .tokens import given_token
from .writes import Writes

log = logging.getLogger("taskpack.service")

CALLER_KEY = "taskpack.caller"
MAX_RESOLVED = 20_000

T = TypeVar("T")

State = Literal["starting", "ready", "draining", "stopped"]


class Runtime:
    """See the module. Lives on one event loop.

    Args:
        settings: the server's.
        store: already open; opened from `settings.store` at start where None.
        admin_token: text of the admin's token, over the one that the settings give; without any no route of the
            admin's can be called.
    """

    def __init__(self, settings: Settings, store: Store | None = None, admin_token: str | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.quotas = Quotas()
        self.bodies = Bodies(settings.max_inflight_bytes)
        self.uploads = asyncio.Semaphore(settings.max_uploads)
        self._registering: ThreadPoolExecutor | None = None
        self._answering: ThreadPoolExecutor | None = None
        self._writes: Writes | None = None
        self.state: State = "starting"
        given = None if admin_token else given_token(settings)
        self._token = given.text if given else admin_token
        self.keyring: Keyring = keyring(settings, self._token)
        self._keys_stamp = _stamp(settings.keys_file)
        self._store = store
        self._serving: Serving | None = None
        self._decoder: Decoder | None = None
        self._poller: asyncio.Task[None] | None = None
        self._resolved: dict[tuple[str, str], Version] = {}
        self._labelled: dict[str, list[Version]] = {}
        self._namer: TaskNamer | None = None
        self._seen = -1
        self._refreshing = asyncio.Lock()
        self._stop_by: float | None = None
        self.trouble: str | None = None

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Open the store, start the engine, begin to look for changes.

        Raises:
            InvalidInput: no store is named, or pictures cannot be decoded where the settings say.
            NotFound, StoreCorrupt: it cannot be opened.
        """
        if self._store is None:
            if self.settings.store is None:
                raise InvalidInput("no store is named: `taskpack serve STORE`, or TASKPACK_STORE")
            self._store = await asyncio.to_thread(Store.open, self.settings.store.absolute())
        self._namer = TaskNamer(self._store)
        self._registering = ThreadPoolExecutor(self.settings.max_uploads, "register")
        self._answering = ThreadPoolExecutor(1, "answer")
        self._writes = Writes(self._store, self.settings.max_writes)
        settings = self.settings
        preprocess = self._store.backbone.manifest.preprocess
        gpu = await asyncio.to_thread(device_decoder, preprocess, settings.device) if settings.gpu_decode else None
        self._decoder = Decoder(
            preprocess, settings.max_pixels, settings.decode_threads, limit_s=settings.queue_limit_s, device=gpu
        )
        serving = Serving(
            self._store,
            device=settings.device,
            dtype=settings.dtype,
            workers=settings.workers,
            worker_threads=settings.worker_threads,
            max_batch=settings.max_batch,
            queue_limit_s=settings.queue_limit_s,
            max_delay_s=settings.max_delay_ms / 1000,
            slot_bytes=settings.slot_bytes,
            host_bytes=settings.host_bytes,
        )
        log.info("settings %s", to_json(self._effective(serving)).decode())
        self._serving = serving
        await serving.start()
        await self.refresh()
        self.metrics.observe(serving)
        self._poller = asyncio.create_task(self._poll(), name="poll the store")
        self.state = "ready"

    def drain(self) -> None:
        """Say at once, in /readyz, that no more should come."""
        if self.state == "ready":
            self.state = "draining"
            self._stop_by = time.monotonic() + self.settings.drain_grace + self.settings.drain_timeout

    def hurry(self) -> None:
        """Let `stop` wait for nothing any more."""
        self._stop_by = time.monotonic()

    async def stop(self) -> None:
        """Stop looking for changes, finish what the engine has, let the threads go."""
        self.state = "stopped"
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        if self._serving is not None:
            left = self.settings.drain_timeout if self._stop_by is None else self._stop_by - time.monotonic()
            await self._serving.stop(max(0.0, left))
        if self._decoder is not None:
            self._decoder.close()
        if self._namer is not None:
            self._namer.close()
        for threads in (self._registering, self._answering):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)
        if self._writes is not None:
            self._writes.close()

    # ------------------------------------------------------------ what it holds

    @property
    def store(self) -> Store:
        """The open store."""
        return _there(self._store)

    @property
    def serving(self) -> Serving:
        """The engine's door."""
        return _there(self._serving)

    @property
    def namer(self) -> TaskNamer:
        """Names the task of images."""
        return _there(self._namer)

    @property
    def registering(self) -> ThreadPoolExecutor:
        """The threads that check artifacts."""
        return _there(self._registering)

    @property
    def writes(self) -> Writes:
        """The threads that change labels, versions and tasks."""
        return _there(self._writes)

    @property
    def answering(self) -> ThreadPoolExecutor:
        """The thread that ranks and writes large answers, one after another: they would only share one core."""
        return _there(self._answering)

    @property
    def decoder(self) -> Decoder:
        """The threads that decode pictures."""
        return _there(self._decoder)

    def effective(self) -> dict[str, Any]:
        """Every setting as it holds: secrets redacted, and what was left to the server as it has chosen."""
        return self._effective(self.serving)

    def _effective(self, serving: Serving) -> dict[str, Any]:
        chosen = {"decode_threads": self.decoder.threads, **serving.chosen}
        return self.settings.effective() | {"store": str(self.store.path.absolute())} | chosen

    @property
    def private(self) -> tuple[str, ...]:
        """Absolute paths that no client may read."""
        path = self._store.path if self._store is not None else self.settings.store
        return () if path is None else (str(path.absolute()),)

    async def resolve(self, task: str, version: str) -> Version:
        """The ready version that a request names; remembered until the store changes.

        Raises:
            NotFound, InvalidInput: as `Store.resolve`.
        """
        found = self._resolved.get((task, version))
        if found is None:
            seen = self._seen
            found = await asyncio.to_thread(self.store.resolve, task, version)
            if found.state != "ready":
                raise NotFound(f"version {version!r} of task {task!r} is retired and answers no more")
            if seen == self._seen:  # the store may have changed while it was asked
                if len(self._resolved) >= MAX_RESOLVED:
                    self._resolved.clear()
                self._resolved[task, version] = found
        return found

    async def labelled(self, label: str) -> list[Version]:
        """The ready version of every task that a label points at; remembered until the store changes."""
        if label not in self._labelled:
            seen = self._seen
            found = await asyncio.to_thread(_labelled, self.store, label)
            if seen != self._seen:  # the store changed while it was asked
                return found
            self._labelled[label] = found
        return self._labelled[label]

    # ------------------------------------------------------------ changes

    async def refresh(self) -> None:
        """Take over what has changed in the store: after our own changes, and twice a second for those of others."""
        async with self._refreshing:  # or one that began earlier could end later, and bring an older state back
            last, gone = await asyncio.to_thread(_changes, self.store, self._seen)
            if last != self._seen:
                self._resolved.clear()
                self._labelled.clear()
                self._seen = last
            for task in gone:
                self.metrics.forget(task)
        await self.serving.refresh()

    async def take_over(self) -> bool:
        """`refresh` after a change of our own, which stands whatever becomes of this.

        Returns:
            False where it failed, which is logged; the next look takes the change over.
        """
        try:
            await self.refresh()
        except Exception:
            log.exception("a change was made, but could not be taken over yet; still trying")
            return False
        return True

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_s)
            try:
                self._reread_keys()
                await self.refresh()
                self.trouble = None
            except Exception as error:
                if self.trouble is None:
                    log.exception("the store cannot be read; still trying")
                self.trouble = _trouble(error)

    def _reread_keys(self) -> None:
        stamp = _stamp(self.settings.keys_file)
        if stamp == self._keys_stamp:
            return
        self._keys_stamp = stamp
        try:
            self.keyring = keyring(self.settings, self._token)
            log.info("the keys file was read again: %d key(s)", len(self.keyring.keys))
        except InvalidInput as error:
            log.error(
                "the keys file has changed and is wrong; the keys of before still hold: %s", "; ".join(error.faults)
            )


def runtime_of(request: Request) -> Runtime:
    """The runtime of the app that answers a request."""
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime


def caller_of(request: Request) -> Caller:
    """Who sent a request: the gate has seen to it."""
    caller = request.scope[CALLER_KEY]
    assert isinstance(caller, Caller)
    return caller


def _there(thing: T | None) -> T:
    if thing is None:
        raise Problem(503, "the server is starting", headers=retry_after(1.0), reason="starting")
    return thing


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status else None


def _trouble(error: Exception) -> str:
    if isinstance(error, StoreReplaced):
        return "the store was replaced while it was open; start the server anew"
    return "the store cannot be read" if isinstance(error, TaskpackError | OSError) else "refresh failed"


def _changes(store: Store, seen: int) -> tuple[int, list[str]]:
    """(The number of the last change, the tasks that went with one after `seen` and are not there now)."""
    last = store.last_event()
    deleted: set[str] = set()
    while 0 <= seen < last:
        events = store.events(seen)
        deleted |= {event.task for event in events if event.kind == "delete" and event.task is not None}
        seen = events[-1].seq if events else last
    return last, [task for task in sorted(deleted) if not store.has_task(task)]


def _labelled(store: Store, label: str) -> list[Version]:
    digests = {task.labels[label] for task in store.tasks() if label in task.labels}
    return [version for version in store.versions() if version.version in digests and version.state == "ready"]
