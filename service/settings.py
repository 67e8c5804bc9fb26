"""Every setting of the server, once: a field here is a flag, an environment variable, a YAML key and a row of /info.

`max_body_bytes` is `--max-body-bytes`, `TASKPACK_MAX_BODY_BYTES` and the YAML key `max_body_bytes` (or
`max-body-bytes`). A flag wins over the environment, the environment over the file, the file over the default. The
admin token alone is no flag and no YAML key: a command line and a committed file can be read by others.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from masks_store import InvalidInput

ENV_PREFIX = "TASKPACK_"
ENV_ONLY = ("admin_token",)
REDACTED = "**********"

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Threads = Annotated[int, Field(ge=1, le=4096)]
Bytes = Annotated[ByteSize, Field(ge=1)]


class Settings(BaseSettings):
    """The server's settings; the description of each field is its help text."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=False
    )

    # where
    store: Path | None = Field(default=None, description="The store to serve: a directory made by `taskpack init`.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one and prints it.")

    # who may do what
    open: bool = Field(
        default=False,
        description="Without keys: answer predict and metrics calls although the address is not loopback.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts answered besides localhost, 127.0.0.1 and [::1], separated by commas: names, "
        "`*.example.org` for every name under it, addresses, `10.0.0.0/8` for every address in it; without ports.",
    )
    keys_file: Path | None = Field(
        default=None, description="YAML or JSON file of hashed keys; read again when it changes."
    )
    admin_token_file: Path | None = Field(default=None, description="File that holds the admin token.")
    admin_token: SecretStr | None = Field(
        default=None, description="The admin token itself; made at first serve when neither is given."
    )

    # the engine
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where the network runs: auto, cpu, cuda or cuda:N.",
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="Arithmetic of the engine.")
    workers: Threads | None = Field(
        default=None, description="Engine workers; by default one per core, or one per GPU."
    )
    worker_threads: Threads = Field(default=1, description="Threads inside one engine worker.")
    max_batch: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="Most images in one forward pass.")
    queue_limit_s: Seconds = Field(
        default=10.0, description="Longest estimated wait, to be decoded or computed, before 503, in seconds."
    )
    max_delay_ms: Annotated[float, Field(ge=0.0, le=1000.0)] = Field(
        default=0.0,
        description="On a GPU, how long a request waits for others to share its batch; a CPU gains nothing by it.",
    )
    slot_bytes: Bytes | None = Field(
        default=None, description="Memory for materialised views of tasks; planned when unset."
    )
    host_bytes: Bytes | None = Field(default=None, description="Host memory for coded artifacts; planned when unset.")

    auto_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.01,
        description="With task=auto, images less typical of the named task than this share of its own are refused.",
    )

    # limits of one request
    max_body_bytes: Bytes = Field(default=ByteSize(32 << 20), description="Largest body of a prediction.")
    max_artifact_bytes: Bytes = Field(default=ByteSize(1 << 30), description="Largest artifact that may be registered.")
    max_images: Annotated[int, Field(ge=1, le=1024)] = Field(default=32, description="Most images in one request.")
    max_tasks: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Most tasks asked in one request.")
    max_labels: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        default=500_000,
        description="Most labels in one answer: images times tasks times top_k, or all their classes.",
    )
    max_pixels: Annotated[int, Field(ge=64, le=50_000_000)] = Field(
        default=50_000_000, description="Most pixels of one image, read from its header before anything is decoded."
    )
    max_headers: Annotated[int, Field(ge=8, le=10_000)] = Field(
        default=100, description="Most header lines of a request."
    )
    max_header_bytes: Annotated[ByteSize, Field(ge=1024)] = Field(
        default=ByteSize(32 << 10), description="Largest request line and headers together."
    )
    header_timeout_s: Seconds = Field(
        default=15.0, description="Time for a request line and headers to arrive, in seconds."
    )
    body_timeout_s: Seconds = Field(default=30.0, description="Time for a prediction's body to arrive, in seconds.")
    artifact_timeout_s: Seconds = Field(default=600.0, description="Time for an artifact to arrive, in seconds.")
    keep_alive_s: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=15, description="How long an idle connection is kept, in seconds."
    )
    timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = Field(
        default=30_000, description="Deadline of a prediction that names none, in milliseconds."
    )

    # limits of all requests together
    max_requests: Count = Field(
        default=1024, description="Most requests worked on at once; further ones are answered 503."
    )
    max_inflight_bytes: Bytes = Field(
        default=ByteSize(2 << 30), description="Memory for all request bodies at once; further ones are answered 503."
    )
    max_uploads: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="Artifacts being registered at once."
    )
    max_writes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=16, description="Changes of labels, versions and tasks at once; further ones are answered 503."
    )
    decode_threads: Threads | None = Field(
        default=None, description="Threads that decode images; by default one per core."
    )
    gpu_decode: bool = Field(
        default=False, description="Decode plain JPEGs on the GPU, those that wait together in one call."
    )

    # living and dying
    poll_s: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = Field(
        default=0.5, description="How often the store is asked for changes, in seconds."
    )
    drain_grace: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        default=0.0, description="After SIGTERM: how long to keep accepting while /readyz already says no, in seconds."
    )
    drain_timeout: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        default=30.0, description="Then: how long accepted requests may take to finish, in seconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="What is logged.")
    access_log: bool = Field(default=True, description="Log one line per request.")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _comma_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):  # pyright: ignore[reportUnknownVariableType]
            raise ValueError("expected host names separated by commas")
        return tuple(name.strip().lower() for item in value for name in item.split(",") if name.strip())  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]

    @field_validator("allowed_hosts")
    @classmethod
    def _plain_hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        faults = [fault for name in names if (fault := _host_fault(name))]
        if faults:
            raise ValueError("; ".join(faults))
        return names

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the address that is listened on."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def effective(self) -> dict[str, Any]:
        """Every setting as JSON, secrets redacted."""
        values = self.model_dump(mode="json")
        return {name: REDACTED if name in ENV_ONLY and value is not None else value for name, value in values.items()}


