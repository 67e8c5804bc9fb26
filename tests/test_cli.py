"""The command as a user types it: what it says, what it costs to ask, and how it fails."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

import taskpack

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def taskpack_command(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskpack", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )


def failing(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Run the command in this process; returns its exit code and what it said on stderr."""
    code = taskpack.run(args)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return code, err


def imported_by(*args: str) -> set[str]:
    """Names of the top-level packages that a call of the command imports."""
    script = (
        "import sys, taskpack; taskpack.run(sys.argv[1:]); "
        "print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("name", taskpack.COMMANDS)
def test_every_command_every_option_and_argument_is_documented(name: str) -> None:
    context = click.Context(taskpack.command)
    command = taskpack.command.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.help, f"{name} has no help text"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help text"
        else:
            named = parameter.make_metavar(context).strip("[].").split("|")[0]
            assert named == "STORE" or named in command.help.upper(), f"{name}: its help does not say what {named} is"


def test_the_readme_lists_every_command_and_none_that_comes_later() -> None:
    listed = set(re.findall(r"^\| `taskpack ([a-z]+)", README, flags=re.MULTILINE))
    assert listed == set(taskpack.COMMANDS)
    assert not set(taskpack.LATER) & set(taskpack.COMMANDS)


def test_help_and_version_import_none_of_the_packages() -> None:
    for asked in ("--help", "--version"):
        assert not {"torch", "numpy", "masks_store", "trainer", "service"} & imported_by(asked)


@pytest.mark.parametrize("name", ["predict", "push"])
def test_a_command_that_only_speaks_to_a_server_does_not_import_torch(name: str) -> None:
    assert not {"torch", "fastapi", "masks_store"} & imported_by(name, "--help")


def test_importing_the_api_imports_none_of_the_packages() -> None:
    script = "import sys, taskpack; print('torch' in sys.modules, 'masks_store' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_version_is_the_packages() -> None:
    done = taskpack_command("--version")
    assert re.fullmatch(r"taskpack \d+\.\d+\.\d+\n", done.stdout)


# ---------------------------------------------------------------- how it fails


@pytest.mark.parametrize("name", taskpack.LATER)
def test_a_command_that_comes_later_is_refused_by_name(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = failing(capfd, name, "store")
    assert code == 2
    assert said.startswith(f"error: '{name}' is not in this version of Taskpack")


@pytest.mark.parametrize(
    "args", [["nosuch"], ["predict"], ["push", "--frob"], ["--frob"], ["predict", "--task", "a", "/no"]]
)
def test_wrong_usage_is_one_error_with_the_way_to_the_help(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, said = failing(capfd, *args)
    assert code == 2
    assert said.startswith("error: ")
    assert "--help" in said


def test_every_image_that_cannot_be_asked_about_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.png").touch()
    images = [str(tmp_path), str(tmp_path / "there.png"), str(tmp_path / "no.png")]
    code, said = failing(capfd, "predict", "--task", "a", *images)
    assert code == 2
    assert f"File '{tmp_path}' is a directory. File '{tmp_path / 'no.png'}' does not exist." in said
    assert "there.png" not in said


def test_no_arguments_show_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = failing(capfd)
    assert code == 2
    assert "Commands:" in said


def test_a_store_that_is_not_there_is_exit_code_1_and_names_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = failing(capfd, "ls", str(tmp_path / "nowhere"))
    assert code == 1
    assert said.startswith("error: ")
    assert "nowhere" in said


def test_wrong_settings_are_exit_code_2_and_every_fault_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = failing(capfd, "serve", "store", "--port", "70000", "--max-batch", "0", "--dtype", "fp7")
    assert code == 2
    lines = said.splitlines()
    assert lines[0].startswith("error: ")
    assert {line.split(":")[0].strip() for line in lines[1:]} == {"--port", "--max-batch", "--dtype"}


def test_a_server_that_is_not_there_is_exit_code_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    code, said = failing(capfd, "predict", "--url", "http://127.0.0.1:1", "--task", "a", str(image))
    assert code == 1
    assert said == "error: no server answers at http://127.0.0.1:1: is it running? (taskpack serve STORE)\n"


def test_a_file_names_its_task_itself_and_a_folder_needs_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"x")
    for args, reason in (([str(file), "birds"], "names its task itself"), ([str(tmp_path)], "name the task to send")):
        code, said = failing(capfd, "push", *args, "--to", "http://127.0.0.1:1")
        assert code == 2
        assert reason in said


def test_a_label_on_a_server_goes_to_the_server_and_not_to_a_store(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = failing(capfd, "label", "http://127.0.0.1:1", "birds", "stable", "canary")
    assert code == 1
    assert said.startswith("error: no server answers at http://127.0.0.1:1")


def test_a_defect_is_one_line_and_the_way_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A patch, because there is no defect to be had on purpose: the command is pointed at a module that is not there.
    monkeypatch.setitem(taskpack.COMMANDS, "ls", taskpack.Mounted("no_such_module", "ls", "."))
    code, said = failing(capfd, "ls", "store")
    assert code == 1
    assert said.startswith("error: ModuleNotFoundError")
    assert "TASKPACK_TRACEBACK=1" in said


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "taskpack", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def heed_ctrl_c() -> None:
    """What a shell gives a job in the foreground; these tests may run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_exit_code_130_and_one_word(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        args = ["predict", "--url", url, "--task", "a", str(image)]
        command = [sys.executable, "-m", "taskpack", *args]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1 << 16)  # it has asked, and now waits for an answer that never comes
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert said.strip() == "interrupted"
    assert process.returncode == 130


@pytest.fixture
def interrupted_import(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that Ctrl-C reaches while it imports click."""
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(taskpack.__file__).parent)])}


def test_ctrl_c_before_anything_is_loaded_is_the_same(tmp_path: Path, interrupted_import: dict[str, str]) -> None:
    installed = tmp_path / "taskpack"
    installed.write_text("from taskpack import main\nmain()\n")
    for called in (["-m", "taskpack"], [str(installed)]):
        done = subprocess.run(
            [sys.executable, *called, "ls", "store"],
            capture_output=True,
            text=True,
            check=False,
            env=interrupted_import,
            preexec_fn=heed_ctrl_c,
        )
        assert (done.stderr, done.returncode) == ("interrupted\n", 130)


def test_ctrl_c_while_the_api_is_imported_stays_an_exception(interrupted_import: dict[str, str]) -> None:
    script = "try:\n  import taskpack\nexcept KeyboardInterrupt:\n  print('heard')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=interrupted_import,
        preexec_fn=heed_ctrl_c,
    )
    assert done.stdout == "heard\n"


# ---------------------------------------------------------------- the table


def test_every_mounted_command_is_where_the_table_says() -> None:
    for name, mounted in (*taskpack.COMMANDS.items(), ("label", taskpack.REMOTE_LABEL)):
        found = getattr(importlib.import_module(mounted.module), mounted.attribute)
        assert isinstance(found, click.Command)
        assert found.name == name


def test_a_label_takes_the_same_arguments_for_a_store_and_for_a_server() -> None:
    here, there = (
        getattr(importlib.import_module(mounted.module), mounted.attribute)
        for mounted in (taskpack.COMMANDS["label"], taskpack.REMOTE_LABEL)
    )
    arguments = [[p.name for p in command.params if isinstance(p, click.Argument)][1:] for command in (here, there)]
    assert arguments == [["task", "label", "version"]] * 2
    options = [{o for p in command.params if isinstance(p, click.Option) for o in p.opts} for command in (here, there)]
    assert options[0] <= options[1]
