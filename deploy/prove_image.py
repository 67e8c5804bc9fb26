"""Prove the image without a Docker engine: the Dockerfile's own lines, carried out in a clean root file system.

    sudo python3 deploy/prove_image.py --work /var/tmp/taskpack-image

What is done, on a Linux machine, as root:

1. `debootstrap` makes a minimal Debian with Python, in place of the base image;
2. ENV, WORKDIR, COPY and RUN are carried out in a copy of it for each stage, as written in the Dockerfile (COPY takes
   what git would commit, or what an earlier stage made);
3. CMD is run as the Dockerfile's USER, with docker-compose.yml's environment, on a read-only root, without
   capabilities, with an empty volume at each VOLUME, a tmpfs at /tmp, and a network of its own that reaches nothing;
4. HEALTHCHECK is asked until it agrees, then curl asks every demo task for a label;
5. SIGTERM must end the server with exit code 0; a second start must serve the volume as it is.

Ends in one line of JSON. A run needs debootstrap, curl, util-linux and iproute2, and some ten gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
TASKS = ("digits", "parity", "orientation")
WRITABLE = ("/data", "/state", "/tmp")
READ_ONLY = (
    "",
    "/app",
    "/opt/taskpack",
    "/etc",
    "/var/tmp",
    "/run/lock",
)  # the last two are everybody's on a usual root
START_TIMEOUT_S = 3600
STOP_TIMEOUT_S = 60


@dataclass
class Image:
    """What the Dockerfile says of how to run the image, gathered while it is built.

    Attributes:
        work: the folder of everything.
        stages: name -> its root file system; the last stage has no name, and is the image.
    """

    work: Path
    stages: dict[str, Path] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def root(self) -> Path:
        """Of the stage that is being built, at the end of the image."""
        return list(self.stages.values())[-1]


def main() -> None:
    """Build, run, ask, stop; raise at the first thing that is not as it must be."""
    options = _options()
    work: Path = options.work.resolve()
    started = time.monotonic()
    build = not options.keep_root or not (work / "root").exists()
    if build:
        _fresh_root(work / "base")
    image, mounts = Image(work), list[Path]()
    try:
        for instruction, rest in instructions((REPOSITORY / "Dockerfile").read_text()):
            if instruction == "FROM":
                _begin(image, rest, mounts, build=build)
            else:
                _carry_out(image, instruction, rest, build=build)
    finally:
        _unmount(mounts)
    built = time.monotonic()
    volumes = work / "volumes"
    shutil.rmtree(volumes, ignore_errors=True)
    first = _serve(image, volumes)
    second = _serve(image, volumes)
    report = {
        "proof": "image without an engine",
        "run_lines": image.runs,
        "build_s": round(built - started),
        "first_start_s": first.ready_s,
        "second_start_s": second.ready_s,
        "answers": first.answers,
        "same_answers_after_restart": first.answers == second.answers,
        "exit_codes": [first.exit_code, second.exit_code],
        "writes_refused": first.writes_refused,
        "user": image.user,
    }
    print(json.dumps(report))
    sound = report["same_answers_after_restart"] and report["exit_codes"] == [0, 0] and first.writes_refused
    sys.exit(0 if sound else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the root file system, outside the repository"
    )
    parser.add_argument("--keep-root", action="store_true", help="run what an earlier call built")
    return parser.parse_args()


# ---------------------------------------------------------------- the Dockerfile


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (instruction, the rest of its line) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            yield instruction.upper(), rest.strip()


def _begin(image: Image, rest: str, mounts: list[Path], *, build: bool) -> None:
    """A stage: everything anew but for what earlier stages made."""
    name = rest.partition(" AS ")[2]
    image.stages[name] = image.work / (f"stage-{name}" if name else "root")
    image.env, image.workdir = {}, "/"
    if build:
        shutil.rmtree(image.root, ignore_errors=True)
        subprocess.run(["cp", "--archive", str(image.work / "base"), str(image.root)], check=True)
        mounts += _mounted(image.root, image.work / "pip-cache")


def _carry_out(image: Image, instruction: str, rest: str, *, build: bool) -> None:
    match instruction:
        case "EXPOSE" | "STOPSIGNAL" | "LABEL":
            pass
        case "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                image.env[name] = value.replace("$PATH", image.env.get("PATH", DEFAULT_PATH))
        case "WORKDIR":
            image.workdir = rest
            (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = rest
        case "VOLUME":
            image.volumes = json.loads(rest)
        case "CMD":
            image.cmd = json.loads(rest)
        case "HEALTHCHECK":
            image.health = json.loads(rest.partition("CMD ")[2])
        case "COPY":
            if build:
                _copy(image, rest.split())
        case "RUN":
            image.runs += 1
            if build:
                _run(image, re.sub(r"--mount=\S+\s*", "", rest))
        case _:
            sys.exit(f"the Dockerfile has an instruction that this script does not know: {instruction}")


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _copy(image: Image, paths: Sequence[str]) -> None:
    if paths[0].startswith("--from="):
        _, source, target = paths
        made = image.stages[paths[0].removeprefix("--from=")] / source.lstrip("/")
        shutil.copytree(made, image.root / target.lstrip("/"))
        return
    *sources, target = paths
    base = image.root / image.workdir.lstrip("/") / target
    listed = [
        "git",
        "-C",
        str(REPOSITORY),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        *sources,
    ]
    files = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, files):
        source = next(source for source in sources if name == source or name.startswith(source + "/"))
        within = Path(name).relative_to(source) if name != source else Path()
        place = base / Path(source).name if target.endswith("/") and name == source else base / within
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, place)


def _run(image: Image, line: str) -> None:
    print(f"RUN {line}", flush=True)
    host = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    env = {"PATH": DEFAULT_PATH, "HOME": "/root"} | host | image.env
    inside = f"cd {shlex.quote(image.workdir)} && {line}"
    subprocess.run(["chroot", str(image.root), "/bin/sh", "-c", inside], check=True, env=env)


# ---------------------------------------------------------------- the root file system


def _fresh_root(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)], check=True)
    # What an engine would lend a build: name resolution, and this machine's certificates and pip settings.
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)


def _mounted(root: Path, cache: Path) -> list[Path]:
    """Mount what a build needs beside the files: /proc, /dev, pip's cache, package folders that pip is set to use."""
    cache.mkdir(parents=True, exist_ok=True)
    local = {Path(value) for value in _pip_folders() if Path(value).is_dir()}
    binds = {Path("/proc"): root / "proc", Path("/dev"): root / "dev", cache: root / "root/.cache/pip"}
    binds |= {folder: root / str(folder).lstrip("/") for folder in local}
    for source, target in binds.items():
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    return list(binds.values())


