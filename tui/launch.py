"""The command ``top``, and what opens the dashboard for ``up`` and ``demo`` on a terminal."""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common import (
    EXIT_FAILED,
    EXIT_NO_DAEMON,
    EXIT_USAGE,
    exit_on_api_error,
    exit_with_error,
    file_argument,
    is_terminal,
    make_client,
    socket_option,
)
from orchestrator.commands.fleet import broker_at, credential_options
from tunnel.model.files import FileError, read_secret
from tunnel.runtime.python_programs import module_command, python_environment

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Broker
    from tui.sources.base import Source


class Launcher:
    """Opens the dashboard on the daemon of ``up`` or ``demo`` (see ``DashboardLauncher``)."""

    def show_daemon(
        self, socket_path: Path, *, read_only: bool = False, owns_daemon: bool = False, duration_s: float | None = None
    ) -> bool:
        """Show the daemon at a socket until the user leaves. Returns True if the user asked to stop the daemon."""
        from tui.app import END  # noqa: PLC0415  as in _run_dashboard

        source = _daemon_source(socket_path)
        return _run_dashboard(source, read_only=read_only, owns_daemon=owns_daemon, duration=duration_s) == END


@click.command()
@socket_option
@file_argument(Path)
@click.option("--api", metavar="URL", help="The API of a daemon on another host, as http://127.0.0.1:7070.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token of that API.")
@click.option("--mqtt", "url", metavar="URL", help="All hosts of a broker: mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT].")
@credential_options
@click.option("--read-only", is_flag=True, help="Show only; disable commands.")
@click.option("--ascii", "is_ascii", is_flag=True, help="Draw with ASCII characters only.")
@click.option("--keys", type=click.Path(path_type=Path), help="File that assigns other keys to commands.")
@click.option("--web", is_flag=True, help="Show it in a browser; requires nodepass-orch[web].")
@click.option(
    "--web-listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Address for the browser."
)
def top(  # noqa: PLR0913  one for each option
    *,
    socket: Path | None,
    file: Path | None,
    api: str | None,
    token_file: Path | None,
    url: str | None,
    read_only: bool,
    is_ascii: bool,
    keys: Path | None,
    web: bool,
    web_listen: str,
    **credentials: Any,  # noqa: ANN401  those of the broker
) -> int:
    """Open the dashboard on a running daemon, or on all hosts of a broker. The tunnels run on when it is closed."""
    if url is not None:
        if api is not None or socket is not None or web:
            exit_with_error(EXIT_USAGE, "--mqtt shows a fleet and cannot be used with --socket, --api or --web")
        _show_fleet(broker_at(url, **credentials), read_only=read_only, ascii_only=is_ascii, keys=keys)
        return 0
    if any(value is not None for value in credentials.values()):
        exit_with_error(EXIT_USAGE, "user, password and certificates are for a broker: add --mqtt URL")
    token = _read_token(token_file)
    place = _daemon_place(api, socket, file)
    if web:
        flags = ["--read-only"] * read_only
        flags += ["--keys", str(keys.absolute())] if keys else []
        flags += ["--token-file", str(token_file.absolute())] if token_file else []
        where = ["--socket", str(place.absolute())] if isinstance(place, Path) else ["--api", place]
        return _serve_web(_shell_command(module_command("tui.cli", "top", *where, *flags)), web_listen)
    _require_terminal("ps --json")
    _run_dashboard(_daemon_source(place, token), read_only=read_only, ascii_only=is_ascii, keys=keys)
    return 0


def _shell_command(command: list[str]) -> str:
    """Return a command for the shell that starts it for each browser, with its environment for Python."""
    path = python_environment(os.environ).get("PYTHONPATH")
    prefix = ["env", f"PYTHONPATH={path}"] if path else ["env", "-u", "PYTHONPATH"]
    return shlex.join([*prefix, *command])


def _daemon_place(api: str | None, socket: Path | None, file: Path | None) -> Path | str:
    """Return the socket of a daemon that answers, or the base URL of an API."""
    if api is None:
        with exit_on_api_error():
            client = make_client(socket, file)
            client.status()
        return client.path
    if not api.startswith(("http://", "https://")):
        exit_with_error(EXIT_USAGE, f"--api: {api[:60]!r} is not an address such as http://127.0.0.1:7070")
    return api.rstrip("/")


def _require_terminal(alternative: str) -> None:
    if not is_terminal() and "TEXTUAL_DRIVER" not in os.environ:
        exit_with_error(EXIT_USAGE, f"the dashboard requires a terminal; scripts can use: nodepass-orch {alternative}")


def _show_fleet(broker: Broker, **options: Any) -> None:  # noqa: ANN401  those of the dashboard
    from orchestrator.mqtt.broker import BrokerError  # noqa: PLC0415  as in _run_dashboard
    from orchestrator.process.setup import run_event_loop  # noqa: PLC0415
    from tui.sources.fleet import FleetSource, check_broker  # noqa: PLC0415

    _require_terminal("fleet ps --json")
    try:
        run_event_loop(check_broker(broker))
    except BrokerError as error:
        exit_with_error(EXIT_NO_DAEMON, str(error))
    _run_dashboard(FleetSource(broker), **options)


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return read_secret(file)
    except FileError as error:
        exit_with_error(EXIT_FAILED, f"cannot read the token in {file}: {error}")


def _serve_web(command: str, listen: str) -> int:
    try:
        from tui import web  # noqa: PLC0415  textual-serve is an optional dependency
    except ImportError:
        exit_with_error(EXIT_FAILED, "--web requires another library: pip install 'nodepass-orch[web]'")
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        exit_with_error(EXIT_USAGE, f"--web-listen: {listen[:60]!r} is not an address such as 127.0.0.1:8000")
    return web.serve(command, host.strip("[]"), int(port), secrets.token_urlsafe(24))


def _daemon_source(place: Path | str, token: str | None = None) -> Source:
    from tui.sources.daemon import ApiSource  # noqa: PLC0415  as in _run_dashboard

    return ApiSource(place, token)


def _run_dashboard(source: Source, **options: Any) -> str:  # noqa: ANN401  those of the dashboard
    from tui import app  # noqa: PLC0415  Textual takes a quarter of a second: import it where it is shown
    from tui.model import keys  # noqa: PLC0415  as above

    options["keys"] = options.get("keys") or keys.default_key_file(os.environ)
    try:
        return app.run(source, **options)
    except keys.KeyFileError as error:
        exit_with_error(EXIT_USAGE, str(error))
