"""The commands of ``nodepass-orch``; those that ask a running daemon are in ``asking``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.asking import COMMANDS
from orchestrator.commands.fleet import fleet
from orchestrator.commands.shell import (
    DEFAULT_FILE,
    FAILED,
    LEVELS,
    WRONG,
    Group,
    fail,
    json_option,
    show,
    socket_option,
)
from orchestrator.process import paths
from orchestrator.process.process import hide_keys, mask_url, prepare_to_serve, program_version, say
from tunnel.model.spec import LogLevel
from tunnel.model.url import looks_like_url

if TYPE_CHECKING:
    from orchestrator.config.manifest import Manifest
    from orchestrator.process.logformat import LogWriter
    from orchestrator.supervisor.bus import Bus


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


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(program_version(), prog_name="nodepass-orch", message="%(prog)s %(version)s")
def cli() -> None:
    """Many TCP tunnels from one file.

    One tunnel alone: nodepass-orch 'server://TUNNEL_ADDR/TARGET_ADDR', and 'client://…' at the other end.
    """


def _manifest(file: str, log: str | None = None, *, is_check: bool = False) -> Manifest:
    from orchestrator.config.faults import ConfigError  # noqa: PLC0415
    from orchestrator.config.load import load  # noqa: PLC0415  pydantic takes a tenth of a second: only where a file is read

    if looks_like_url(file):
        fail(WRONG, f"a file is expected here; for one tunnel run: nodepass-orch '{mask_url(file)}'")
    if file == DEFAULT_FILE and not Path(file).exists():
        fail(WRONG, f"there is no {file} here; write one (configs/quickstart.yaml is a start) or name another file")
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
@click.option("-d", "--detach", is_flag=True, help="Run in the background; return when every tunnel was started.")
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="For tunnels that name none.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--read-only", is_flag=True, help="Take no commands; the file is still followed.")
@socket_option
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
    """Run the tunnels of FILE until SIGINT or SIGTERM; SIGHUP reads it again."""
    manifest = _manifest(file, log_level)
    if detach:
        options = [*(["--log-level", log_level] if log_level else []), "--log-format", log_format]
        options += ["--read-only"] * read_only + (["--socket", str(socket)] if socket else [])
        return _detach(manifest, socket, options)
    log = _log_writer(log_format)
    level = LogLevel[(log_level or "info").upper()]
    try:
        return asyncio.run(_serve(manifest, socket, log, level, read_only=read_only))
    except paths.SocketPathError as error:
        fail(FAILED, str(error))
    finally:
        log.close()


def _detach(manifest: Manifest, socket: Path | None, options: list[str]) -> int:
    from orchestrator.commands import detach  # noqa: PLC0415  only where it is wanted

    try:
        named = paths.given_socket(socket, os.environ) or paths.given_socket(manifest.supervisor.api.socket, {})
        daemon = detach.start(manifest.path, options, named, os.environ)
    except paths.SocketPathError as error:
        fail(FAILED, str(error))
    except detach.DetachError as error:
        fail(error.code, str(error))
    say(f"the daemon runs in the background as process {daemon.pid}; its log is {daemon.log}")
    return 0


def _log_writer(log_format: str) -> LogWriter:
    from orchestrator.process.logformat import LogWriter, as_json, as_text  # noqa: PLC0415  only for those that run tunnels

    return LogWriter(form=as_json if log_format == "json" else as_text)


async def _serve(manifest: Manifest, socket: Path | None, log: LogWriter, level: LogLevel, *, read_only: bool) -> int:
    from orchestrator import daemon  # noqa: PLC0415  the engine and aiohttp: only for those that run tunnels
    from orchestrator.supervisor import defects, service  # noqa: PLC0415  as above

    prepare_to_serve()
    defects.show_no_tracebacks()
    named = paths.given_socket(socket, os.environ)
    with daemon.claimed_socket(manifest, named, os.environ) as path:
        async with daemon.running(manifest, path, log, level, read_only=read_only) as supervisor:
            log.tell_trouble(_telling(supervisor.bus))
            for warning in map(str, manifest.warnings):
                supervisor.bus.tell(LogLevel.WARN, "config", warning)
            await service.live(supervisor)
    return 0


def _telling(bus: Bus) -> Callable[[str], None]:
    """Tell of the log's trouble where the log does not: callable from its thread."""
    loop = asyncio.get_running_loop()

    def tell(why: str) -> None:
        text = f"the log cannot be written: {why}; tunnels are not concerned, see nodepass-orch logs"
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended, and so has its log
            loop.call_soon_threadsafe(partial(bus.tell, LogLevel.WARN, "log", text))

    return tell


@cli.command()
@click.argument("file", default=DEFAULT_FILE)
@json_option
@click.option("--strict", is_flag=True, help="Warnings are faults.")
def check(*, file: str, as_json: bool, strict: bool) -> int:
    """Validate FILE: every fault as FILE:LINE:COLUMN: message."""
    from orchestrator.config.faults import ConfigError, Fault  # noqa: PLC0415  as in _manifest

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
        show({"path": file, "ok": not faults, "tunnels": count, **listed})
    else:
        for fault in faults:
            click.echo(str(fault))
        for warning in warnings:
            click.echo(f"{warning.place}: warning: {warning.message}")
        if not faults:
            say(f"{file} is valid: {count} {'tunnel' if count == 1 else 'tunnels'}")
    return WRONG if faults else 0


@cli.command()
@click.option("--no-tui", is_flag=True, help="Log to stderr instead of opening the dashboard.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="Seconds; then it ends by itself.")
def demo(*, no_tui: bool, duration: float | None) -> int:
    """Run a self-contained demonstration on this machine's loopback."""
    from orchestrator import demo as play  # noqa: PLC0415  brings everything that runs tunnels

    log = _log_writer("text")
    try:
        click.echo(play.run(duration, log))
    except paths.SocketPathError as error:
        fail(FAILED, str(error))
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
    from orchestrator.config.schema import json_schema  # noqa: PLC0415  as in _manifest

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of SHELL; for bash: source <(nodepass-orch completion bash)."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415  rarely wanted

    found = get_completion_class(shell)
    if found is None:
        fail(FAILED, f"there is no completion for {shell}")
    click.echo(found(cli, {}, "nodepass-orch", "_NODEPASS_ORCH_COMPLETE").source())
    return 0


for _command in (*COMMANDS, fleet):
    cli.add_command(_command)
