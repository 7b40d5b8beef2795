"""The commands that open the dashboard: ``top``, and ``up`` and ``demo`` on a terminal."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.commands.fleet import broker_at, credential_options
from orchestrator.commands.shell import FAILED, NO_DAEMON, WRONG, asking, client_at, fail, file_option, socket_option

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Broker
    from tui.sources import Source

_PATIENCE: Final = 20.0  # seconds in which a demonstration has to answer
_LOOK: Final = 0.05
_MOMENT: Final = 0.1  # seconds: where nobody listens any more, that is known at once
_FAREWELL: Final = 30.0  # seconds in which it has to end

Callback = Callable[..., Any]


def extend(group: click.Group) -> None:
    """Teach the command line the dashboard."""
    group.add_command(top)
    for name, shown in (("up", _up), ("demo", _demo)):
        command = group.commands[name]
        if command.callback is not None:
            command.callback = _on_terminals(command.callback, shown)


def _on_terminals(plain: Callback, shown: Callable[..., int]) -> Callback:
    def run(**options: Any) -> Any:  # noqa: ANN401  whatever the command has
        if options["no_tui"] or options.get("detach") or not _is_terminal():
            return plain(**options)
        return shown(plain, **options)

    return run


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


@click.command()
@socket_option
@file_option
@click.option("--api", metavar="URL", help="The API of a daemon elsewhere, as http://127.0.0.1:7070.")
@click.option("--token-file", type=click.Path(path_type=Path), help="With the token of that API.")
@click.option("--mqtt", "url", metavar="URL", help="All hosts of a broker: mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT].")
@credential_options
@click.option("--read-only", is_flag=True, help="Look, and change nothing.")
@click.option("--ascii", "is_ascii", is_flag=True, help="For terminals that know ASCII alone.")
@click.option("--keys", type=click.Path(path_type=Path), help="A file that gives commands other keys.")
@click.option("--web", is_flag=True, help="Show it in a browser; wants nodepass-orch[web].")
@click.option(
    "--web-listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Where the browser asks."
)
def top(  # noqa: PLR0913  one for each option
    *,
    socket: Path | None,
    file: Path,
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
    """The dashboard on a running daemon, or on all hosts of a broker. Leaving it leaves the tunnels running."""
    if url is not None:
        if api is not None or socket is not None or web:
            fail(WRONG, "--mqtt shows a fleet: it does not go with --socket, --api and --web")
        return _top_fleet(broker_at(url, **credentials), read_only=read_only, ascii_only=is_ascii, keys=keys)
    if any(value is not None for value in credentials.values()):
        fail(WRONG, "user, password and certificates are for a broker: name it with --mqtt URL")
    token = _token(token_file)
    if api is None:
        with asking():
            client = client_at(socket, file)
            client.status()
        where: Path | str = client.path
    elif api.startswith(("http://", "https://")):
        where = api.rstrip("/")
    else:
        fail(WRONG, f"--api: {api[:60]!r} is no address such as http://127.0.0.1:7070")
    if web:
        flags = ["--read-only"] * read_only
        flags += ["--keys", str(keys.absolute())] if keys else []
        flags += ["--token-file", str(token_file.absolute())] if token_file else []
        place = ["--socket", str(where.absolute())] if isinstance(where, Path) else ["--api", where]
        return _serve(shlex.join([sys.executable, "-m", "tui.command", "top", *place, *flags]), web_listen)
    _want_terminal("ps --json")
    _show(_daemon(where, token), read_only=read_only, ascii_only=is_ascii, keys=keys)
    return 0


def _want_terminal(instead: str) -> None:
    if not _is_terminal() and "TEXTUAL_DRIVER" not in os.environ:
        fail(WRONG, f"the dashboard wants a terminal; for programs there is: nodepass-orch {instead}")


def _top_fleet(broker: Broker, **options: Any) -> int:  # noqa: ANN401  those of the dashboard
    from orchestrator.mqtt.broker import BrokerError  # noqa: PLC0415  as in _show
    from tui.fleet import FleetSource, greet  # noqa: PLC0415

    _want_terminal("fleet ps --json")
    try:
        asyncio.run(greet(broker))
    except BrokerError as error:
        fail(NO_DAEMON, str(error))
    _show(FleetSource(broker), **options)
    return 0


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(FAILED, f"cannot read the token in {file}: {getattr(error, 'strerror', None) or 'it is not text'}")


def _serve(command: str, listen: str) -> int:
    try:
        from tui import web  # noqa: PLC0415  only where it is wanted, and only there it has to be installed
    except ImportError:
        fail(FAILED, "--web wants a further library: pip install 'nodepass-orch[web]'")
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        fail(WRONG, f"--web-listen: {listen[:60]!r} is no address such as 127.0.0.1:8000")
    return web.serve(command, host.strip("[]"), int(port), secrets.token_urlsafe(24))


def _daemon(where: Path | str, token: str | None = None) -> Source:
    from tui.sources import ApiSource  # noqa: PLC0415  as in _show

    return ApiSource(where, token)


def _show(source: Source, **options: Any) -> str:  # noqa: ANN401  those of the dashboard
    from tui import app, keys  # noqa: PLC0415  Textual takes a quarter of a second: only where something is shown

    options["keys"] = options.get("keys") or keys.usual_file(os.environ)
    try:
        return app.run(source, **options)
    except keys.KeysError as error:
        fail(WRONG, str(error))


def _up(plain: Callback, **options: Any) -> int:  # noqa: ANN401  those of the command
    """Start the daemon in the background, show it, and do with it in the end what the user says."""
    code: int = plain(**{**options, "detach": True})
    if code:
        return code
    with asking():
        client = client_at(options["socket"], Path(options["file"]))
        pid = client.status()["pid"]
    from tui.app import END  # noqa: PLC0415  as in _show

    wish = _show(_daemon(client.path), read_only=options["read_only"], owns_daemon=True)
    if client.wait_gone(_MOMENT):  # by somebody else's wish, or by a defect
        said = "the daemon has ended, and the tunnels with it"
    elif wish == END:
        with asking():  # a signal, for a daemon that takes no commands obeys it too
            os.kill(client.status()["pid"], signal.SIGTERM)
        client.wait_gone()
        said = "the tunnels have ended"
    else:
        ending = f"kill {pid}" if options["read_only"] else "nodepass-orch down"
        said = f"the tunnels run on; see them with nodepass-orch top, end them with {ending}"
    click.echo(f"nodepass-orch: {said}", err=True)
    return 0


def _demo(_: Callback, *, duration: float | None, **__: Any) -> int:  # noqa: ANN401  as above
    """Show the demonstration, end it, and pass on its summary."""
    with running_demo() as demo:
        _show(_daemon(demo.socket), duration=duration)
    click.echo(demo.summary, nl=False)
    return demo.code


@dataclass(slots=True)
class Demo:
    """A demonstration in a process of its own; what it says and how it ended is known in the end."""

    socket: Path
    summary: str = ""
    code: int = 0


@contextmanager
def running_demo() -> Iterator[Demo]:
    """Run a demonstration beside us until the context ends; where it does not start, its log tells why."""
    command = [sys.executable, "-m", "orchestrator.cli", "demo", "--no-tui"]
    with tempfile.TemporaryDirectory(prefix="np-") as folder, (Path(folder) / "log").open("w+b") as log:
        process = subprocess.Popen(  # noqa: S603  our own program
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            env={**os.environ, "TMPDIR": folder},
        )  # fmt: skip
        try:
            socket = _socket_of_demo(process, Path(folder))
            if socket is None:
                log.seek(0)
                click.echo(log.read().decode(errors="replace"), err=True, nl=False)
                fail(process.poll() or FAILED, "the demonstration did not start")
            demo = Demo(socket)
            yield demo
        finally:
            process.send_signal(signal.SIGTERM)
            out, _said = process.communicate(timeout=_FAREWELL)
        demo.summary, demo.code = out.decode(errors="replace"), process.returncode


def _socket_of_demo(process: subprocess.Popen[bytes], folder: Path) -> Path | None:
    """Its socket, once there is one; None where it ended, or did not come up in time."""
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        for socket in folder.glob("*/*.sock"):
            return socket
        time.sleep(_LOOK)
    return None
