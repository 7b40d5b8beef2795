"""The commands of ``nodepass-orch``."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from orchestrator import paths
from orchestrator.client import Client, NoDaemonError, RefusedError
from orchestrator.process import hide_keys, mask_url, program_version, raise_file_limit, say, stop_signals
from orchestrator.table import table
from tunnel.options import nearest
from tunnel.spec import LogLevel
from tunnel.url import looks_like_url

if TYPE_CHECKING:
    from orchestrator.logformat import LogWriter
    from orchestrator.manifest import Manifest

FAILED, WRONG, NOT_UP, NO_DAEMON = 1, 2, 3, 4
"""Exit codes, besides 0."""

DEFAULT_FILE: Final = "tunnels.yaml"

_COLOURS: Final = {"up": "green", "failed": "red", "cooldown": "yellow", "draining": "cyan", "stopped": "bright_black"}
_LEVELS: Final = [level.name.lower() for level in LogLevel]
_LATER: Final = {
    "plan": "what a reload would change",
    "start": "start tunnels",
    "stop": "stop tunnels",
    "restart": "restart tunnels",
    "drain": "drain tunnels",
    "reload": "read the file again",
    "logs": "the log of tunnels",
    "events": "state changes, reloads, commands",
    "top": "the dashboard",
    "fleet": "many hosts over MQTT",
}


def run(arguments: Sequence[str]) -> int:
    """Run a command; the exit code."""
    hide_keys(arguments)
    try:
        code: Any = cli.main(list(arguments), prog_name="nodepass-orch", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG
    except click.UsageError as error:
        text = error.format_message().rstrip(".")
        say(text if text.endswith("?") else f"{text}; see nodepass-orch {_path(error)}--help")
        return WRONG
    except click.ClickException as error:
        say(error.format_message())
        return error.exit_code
    except click.Abort:
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what could not be written shall not be tried again at the exit
        say(f"cannot write the answer: {error.strerror}")
        return FAILED
    return code if isinstance(code, int) else 0


def _path(error: click.UsageError) -> str:
    _, _, command = (error.ctx.command_path if error.ctx else "").partition(" ")
    return f"{command} " if command else ""


def _fail(code: int, text: str) -> NoReturn:
    say(text)
    raise click.exceptions.Exit(code)


class _Group(click.Group):
    """Names the nearest command where somebody mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first argument."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            hint = nearest(args[0], known) or ", nor a URL such as server://0.0.0.0:10101/127.0.0.1:8080"
            raise click.UsageError(f"{mask_url(args[0])[:60]!r} is no command{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(program_version(), prog_name="nodepass-orch", message="%(prog)s %(version)s")
def cli() -> None:
    """Many TCP tunnels from one file.

    One tunnel alone: nodepass-orch 'server://TUNNEL_ADDR/TARGET_ADDR', and 'client://…' at the other end.
    """


_socket_option = click.option("--socket", type=click.Path(path_type=Path), help="Unix socket of the daemon.")
_file_option = click.option(
    "-f", "--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True, help="The daemon's file."
)


def _manifest(file: str, log: str | None = None, *, is_check: bool = False) -> Manifest:
    from orchestrator.config import load  # noqa: PLC0415  pydantic takes a tenth of a second: only where a file is read
    from orchestrator.faults import ConfigError  # noqa: PLC0415

    if looks_like_url(file):
        _fail(WRONG, f"a file is expected here; for one tunnel run: nodepass-orch '{mask_url(file)}'")
    if file == DEFAULT_FILE and not Path(file).exists():
        _fail(WRONG, f"there is no {file} here; write one (configs/quickstart.yaml is a start) or name another file")
    try:
        return load(Path(file), os.environ, log)
    except ConfigError as error:
        if is_check:
            raise
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(WRONG) from None


@cli.command()
@click.argument("file", default=DEFAULT_FILE)
@click.option("--no-tui", is_flag=True, help="Log to stderr instead of opening the dashboard.")
@click.option("-d", "--detach", is_flag=True, help="Run in the background.")
@click.option("--log-level", type=click.Choice(_LEVELS, case_sensitive=False), help="For tunnels that name none.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--read-only", is_flag=True, help="Take no commands.")
@_socket_option
def up(
    *,
    file: str,
    no_tui: bool,
    detach: bool,
    log_level: str | None,
    log_format: str,
    read_only: bool,
    socket: Path | None,
) -> int:
    """Run the tunnels of FILE until SIGINT or SIGTERM."""
    for flag, is_given in (("--detach", detach), ("--read-only", read_only)):
        if is_given:
            _fail(WRONG, f"{flag} is not in this version yet")
    manifest = _manifest(file, log_level)
    if not no_tui and sys.stderr.isatty():
        say("the dashboard is not in this version yet; the log goes here, as with --no-tui")
    log = _log_writer(log_format)
    try:
        return asyncio.run(_serve(manifest, socket, log, LogLevel[(log_level or "info").upper()]))
    except paths.SocketPathError as error:
        _fail(FAILED, str(error))
    finally:
        log.close()


def _without_effect(manifest: Manifest) -> list[str]:
    section = manifest.supervisor
    later = {
        "mqtt": section.mqtt,
        "metrics": section.metrics,
        "workers": section.workers,
        "api.listen": section.api.listen,
    }
    return [f"supervisor.{name} is not in this version yet; it has no effect" for name, value in later.items() if value]


def _log_writer(log_format: str) -> LogWriter:
    from orchestrator.logformat import LogWriter, as_json, as_text  # noqa: PLC0415  only for those that run tunnels

    return LogWriter(form=as_json if log_format == "json" else as_text)


async def _serve(manifest: Manifest, socket: Path | None, log: LogWriter, level: LogLevel) -> int:
    from orchestrator import daemon  # noqa: PLC0415  the engine and aiohttp: only for those that run tunnels

    raise_file_limit()
    named = paths.given_socket(socket, os.environ)
    with daemon.claimed_socket(manifest, named, os.environ) as path:
        async with daemon.running(manifest, path, log, level) as supervisor:
            for warning in (*map(str, manifest.warnings), *_without_effect(manifest)):
                supervisor.bus.tell(LogLevel.WARN, "config", warning)
            with stop_signals(supervisor.shutdown, supervisor.close):
                await supervisor.run()
    return 0


@cli.command()
@click.argument("file", default=DEFAULT_FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--strict", is_flag=True, help="Warnings are faults.")
def check(*, file: str, as_json: bool, strict: bool) -> int:
    """Validate FILE: every fault as FILE:LINE:COLUMN: message."""
    from orchestrator.faults import ConfigError, Fault  # noqa: PLC0415  as in _manifest

    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    count = None
    try:
        manifest = _manifest(file, is_check=True)
        warnings, count = manifest.warnings, len(manifest.entries)
    except ConfigError as error:
        faults = error.faults
    if strict:
        faults, warnings = (*faults, *warnings), ()
    if as_json:
        listed = {kind: [{**f.place.as_json(), "message": f.message} for f in found]
                  for kind, found in (("faults", faults), ("warnings", warnings))}  # fmt: skip
        click.echo(json.dumps({"path": file, "ok": not faults, "tunnels": count, **listed}, ensure_ascii=False))
    else:
        for fault in faults:
            click.echo(str(fault))
        for warning in warnings:
            click.echo(f"{warning.place}: warning: {warning.message}")
        if not faults:
            say(f"{file} is valid: {count} {'tunnel' if count == 1 else 'tunnels'}")
    return WRONG if faults else 0


def _client(socket: Path | None, file: Path) -> Client:
    named = paths.given_socket(socket, os.environ)
    return Client(named or paths.socket_to_ask(file, os.environ, os.getuid()))


def _asking(error: Exception) -> NoReturn:
    _fail(NO_DAEMON if isinstance(error, NoDaemonError) else FAILED, str(error))


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option("--json", "as_json", is_flag=True, help="The object of GET /v1/status.")
@click.option("--watch", is_flag=True, help="Keep showing it.")
@_socket_option
@_file_option
def ps(*, names: tuple[str, ...], as_json: bool, watch: bool, socket: Path | None, file: Path) -> int:
    """List the tunnels; NAME may be a pattern like edge-*. Exit 3 if one of them is not up."""
    if watch:
        _fail(WRONG, "--watch is not in this version yet")
    try:
        status = _client(socket, file).status()
    except (NoDaemonError, RefusedError, paths.SocketPathError) as error:
        _asking(error)
    tunnels = status["tunnels"]
    if names:
        for name in names:
            if not any(_matches(tunnel["name"], name) for tunnel in tunnels):
                _fail(FAILED, f"no tunnel is named {name!r}")
        tunnels = status["tunnels"] = [t for t in tunnels if any(_matches(t["name"], name) for name in names)]
    if as_json:
        click.echo(json.dumps(status, ensure_ascii=False))
    elif tunnels:
        click.echo(_show(tunnels))
    else:
        say("there are no tunnels")
    return 0 if all(tunnel["state"] == "up" for tunnel in tunnels) else NOT_UP


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _show(tunnels: list[dict[str, Any]]) -> str:
    is_terminal = sys.stdout.isatty()
    is_coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def paint(text: str, state: str) -> str:
        return click.style(text, fg=_COLOURS.get(state)) if is_coloured else text

    columns = shutil.get_terminal_size().columns if is_terminal else None
    return table(tunnels, columns=columns, paint=paint)


@cli.command()
@click.option("--wait", is_flag=True, help="Return when the daemon is gone.")
@_socket_option
@_file_option
def down(*, wait: bool, socket: Path | None, file: Path) -> int:
    """Drain all tunnels and end the daemon."""
    try:
        client = _client(socket, file)
        answer = client.shutdown()
    except (NoDaemonError, RefusedError, paths.SocketPathError) as error:
        _asking(error)
    say(f"the daemon is shutting down; {answer['active']} connections may finish")
    if wait:
        client.wait_gone()
    return 0


@cli.command()
@click.option("--no-tui", is_flag=True, help="Log to stderr instead of opening the dashboard.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="Seconds; then it ends by itself.")
def demo(*, no_tui: bool, duration: float | None) -> int:
    """Run a self-contained demonstration on this machine's loopback."""
    from orchestrator import demo as play  # noqa: PLC0415  brings everything that runs tunnels

    if not no_tui and sys.stderr.isatty():
        say("the dashboard is not in this version yet; the log goes here, as with --no-tui")
    log = _log_writer("text")
    try:
        click.echo(play.run(duration, log))
    except paths.SocketPathError as error:
        _fail(FAILED, str(error))
    finally:
        log.close()
    return 0


@cli.command()
def keygen() -> None:
    """Print a new key: 256 random bits, fit for a URL."""
    click.echo(secrets.token_urlsafe(32))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    from orchestrator.schema import json_schema  # noqa: PLC0415  as in _manifest

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of SHELL; for bash: source <(nodepass-orch completion bash)."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415  rarely wanted

    found = get_completion_class(shell)
    if found is None:
        _fail(FAILED, f"there is no completion for {shell}")
    click.echo(found(cli, {}, "nodepass-orch", "_NODEPASS_ORCH_COMPLETE").source())
    return 0


def _add_later(name: str, what: str) -> None:
    @cli.command(
        name, help=f"Not in this version yet: {what}.", context_settings={"ignore_unknown_options": True}, hidden=True
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def later(arguments: tuple[str, ...]) -> int:
        _fail(WRONG, f"{name} is not in this version yet")


for _name, _what in _LATER.items():
    _add_later(_name, _what)
