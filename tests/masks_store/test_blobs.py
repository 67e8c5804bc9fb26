"""A blob is absent or whole, whatever happens while it is written, and never read without being verified."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from masks_store.blobs import Blobs
from masks_store.errors import InvalidInput, OutOfCapacity, StoreCorrupt, StoreUnwritable
from masks_store.files import GRACE, Files, clean_temp, temp_name, write_file
from masks_store.process import Process, this_process
from tests.crash.power import CountingFiles, Disk, FullDisk, NoDirFsync, NoFsync, NoRename, PowerCut

OLD, NEW = b"an old blob", b"a new blob, somewhat longer than the old one" * 50


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def open_blobs(root: Path, files: Files | None = None) -> Blobs:
    root.mkdir(exist_ok=True)
    blobs = Blobs(root / "blobs", files)
    if not (root / "blobs").exists():
        Blobs(root / "blobs").create()
    return blobs


def temp_files(root: Path) -> list[Path]:
    return list((root / "blobs" / "tmp").iterdir())


# ------------------------------------------------------------------ reading and writing


def test_put_then_get_gives_the_same_bytes_under_their_digest(tmp_path: Path):
    blobs = open_blobs(tmp_path)
    assert blobs.put(NEW) == digest(NEW)
    assert blobs.get(digest(NEW)) == NEW
    assert list(blobs) == [digest(NEW)]
    name = digest(NEW).removeprefix("sha256:")
    assert (tmp_path / "blobs" / "sha256" / name[:2] / name).read_bytes() == NEW


@pytest.mark.parametrize("data", [b"", b"x", bytes(3_000_000)])
def test_any_size_is_stored_even_if_the_system_takes_few_bytes_at_a_time(tmp_path: Path, data: bytes):
    class Reluctant(Files):
        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, data[: max(1, len(data) // 3)])

    blobs = open_blobs(tmp_path, Reluctant())
    assert blobs.get(blobs.put(data)) == data


def test_a_blob_that_is_there_is_not_written_again(tmp_path: Path):
    blobs = open_blobs(tmp_path)
    before = blobs.path(blobs.put(OLD)).stat()
    os.utime(blobs.path(digest(OLD)), (1, 1))
    blobs.put(OLD)
    after = blobs.path(digest(OLD)).stat()
    assert after.st_ino == before.st_ino
    assert after.st_mtime > 1, "gc must take it for new"


@pytest.mark.parametrize("damage", [b"", OLD[:-1], OLD + b"x", b"A" + OLD[1:]])
def test_damaged_bytes_are_refused_on_reading_and_mended_by_putting_again(tmp_path: Path, damage: bytes):
    blobs = open_blobs(tmp_path)
    blobs.path(blobs.put(OLD)).write_bytes(damage)
    with pytest.raises(StoreCorrupt, match=f"{digest(OLD)} is damaged.*restore"):
        blobs.get(digest(OLD))
    assert blobs.faults() == [blobs.fault(digest(OLD))]
    blobs.put(OLD)
    assert blobs.get(digest(OLD)) == OLD
    assert blobs.faults() == []


def test_an_open_blob_was_verified_and_stays_what_it_was(tmp_path: Path):
    blobs = open_blobs(tmp_path)
    blobs.put(NEW)
    path = blobs.path(digest(NEW))
    with blobs.open(digest(NEW)) as file:
        path.unlink()
        path.write_bytes(OLD)
        assert file.read() == NEW
    for harm in (lambda: None, path.unlink, path.mkdir):
        harm()
        with pytest.raises(StoreCorrupt, match="restore this file"):
            blobs.open(digest(NEW))


def test_a_missing_blob_is_named_with_what_to_do(tmp_path: Path):
    with pytest.raises(StoreCorrupt, match=f"{digest(OLD)} is missing.*restore"):
        open_blobs(tmp_path).get(digest(OLD))


@pytest.mark.parametrize("name", ["sha256:../../x", "sha256:AB", "md5:" + "0" * 64, "", "sha256:" + "0" * 63])
def test_only_a_digest_becomes_a_path(tmp_path: Path, name: str):
    with pytest.raises(StoreCorrupt, match="not the digest"):
        open_blobs(tmp_path).get(name)


def test_a_stray_file_among_the_blobs_is_a_fault(tmp_path: Path):
    blobs = open_blobs(tmp_path)
    stray = blobs.path(blobs.put(OLD)).with_name("notes.txt")
    stray.write_text("x")
    assert blobs.faults() == [f"{stray} is not a blob; remove it"]


def test_threads_may_put_the_same_and_other_blobs_at_once(tmp_path: Path):
    blobs = open_blobs(tmp_path)
    wanted = [bytes([n]) * 5000 for n in range(4)]
    threads = [threading.Thread(target=blobs.put, args=(wanted[n % 4],)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(blobs) == sorted(map(digest, wanted))
    assert blobs.faults() == []
    assert temp_files(tmp_path) == []


# ------------------------------------------------------------------ power cuts


def lost_by_power_cuts(root: Path, disk_type: type[Disk], names_kept: bool) -> list[str]:
    """Put a blob, with the power cut at each step in turn and once after it is done; what was lost or torn."""
    lost: list[str] = []
    for cut_at in range(1, 40):
        place = root / str(cut_at)
        open_blobs(place).put(OLD)
        disk = disk_type(cut_at, names_kept=names_kept)
        try:
            open_blobs(place, disk).put(NEW)
            done = True
        except PowerCut:
            done = False
        disk.cut()
        found = Blobs(place / "blobs")
        lost += [f"cut at {cut_at}: {fault}" for fault in [*found.faults(), found.fault(digest(OLD))] if fault]
        if done:
            lost += [f"after it was done: {fault}" for fault in [found.fault(digest(NEW))] if fault]
            return lost
        found.put(NEW)  # the second try goes well
        assert found.get(digest(NEW)) == NEW
    raise AssertionError("putting a blob takes more steps than were tried")


@pytest.mark.parametrize("names_kept", [False, True])
def test_a_power_cut_at_any_step_leaves_a_blob_absent_or_whole(tmp_path: Path, names_kept: bool):
    assert lost_by_power_cuts(tmp_path, Disk, names_kept) == []


@pytest.mark.parametrize(("disk_type", "names_kept"), [(NoFsync, True), (NoDirFsync, False), (NoRename, True)])
def test_without_fsync_or_rename_the_same_power_cuts_lose_data(tmp_path: Path, disk_type: type[Disk], names_kept: bool):
    assert lost_by_power_cuts(tmp_path, disk_type, names_kept) != []


def test_a_blob_that_another_process_has_just_renamed_is_on_disk_before_put_returns(tmp_path: Path):
    other = Disk()
    open_blobs(tmp_path, other).put(OLD)  # makes the directories durable
    blobs = open_blobs(tmp_path)
    steps: list[Path] = []

    class Watched(Files):
        def fsync_dir(self, path: Path) -> None:
            steps.append(path)
            super().fsync_dir(path)

    blobs.put(NEW)
    open_blobs(tmp_path, Watched()).put(NEW)
    assert blobs.path(digest(NEW)).parent in steps


# ------------------------------------------------------------------ full disk


def steps_of_put(root: Path) -> int:
    counting = CountingFiles()
    open_blobs(root, counting).put(NEW)
    return counting.steps


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_step_is_told_and_leaves_nothing_behind(tmp_path: Path, code: int):
    steps = steps_of_put(tmp_path / "count")
    assert steps >= 7
    for fails_at in range(1, steps + 1):
        place = tmp_path / str(fails_at)
        with pytest.raises(OutOfCapacity, match=r"the disk is full.*free some space"):
            open_blobs(place, FullDisk(fails_at, code)).put(NEW)
        assert temp_files(place) == []
        assert open_blobs(place).faults() == []
        assert open_blobs(place).get(open_blobs(place).put(NEW)) == NEW


def test_another_refusal_of_the_disk_is_told_with_its_reason(tmp_path: Path):
    with pytest.raises(StoreUnwritable, match="Input/output error"):
        open_blobs(tmp_path, FullDisk(2, errno.EIO)).put(NEW)


# ------------------------------------------------------------------ temporary files


def temp_of(process: Process) -> str:
    return f"{process.place}-{process.pid}-{process.started}-{'0' * 16}.tmp"


def ended_process() -> Process:
    """A process that has ended and been waited for."""
    child = subprocess.Popen(["true"])
    child.wait()
    return Process("", this_process().place, child.pid, 1)


def test_temporary_files_of_ended_processes_go_and_those_of_running_ones_stay(tmp_path: Path):
    open_blobs(tmp_path)
    mine = temp_name()
    reused = Process("", this_process().place, os.getpid(), this_process().started + 1)
    for name in (mine, temp_of(ended_process()), temp_of(reused), "somebody's own.tmp"):
        (tmp_path / "blobs" / "tmp" / name).write_bytes(b"half")
    assert open_blobs(tmp_path).clean_temp() == 2
    assert sorted(path.name for path in temp_files(tmp_path)) == sorted([mine, "somebody's own.tmp"])


def test_temporary_files_of_another_host_go_when_they_are_old(tmp_path: Path):
    elsewhere = Process("", "0" * 12, os.getpid(), 1)
    path = tmp_path / temp_of(elsewhere)
    path.write_bytes(b"half")
    assert clean_temp(Files(), tmp_path) == 0
    os.utime(path, (path.stat().st_mtime - GRACE - 1, path.stat().st_mtime - GRACE - 1))
    assert clean_temp(Files(), tmp_path) == 1
    assert not path.exists()


def test_a_process_knows_whether_another_runs():
    me = this_process()
    child = subprocess.Popen(["sleep", "60"])
    other = Process(me.host, me.place, child.pid, 0)
    assert me.is_running()
    assert other.is_running()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and nobody has taken notice yet
    assert other.is_running() is False
    child.wait()
    assert other.is_running() is False
    assert Process(me.host, "elsewhere", child.pid, 0).is_running() is None


# ------------------------------------------------------------------ files of the user's


def test_a_file_of_the_users_is_replaced_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "out.safetensors"
    target.write_bytes(OLD)
    write_file(target, NEW)
    assert target.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path):
    (tmp_path / "real").write_bytes(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_file(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == NEW


def test_a_device_or_pipe_is_never_replaced_by_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(InvalidInput, match="a device or a pipe"):
            write_file(path, NEW)
        assert not path.is_file()


def test_a_place_that_cannot_hold_a_file_is_told_with_the_mend(tmp_path: Path):
    with pytest.raises(InvalidInput, match="is a directory; name a file in it"):
        write_file(tmp_path, NEW)
    with pytest.raises(InvalidInput, match="there is no directory"):
        write_file(tmp_path / "nowhere" / "out", NEW)