@lru_cache(maxsize=1024)  # asked at every request that names an address
def network_of(host: str) -> Network | None:
    """The addresses that an entry of `allowed_hosts` stands for; None for a name.

    Args:
        host: an address (of IPv6 also in brackets), a range of them as `10.0.0.0/8`, or a name.
    """
    try:
        return ipaddress.ip_network(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return None


def _host_fault(name: str) -> str | None:
    """What is wrong with an entry of `allowed_hosts`, and the mend; None where nothing is."""
    if network_of(name) is not None:
        return None
    host, separator, port = name.rpartition(":")
    if separator and port.isdecimal() and (":" not in host or host.endswith("]")):
        return f"{name!r} has a port, which is never looked at: say {host!r}"
    address, slash, _ = name.partition("/")
    if slash and network_of(address) is not None:
        return f"{name!r} is not a range of addresses: its bits behind the prefix must be zero, as in `10.0.0.0/8`"
    bare = name.removeprefix("*.")
    if not bare or any(character in bare for character in "*/@ ?#:[]"):
        return f"{name!r} is not a host name; name each one, or `*.example.org` for all under it"
    return None


def flag_of(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from flags, environment, a YAML file and the defaults, the first that names a field winning.

    Args:
        flags: field name to value, only of flags that were given.
        config: a YAML file of fields; `TASKPACK_CONFIG` where None.

    Raises:
        InvalidInput: with every unknown or wrong setting.
    """
    if config is None and os.environ.get(ENV_PREFIX + "CONFIG"):
        config = Path(os.environ[ENV_PREFIX + "CONFIG"])
    from_file = read_config(config) if config else {}

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=from_file)

    try:
        loaded = Loaded(**flags)
    except ValidationError as error:
        faults = [_fault(fault["loc"], fault["msg"]) for fault in error.errors(include_url=False)]
        raise InvalidInput(f"{len(faults)} setting(s) cannot be used", faults) from error
    return Settings.model_construct(**{name: getattr(loaded, name) for name in Settings.model_fields})


def read_config(path: Path) -> dict[str, Any]:
    """The fields that a YAML file names.

    Raises:
        InvalidInput: no such file, no YAML mapping, or a key that is no setting; every one is named.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--config {path}: cannot be read ({_reason(error)})") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none; nested without end
        raise InvalidInput(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidInput(f"--config {path}: expected `name: value` lines, found {type(content).__name__}")
    fields = {str(name).replace("-", "_"): value for name, value in content.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    faults = list(_unknown(fields, path))
    if faults:
        raise InvalidInput(f"--config {path}: {len(faults)} key(s) are not settings", faults)
    return fields


def _unknown(names: Iterable[str], path: Path) -> Iterable[str]:
    for name in names:
        if name in ENV_ONLY:
            yield f"{name} does not belong in {path}: set {ENV_PREFIX}{name.upper()} or --admin-token-file"
        elif name not in Settings.model_fields:
            yield f"{name} is not a setting; `taskpack serve --help` lists them"


def _fault(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]) if location else "settings"
    return (
        f"{ENV_PREFIX + name.upper() if name in ENV_ONLY else flag_of(name)}: {message.removeprefix('Value error, ')}"
    )


def _reason(error: Exception) -> str:
    return (error.strerror or "I/O error") if isinstance(error, OSError) else "not UTF-8 text"
