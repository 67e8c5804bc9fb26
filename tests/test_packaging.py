"""What the project says it needs is what it uses, and the image is made of files that are there."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

from deploy.prove_image import instructions

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"masks_store", "trainer", "service", "taskpack", "examples", "deploy", "tests"}
# Imported under its own name, and installed by the one it comes with.
BRINGS = {"starlette": "fastapi", "pydantic-core": "pydantic", "triton": "torch"}  # torch for CUDA alone, that is


def plain(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0].lower().replace("_", "-")


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def test_every_package_that_is_imported_is_declared_and_every_declared_one_is_used() -> None:
    files = [
        REPOSITORY / "taskpack.py",
        *(f for d in ("masks_store", "trainer", "service") for f in (REPOSITORY / d).rglob("*.py")),
    ]
    names = set[str]().union(*(imported(file) for file in files))
    installed = packages_distributions()
    used = {plain(installed[name][0]) if name in installed else name for name in names}
    declared = {plain(one) for one in PROJECT["dependencies"]}
    assert {BRINGS.get(name, name) for name in used} == declared


def test_every_dependency_is_pinned_as_it_was_tested() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", pin) for pin in pins)
    wanted = {plain(one) for one in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])}
    assert wanted <= {plain(pin) for pin in pins}


def test_the_image_copies_files_that_are_there_and_are_not_ignored() -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    dockerfile = list(instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8")))
    copies = [rest.split() for name, rest in dockerfile if name == "COPY"]
    copied = [source for words in copies if not words[0].startswith("--from=") for source in words[:-1]]
    assert copied
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert source.partition("/")[0] in allowed, f"{source} is left out by .dockerignore"


def test_the_compiler_stays_in_the_stage_that_builds_the_package() -> None:
    dockerfile = list(instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8")))
    starts = [at for at, (name, _) in enumerate(dockerfile) if name == "FROM"]
    stages = [dockerfile[a:b] for a, b in zip(starts, [*starts[1:], len(dockerfile)], strict=True)]
    installs = ["gcc" in rest.split() for stage in stages for name, rest in stage if name == "RUN"]
    assert any(installs)
    last = [rest for name, rest in stages[-1] if name == "RUN"]
    assert last
    assert not any("gcc" in rest.split() or "apt-get" in rest for rest in last)
    named = {rest.partition(" AS ")[2] for name, rest in dockerfile if name == "FROM"}
    taken = [rest for name, rest in stages[-1] if name == "COPY" and rest.startswith("--from=")]
    assert taken
    assert all(rest.split()[0].removeprefix("--from=") in named for rest in taken)


def test_every_c_file_is_built_and_shipped() -> None:
    """A file that is not among the sources would be missed only when a function is called."""
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    (extension,) = tools["ext-modules"]
    native = REPOSITORY / "service/engine/native"
    listed = {*extension["sources"], *extension["depends"]}
    assert listed == {str(path.relative_to(REPOSITORY)) for path in native.iterdir()}


def test_the_image_runs_as_nobody_in_particular_and_compose_keeps_it_small() -> None:
    dockerfile = dict(instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8")))
    uid, gid = dockerfile["USER"].split(":")
    assert int(uid) >= 1000
    assert int(gid) >= 1000
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        mounted = {volume.partition(":")[2] for volume in service["volumes"]}
        assert mounted == set(yaml.safe_load(dockerfile["VOLUME"])), name
    gpus = [s["deploy"]["resources"]["reservations"]["devices"] for s in compose["services"].values() if "deploy" in s]
    assert gpus == [[{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]]
