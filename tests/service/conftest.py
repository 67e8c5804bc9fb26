"""Fixtures of the HTTP tests: a real store, copied for every test that needs one of its own, and a real app over it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from masks_store import Store
from service.engine.compiled import Compiled, load

from . import live, native
from .web import Web, make_store, running


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The engine's C functions, compiled from the source as it is now."""
    return load(native.build(tmp_path_factory.mktemp("native") / "native.so"))


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tasks of `web.make_store`. Never written to: copy it."""
    return make_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture
def store(made_store: Path, tmp_path: Path) -> Store:
    """A store of the test's own."""
    return Store.open(shutil.copytree(made_store, tmp_path / "store"))


@pytest.fixture(scope="session")
def made_full_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one task of each kind. Never written to: copy it."""
    return live.make_full_store(tmp_path_factory.mktemp("stores") / "full")


@pytest.fixture
def full_store(made_full_store: Path, tmp_path: Path) -> tuple[Store, dict[str, str]]:
    """A copy of it of the test's own, and name -> version."""
    opened = Store.open(shutil.copytree(made_full_store, tmp_path / "full"))
    return opened, {task.name: task.labels["stable"] for task in opened.tasks()}


@pytest.fixture
async def web(store: Store) -> AsyncIterator[Web]:
    """A running app over a store of the test's own; every route open to its client but the admin's."""
    async with running(store) as started:
        yield started


@pytest.fixture(scope="module")
async def shared(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Web]:
    """A running app for all tests of a module that change nothing."""
    path = shutil.copytree(made_store, tmp_path_factory.mktemp("shared") / "store")
    async with running(Store.open(path)) as started:
        yield started
