"""`taskpack serve`: settings from flags, environment and file; a socket; a token; and the server on them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from masks_store import InvalidInput, Store

from .app import create_app
from .early_stop import heed
from .flags import settings_flags
from .server import listen, url_of
from .server import serve as run_server
from .settings import Settings, load_settings
from .tokens import AdminToken, admin_token

log = logging.getLogger("taskpack.service")


@click.command()
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings. [TASKPACK_CONFIG]")
@settings_flags
def serve(config: Path | None, **flags: Any) -> None:
    """Serve a store over HTTP.

    Every flag is also an environment variable and a key of the --config file; a flag wins over the environment, the
    environment over the file.
    """
    heed()
    settings = load_settings({name: value for name, value in flags.items() if value is not None}, config)
    if settings.store is None:
        raise InvalidInput("no store is named: taskpack serve STORE")
    set_up_logging(settings.log_level)
    opened = Store.open(settings.store.absolute())
    heed()
    sock = listen(settings.host, settings.port)
    try:
        port = sock.getsockname()[1]
        token = admin_token(settings, port)
        try:
            app = create_app(settings.model_copy(update={"port": port}), opened, admin_token=token.text)
            _warn(settings)
            run_server(app, settings, sock, lambda: _greet(settings, url_of(sock), token))
        finally:
            if token.made and token.path and settings.port == 0:
                token.path.unlink(missing_ok=True)  # nobody will ever look for this port again
    finally:
        sock.close()
        opened.close()


def set_up_logging(level: str) -> None:
    """Log to stderr, one line per record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    for name in ("taskpack", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    logging.getLogger("uvicorn").setLevel(max(logging.getLogger("taskpack").level, logging.WARNING))


def _warn(settings: Settings) -> None:
    if not (settings.keys_file or settings.on_loopback or settings.open):
        log.warning(
            "predictions are closed: the address is not loopback and there is no key; add --keys-file, or --open to "
            "let in everybody who can reach it"
        )
    if settings.keys_file and settings.open:
        log.warning("--open means nothing with --keys-file: every prediction needs a key")


def _greet(settings: Settings, url: str, token: AdminToken) -> None:
    click.echo(f"serving {settings.store} at {url}  (API: {url}/docs)")
    click.echo(f"admin token: {token.path or 'from TASKPACK_ADMIN_TOKEN'}")
    sys.stdout.flush()
