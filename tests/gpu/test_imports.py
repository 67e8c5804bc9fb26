"""A machine without a GPU pays nothing for its ways: neither Triton nor what is written for it is imported there."""

from __future__ import annotations

import ast
from pathlib import Path

from service.engine import Engine
from service.engine.ways import Ways

from .. import zoo

SERVICE = Path(__file__).parents[2] / "service"


def at_import(path: Path) -> set[str]:
    """What a file imports when it is imported itself; modules of its own package begin with a dot."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names}
    return found


def test_nothing_but_the_kernels_imports_triton_or_the_kernels_at_import() -> None:
    kernels = set((SERVICE / "engine/gpu").glob("*.py"))
    assert any("triton" in at_import(path) for path in kernels), "that is where it is looked for"
    for path in set(SERVICE.rglob("*.py")) - kernels:
        parts = {part for name in at_import(path) for part in name.split(".")}
        assert parts.isdisjoint({"triton", "gpu"}), path


def test_an_engine_on_a_cpu_has_none_of_a_gpu_s_ways() -> None:
    assert Engine(zoo.backbone()).ways == Ways()