def _pip_folders() -> Iterator[str]:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    for setting in re.findall(r"'(.*)'", listed.stdout):
        for word in setting.split():
            path = word.removeprefix("file://")
            if path.startswith("/"):
                yield str(Path("/", *Path(path).parts[1:3]))


def _unmount(targets: Sequence[Path]) -> None:
    for target in reversed(targets):
        subprocess.run(["umount", "--lazy", str(target)], check=False)


# ---------------------------------------------------------------- the running container


@dataclass
class Run:
    """What one life of the container showed."""

    ready_s: int
    answers: dict[str, str]
    writes_refused: bool
    exit_code: int


# What an engine sets up for `read_only: true` and a tmpfs; the order matters: all is mounted before nothing can be.
ENTER = """
set -eu
ip link set lo up
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount -t tmpfs tmpfs "$ROOT/dev"
mkdir "$ROOT/dev/shm"
mount -t tmpfs tmpfs "$ROOT/dev/shm"
for node in null zero full random urandom; do touch "$ROOT/dev/$node"; mount --bind "/dev/$node" "$ROOT/dev/$node"; done
for volume in $VOLUMES; do mount --bind "$STATE$volume" "$ROOT$volume"; done
exec chroot "$ROOT" """
DROP = "setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"


def _serve(image: Image, volumes: Path) -> Run:
    uid, gid = image.user.split(":")
    for volume in image.volumes:
        place = volumes / volume.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        os.chown(place, int(uid), int(gid))
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["taskpack"]["environment"]
    env = {"PATH": DEFAULT_PATH} | image.env | compose
    drop = DROP.format(uid=uid, gid=gid)
    inside = f"cd {shlex.quote(image.workdir)} && exec {shlex.join(image.cmd)}"
    enter = f"{ENTER}{drop} /bin/sh -c {shlex.quote(inside)}"
    prefix = {"ROOT": str(image.root), "STATE": str(volumes), "VOLUMES": " ".join(image.volumes)}
    started = time.monotonic()
    process = subprocess.Popen(
        ["unshare", "--mount", "--net", "--propagation", "private", "/bin/sh", "-c", enter], env=env | prefix
    )
    try:
        container = Container(process, image, env, drop)
        container.wait_until_healthy(started)
        ready = round(time.monotonic() - started)
        answers = {task: container.ask(task) for task in TASKS}
        refused = container.root_is_read_only()
        process.send_signal(signal.SIGTERM)
        return Run(ready, answers, refused, process.wait(STOP_TIMEOUT_S))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@dataclass
