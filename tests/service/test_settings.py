"""Settings: one model, and every way of setting a field leads to it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from masks_store import InvalidInput
from service.flags import ARGUMENT
from service.settings import ENV_ONLY, REDACTED, Settings, flag_of, load_settings

EXAMPLES: dict[str, tuple[str, object]] = {
    "store": ("some/store", Path("some/store")),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "open": ("true", True),
    "allowed_hosts": ("A.example.org, *.b.org", ("a.example.org", "*.b.org")),
    "keys_file": ("keys.yaml", Path("keys.yaml")),
    "admin_token_file": ("token", Path("token")),
    "device": ("cuda:1", "cuda:1"),
    "dtype": ("bf16", "bf16"),
    "workers": ("3", 3),
    "worker_threads": ("2", 2),
    "max_batch": ("8", 8),
    "queue_limit_s": ("2.5", 2.5),
    "max_delay_ms": ("1.5", 1.5),
    "auto_threshold": ("0.05", 0.05),
    "slot_bytes": ("1GiB", 1 << 30),
    "host_bytes": ("5000", 5000),
    "max_body_bytes": ("64MiB", 64 << 20),
    "max_artifact_bytes": ("2GB", 2 * 10**9),
    "max_images": ("4", 4),
    "max_tasks": ("2", 2),
    "max_labels": ("5000", 5000),
    "max_pixels": ("1000000", 1_000_000),
    "max_headers": ("50", 50),
    "max_header_bytes": ("8KiB", 8192),
    "header_timeout_s": ("3", 3.0),
    "body_timeout_s": ("0.5", 0.5),
    "artifact_timeout_s": ("60", 60.0),
    "keep_alive_s": ("2", 2),
    "timeout_ms": ("1500", 1500),
    "max_requests": ("10", 10),
    "max_inflight_bytes": ("1MiB", 1 << 20),
    "max_uploads": ("1", 1),
    "max_writes": ("3", 3),
    "decode_threads": ("4", 4),
    "gpu_decode": ("true", True),
    "poll_s": ("0.1", 0.1),
    "drain_grace": ("0", 0.0),
    "drain_timeout": ("1.5", 1.5),
    "log_level": ("debug", "debug"),
    "access_log": ("false", False),
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("TASKPACK_")]:
        monkeypatch.delenv(name)


def given(arguments: list[str]) -> dict[str, object]:
    """The flags that a command line gives, as `taskpack serve` passes them on."""
    from service.cli import serve

    taken: dict[str, object] = {}

    @click.pass_context
    def take(context: click.Context, **flags: object) -> None:
        taken.update({name: value for name, value in flags.items() if value is not None})

    command = click.Command("serve", params=serve.params, callback=take)
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    taken.pop("config", None)
    return taken


def test_every_field_has_an_example_here() -> None:
    assert set(EXAMPLES) | set(ENV_ONLY) == set(Settings.model_fields)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_field_is_a_flag_an_environment_variable_and_a_key_of_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = EXAMPLES[name]
    assert getattr(Settings(), name) != value or name in ("drain_grace",)
    if name == ARGUMENT:
        arguments = [text]
    elif isinstance(value, bool):
        arguments = [flag_of(name) if value else flag_of(name).replace("--", "--no-")]
    else:
        arguments = [flag_of(name), text]
    assert getattr(load_settings(given(arguments)), name) == value
    for key in (name, name.replace("_", "-")):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({key: yaml.safe_load(text) if text[0].isdigit() else text}))
        assert getattr(load_settings({}, config), name) == value
    monkeypatch.setenv(f"TASKPACK_{name.upper()}", text)
    assert getattr(load_settings({}), name) == value


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("port: 1\nhost: from-file\nmax_batch: 3\n")
    monkeypatch.setenv("TASKPACK_PORT", "2")
    monkeypatch.setenv("TASKPACK_HOST", "from-environment")
    settings = load_settings({"port": "4"}, config)
    assert (settings.port, settings.host, settings.max_batch) == (4, "from-environment", 3)


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("max_batch: 3\n")
    monkeypatch.setenv("TASKPACK_CONFIG", str(tmp_path / "c.yaml"))
    assert load_settings({}).max_batch == 3


def test_an_empty_environment_variable_is_none_and_an_empty_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPACK_KEYS_FILE", "")
    monkeypatch.setenv("TASKPACK_PORT", "")
    (tmp_path / "c.yaml").write_text("")
    settings = load_settings({}, tmp_path / "c.yaml")
    assert (settings.keys_file, settings.port) == (None, 8000)


def test_other_programs_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPACK_DATA", "/somewhere")
    monkeypatch.setenv("TASKPACK_TRACEBACK", "1")
    assert load_settings({}).port == 8000


def test_every_wrong_setting_is_told_at_once_by_the_flag_it_has() -> None:
    wrong = {
        "port": "70000",
        "dtype": "fp8",
        "max_body_bytes": "many",
        "device": "tpu",
        "allowed_hosts": "*",
        "workers": "0",
    }
    with pytest.raises(InvalidInput) as caught:
        load_settings(wrong)
    assert {fault.partition(":")[0] for fault in caught.value.faults} == {flag_of(name) for name in wrong}


@pytest.mark.parametrize("names", ["*", "http://x", "a/b", "*.", "a*b", "x@y"])
def test_hosts_that_are_no_names_are_refused(names: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings({"allowed_hosts": names})
    assert "allowed-hosts" in caught.value.faults[0]


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        ("example.org:8000", "say 'example.org'"),
        ("*.example.org:443", "say '*.example.org'"),
        ("10.0.0.1:8000", "say '10.0.0.1'"),
        ("[::2]:8000", "say '[::2]'"),
        ("10.0.0.1/8", "must be zero"),
        ("10.0.0.0/40", "must be zero"),
    ],
)
def test_a_host_that_could_never_match_is_refused_with_the_mend(given: str, mend: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings({"allowed_hosts": f"good.example.org,{given},also:1"})
    (fault,) = caught.value.faults
    assert mend in fault
    assert "say 'also'" in fault
    assert "good" not in fault


@pytest.mark.parametrize("host", ["10.0.0.0/8", "10.1.2.3", "::/0", "2001:db8::1", "[2001:db8::1]", "0.0.0.0/0"])
def test_addresses_and_ranges_of_them_are_hosts(host: str) -> None:
    assert load_settings({"allowed_hosts": host}).allowed_hosts == (host,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1\nhots: x\n", ["prot", "hots"]),
        ("admin_token: abcdefghijklmnopqrstuvwxyz\n", ["admin_token"]),
        ("- 1\n", ["name: value"]),
        ("a: [\n", ["not YAML"]),
    ],
)
def test_a_file_with_anything_else_in_it_is_refused_and_each_key_named(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load_settings({}, tmp_path / "c.yaml")
    everything = "\n".join((str(caught.value), *caught.value.faults))
    for word in said:
        assert word in everything
    assert "abcdefghijklmnopqrstuvwxyz" not in everything


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_settings({}, tmp_path / "none.yaml")


def test_the_token_is_neither_a_flag_nor_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.cli import serve

    assert ENV_ONLY == ("admin_token",)
    assert not any("--admin-token" in parameter.opts for parameter in serve.params)
    monkeypatch.setenv("TASKPACK_ADMIN_TOKEN", "abcdefghijklmnopqrstuvwxyz")
    settings = load_settings({})
    assert settings.effective()["admin_token"] == REDACTED
    assert "abcdefghijklmnopqrstuvwxyz" not in repr(settings) + str(settings.effective())
    monkeypatch.delenv("TASKPACK_ADMIN_TOKEN")
    assert load_settings({}).effective()["admin_token"] is None


def test_every_setting_is_in_the_help() -> None:
    from service.cli import serve

    text = CliRunner().invoke(serve, ["--help"], terminal_width=200).output
    for name, field in Settings.model_fields.items():
        if name not in (*ENV_ONLY, ARGUMENT):
            assert flag_of(name) in text
            assert f"TASKPACK_{name.upper()}" in text
        assert field.description
