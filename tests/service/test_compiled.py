"""The C functions are taken only where they were built from this version of the code, and the log says what to do."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from masks_store import Store
from service.engine import Engine
from service.engine.compiled import LEVELS, Compiled, find
from service.serving import Serving

from .. import zoo
from . import native


def test_a_build_of_this_version_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, said = find(native.build(tmp_path / "native.so"))
    assert found is not None
    assert said == f"functions compiled for {LEVELS[found.level]}"
    assert not caplog.records


@pytest.mark.parametrize("source", ["int taskpack_version(void) { return 0; }", "int older;", None])
def test_a_build_of_another_version_is_not_taken_and_the_log_says_how_to_mend_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str | None
) -> None:
    made = tmp_path / "native.so"
    if source is None:
        made.write_bytes(b"no library")
    else:
        (tmp_path / "old.c").write_text(source)
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler here")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(tmp_path / "old.c")], check=True)
    found, said = find(made)
    assert found is None
    assert said.startswith("torch")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "native.so" in record.getMessage()
    assert "pip install" in record.getMessage()


def test_where_nothing_was_built_torch_does_it_and_nothing_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    found, said = find(None)
    assert found is None
    assert "without a C compiler" in said
    assert not caplog.records


def test_the_threads_are_those_of_torch_s_own_library(library: Compiled) -> None:
    torchs = str(Path(torch.__file__).resolve().parent / "lib" / "libgomp")
    spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if torchs in line]
    assert (library.parallel is not None) == bool(spans)
    if library.parallel is not None:
        assert any(int(low, 16) <= library.parallel < int(high, 16) for low, high in spans)


def test_the_start_says_who_computes(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskpack.service")
    Serving(store)
    assert f"views and adapters are computed by {Engine(zoo.backbone(keep=0.5)).computes}" in caplog.messages


def test_results_of_probes_are_not_shared_between_c_and_torch() -> None:
    backbone = zoo.backbone(keep=0.5)
    torch_only, usual = Engine(backbone, native=False), Engine(backbone)
    assert (torch_only.build == usual.build) == usual.computes.startswith("torch")