class Container:
    """A running container, seen from inside its namespaces."""

    process: subprocess.Popen[bytes]
    image: Image
    env: dict[str, str]
    drop: str

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        enter = ["nsenter", "-t", str(self.process.pid), "--mount", "--net", "chroot", str(self.image.root)]
        return subprocess.run([*enter, *shlex.split(self.drop), *command], env=self.env, capture_output=True, text=True)

    def wait_until_healthy(self, started: float) -> None:
        """Ask the image's own health check until it agrees."""
        while time.monotonic() - started < START_TIMEOUT_S:
            if self.process.poll() is not None:
                sys.exit(f"CMD ended with exit code {self.process.returncode} before it was healthy")
            if self.inside(*self.image.health).returncode == 0:
                return
            time.sleep(1)
        sys.exit(f"HEALTHCHECK did not agree within {START_TIMEOUT_S} s")

    def ask(self, task: str) -> str:
        """Send a picture with the host's curl, in the container's network; return the label it was answered with."""
        picture = sorted((self.image.root / "..").resolve().glob(f"volumes/data/store/samples/{task}-*.png"))[0]
        url = f"localhost:{self.env['TASKPACK_PORT']}/predict?task={task}"
        command = ["nsenter", "-t", str(self.process.pid), "--net", "curl", "-fsS", "-F", f"image=@{picture}", url]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        label = answer["predictions"][0]["labels"][0]["name"]
        print(f"curl -fsS -F image=@{picture.name} '{url}' -> {label}", flush=True)
        if label != shown_on(picture):
            sys.exit(f"{picture.name} was answered with {label}")
        return label

    def root_is_read_only(self) -> bool:
        """Whether a write outside the volumes and /tmp fails, and one inside them does not."""
        allowed = {place: place in WRITABLE for place in (*READ_ONLY, *WRITABLE)}
        found = {
            place: self.inside("/bin/sh", "-c", f": > {place}/probe && rm {place}/probe").returncode == 0
            for place in allowed
        }
        for place in allowed:
            if found[place] != allowed[place]:
                print(f"{place} is {'' if found[place] else 'not '}writable", flush=True)
        return found == allowed


def shown_on(picture: Path) -> str:
    """The label of one of the demo's samples, which are named TASK-DIGIT.png and orientation-DEGREES.png."""
    task, _, value = picture.stem.partition("-")
    return ("even", "odd")[int(value) % 2] if task == "parity" else value


if __name__ == "__main__":
    main()
