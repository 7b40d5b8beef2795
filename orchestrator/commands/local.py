"""The commands that need no running daemon: they run tunnels, or check and print something."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from orchestrator.client import NoDaemonError, RequestRefusedError
from orchestrator.commands.common import (
    DEFAULT_FILE,
    EXIT_FAILED,
    EXIT_USAGE,
    LEVELS,
    DashboardLauncher,
    exit_on_api_error,
    exit_with_error,
    file_argument,
    is_as_wanted,
    is_terminal,
    json_option,
    make_client,
    parse_duration_option,
    print_json,
    socket_option,
)
from orchestrator.config.example import SMALLEST_FILE
from orchestrator.process import socket_paths
from orchestrator.process.arguments import mask_url
from orchestrator.process.messages import print_message
from orchestrator.process.state_directory import absolute_path, logical_directory
from orchestrator.process.terminal_text import printable, printable_lines
from tunnel.model.keys import generate_key
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.url import looks_like_url
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from orchestrator.commands.background import BackgroundDaemon
    from orchestrator.config.faults import Fault
    from orchestrator.config.manifest import Manifest
    from orchestrator.process.logformat import LogWriter
    from orchestrator.status.json_types import TunnelJson
    from orchestrator.supervisor.event_bus import EventBus

_POLL_INTERVAL_S: Final = 0.1
_FIRST_ATTEMPT_S: Final = 1.0
_ATTEMPTING: Final = frozenset({State.STARTING, State.CONNECTING})
_FAILING: Final = frozenset({State.COOLDOWN, State.FAILED})
_GONE_TIMEOUT_S: Final = 0.1  # a connection to a socket without a listener is refused at once


def _load_manifest(
    file: str, log: str | None = None, *, is_check: bool = False, shown_from: Path | None = None
) -> Manifest:
    """Load a file. An invalid one ends the command; with ``is_check`` it raises ConfigError.

    Places in files below the directory ``shown_from`` are printed relative to it.
    """
    from orchestrator.config.faults import ConfigError  # noqa: PLC0415
    from orchestrator.config.file_set import StuckFileError  # noqa: PLC0415
    from orchestrator.config.load import load  # noqa: PLC0415  pydantic takes 100 ms: import it where a file is read

    if looks_like_url(file):
        exit_with_error(EXIT_USAGE, f"expected a file; to run a single tunnel: nodepass-orch '{mask_url(file)}'")
    if absolute_path(Path(file)) == absolute_path(Path(DEFAULT_FILE)) and not Path(file).exists():
        hint = f"name another file, or create this one: {SMALLEST_FILE}"
        exit_with_error(EXIT_USAGE, f"there is no {DEFAULT_FILE} in this directory; {hint}")
    try:
        return _load_in_thread(partial(load, Path(file), os.environ, log))
    except StuckFileError as error:
        exit_with_error(EXIT_FAILED, f"cannot read {printable(file)}: {error}")
    except ConfigError as error:
        if is_check:
            raise
        prefix = f"{shown_from}/" if shown_from else ""
        lines = [line.removeprefix(prefix) for line in str(error).split("\n")]
        click.echo(printable_lines("\n".join(lines)), err=True)
        raise click.exceptions.Exit(EXIT_USAGE) from None


def _load_in_thread(load: Callable[[], Manifest]) -> Manifest:
    """Load in another thread, so that process signals are obeyed while a network file system does not answer."""
    import asyncio  # noqa: PLC0415  as above

    from orchestrator.config.file_set import run_in_file_thread  # noqa: PLC0415
    from tunnel.runtime.blocking_calls import ThreadShortageError  # noqa: PLC0415

    try:
        return asyncio.run(run_in_file_thread(load))
    except ThreadShortageError:
        return load()


@click.command()
@click.option("--no-tui", is_flag=True, help="Log to stderr instead of opening the dashboard.")
@click.option("-d", "--detach", is_flag=True, help="Run in the background; return when the tunnels are started.")
@click.option("--wait", is_flag=True, help="As --detach; return when every enabled tunnel is up.")
@click.option(
    "--timeout",
    metavar="DURATION",
    default="60s",
    show_default=True,
    callback=parse_duration_option,
    help="The limit of --wait.",
)
@click.option(
    "--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="For tunnels that do not set a level."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-file",
    type=click.Path(path_type=Path),
    help="Write the log to this file; SIGHUP reopens it, and at 16 MiB it becomes FILE.1.",
)
@click.option("--read-only", is_flag=True, help="Reject commands; changes of the file still apply.")
@socket_option
@file_argument(str)
@click.pass_obj
def up(  # noqa: PLR0913  one for each option
    launcher: DashboardLauncher | None,
    *,
    file: str | None,
    no_tui: bool,
    detach: bool,
    wait: bool,
    timeout: float,
    log_level: str | None,
    log_format: str,
    log_file: Path | None,
    read_only: bool,
    socket: Path | None,
) -> int:
    """Run the tunnels of FILE until SIGINT or SIGTERM; SIGHUP reloads the file.

    On a terminal the daemon runs in the background, and the dashboard opens. With --detach the command returns when all
    enabled tunnels are started, which may be before they are up; with --wait when they are up, or with exit code 1.
    """
    shown_from = None if file and file.startswith("/") else logical_directory()
    manifest = _load_manifest(file := _name_file(file), log_level, shown_from=shown_from)
    has_dashboard = launcher is not None and not no_tui and is_terminal()
    if detach or wait or has_dashboard:
        options = [*(["--log-level", log_level] if log_level else []), "--log-format", log_format]
        options += ["--read-only"] * read_only + (["--socket", str(socket)] if socket else [])
        daemon = _start_in_background(manifest, socket, options, log_file)
        try:
            print_message(f"the daemon runs in the background as process {daemon.pid}; its log is {daemon.log}")
            if wait:
                return _wait_until_up(socket, Path(file), timeout)
        except (KeyboardInterrupt, SystemExit):  # SystemExit: see early_signals.raise_on_stop_signals
            print_message(f"interrupted; the daemon keeps running, end it with: nodepass-orch down -f {file}")
            raise
        if launcher is not None and not detach:
            _show_daemon(launcher, socket, Path(file), read_only=read_only)
        else:
            _report_first_failures(socket, Path(file))
        return 0
    from orchestrator.process.setup import run_event_loop  # noqa: PLC0415  asyncio: only to run tunnels

    log = _log_writer(log_format, log_file)
    level = LogLevel[(log_level or "info").upper()]
    try:
        return run_event_loop(_serve(manifest, socket, log, level, read_only=read_only))
    except socket_paths.SocketPathError as error:
        exit_with_error(EXIT_FAILED, str(error))
    finally:
        log.close()


def _name_file(file: str | None) -> str:
    """Return the absolute name under which a daemon reads its file.

    The kernel keeps the working directory that the daemon was started in, also if it is renamed or removed, or if the
    link to it is pointed elsewhere. The daemon has to see what is at the path now.
    """
    name = file or DEFAULT_FILE
    return name if looks_like_url(name) else str(logical_directory() / name)


def _report_first_failures(socket: Path | None, file: Path) -> None:
    """Print which tunnels failed at their first attempt, such as a listener whose address is taken.

    It takes as long as the attempts, and a second at most; --wait waits for the end of them.
    """
    deadline = time.monotonic() + _FIRST_ATTEMPT_S
    with contextlib.suppress(NoDaemonError, RequestRefusedError):  # it started and may have ended meanwhile
        client = make_client(socket, file)
        while True:
            tunnels = client.status()["tunnels"]
            if time.monotonic() > deadline or not any(tunnel["state"] in _ATTEMPTING for tunnel in tunnels):
                break
            time.sleep(_POLL_INTERVAL_S)
        if failed := [tunnel for tunnel in tunnels if tunnel["state"] in _FAILING]:
            print_message(f"not in order yet: {_describe_first(failed)}; see nodepass-orch ps")


def _describe_first(tunnels: Sequence[TunnelJson]) -> str:
    """Return the first tunnel with its reason, and how many more there are."""
    from orchestrator.table import describe_reason  # noqa: PLC0415  not needed by a daemon

    first, more = tunnels[0], len(tunnels) - 1
    text = f"{first['name']} ({first['state']}: {describe_reason(first)})"
    return printable(f"{text} and {more} more" if more else text)


def _wait_until_up(socket: Path | None, file: Path, timeout_s: float) -> int:
    """Wait until every enabled tunnel is up. Returns the exit code: EXIT_FAILED after ``timeout_s``.

    The first reason why one is not up is printed meanwhile: the wait may be long, and may be interrupted.
    """
    began = time.monotonic()
    deadline, has_reported = began + timeout_s, False
    with exit_on_api_error():
        client = make_client(socket, file)
        while missing := [tunnel for tunnel in client.status()["tunnels"] if not is_as_wanted(tunnel)]:
            if time.monotonic() > deadline:
                missing.sort(key=lambda tunnel: tunnel["state"] not in _FAILING)
                print_message(
                    f"the daemon runs, but after {timeout_s:g} s it has not brought up {_describe_first(missing)}"
                )
                return EXIT_FAILED
            failing = [tunnel for tunnel in missing if tunnel["state"] in _FAILING]
            if failing and not has_reported and time.monotonic() > began + _FIRST_ATTEMPT_S:
                has_reported = True
                print_message(f"not up yet: {_describe_first(failing)}; waiting for {timeout_s:g} s at most")
            time.sleep(_POLL_INTERVAL_S)
    return 0


def _start_in_background(
    manifest: Manifest, socket: Path | None, options: list[str], log_file: Path | None
) -> BackgroundDaemon:
    from orchestrator.commands import background  # noqa: PLC0415  imported where a process is started

    try:
        named = socket_paths.explicit_socket(socket, os.environ) or socket_paths.explicit_socket(
            manifest.supervisor.api.socket, {}
        )
        daemon = background.start_daemon(manifest.path, options, named, os.environ, log_file)
    except socket_paths.SocketPathError as error:
        exit_with_error(EXIT_FAILED, str(error))
    except background.BackgroundStartError as error:
        exit_with_error(error.exit_code, str(error))
    return daemon


def _show_daemon(launcher: DashboardLauncher, socket: Path | None, file: Path, *, read_only: bool) -> None:
    """Show the daemon that was started in the background; stop it or leave it running, as the user chooses."""
    with exit_on_api_error():
        client = make_client(socket, file)
        pid = client.status()["pid"]
    stop_requested = launcher.show_daemon(client.path, read_only=read_only, owns_daemon=True)
    if client.wait_until_ended(_GONE_TIMEOUT_S):  # another client stopped it, or it crashed
        print_message("the daemon has ended, and so have its tunnels")
    elif stop_requested:
        with contextlib.suppress(ProcessLookupError):  # by process signal: a daemon that rejects commands obeys it too
            os.kill(pid, signal.SIGTERM)
        client.wait_until_ended()
        print_message("the tunnels have ended")
    else:
        stop_command = f"kill {pid}" if read_only else "nodepass-orch down"
        print_message(f"the tunnels keep running; show them with: nodepass-orch top; end them with: {stop_command}")


def _log_writer(log_format: str, path: Path | None = None) -> LogWriter:
    from orchestrator.process.log_file import LogFile  # noqa: PLC0415  only to run tunnels
    from orchestrator.process.logformat import LogWriter, as_json, as_text  # noqa: PLC0415  as above

    file = None if path is None else LogFile(absolute_path(path))
    try:
        if file is not None:
            file.open()
        return LogWriter(form=as_json if log_format == "json" else as_text, file=file)
    except OSError as error:
        exit_with_error(EXIT_FAILED, f"cannot write the log{f' {path}' if path else ''}: {error.strerror}")


async def _serve(manifest: Manifest, socket: Path | None, log: LogWriter, level: LogLevel, *, read_only: bool) -> int:
    gc.disable()  # imports leave no garbage, and the search for it took a tenth of the time until the daemon serves
    from orchestrator import daemon  # noqa: PLC0415  the engine and aiohttp: only to run tunnels
    from orchestrator.process.setup import prepare_serving_process  # noqa: PLC0415  as above
    from orchestrator.supervisor import crash_reports, service  # noqa: PLC0415
    from tunnel.model.events import EventKind  # noqa: PLC0415

    prepare_serving_process()
    crash_reports.suppress_tracebacks()
    named = socket_paths.explicit_socket(socket, os.environ)
    with daemon.claimed_daemon(manifest, named, os.environ) as claim:
        async with daemon.running_daemon(manifest, claim, log, level, read_only=read_only) as supervisor:
            log.on_problem(_log_problem_reporter(supervisor.bus))
            for warning in map(str, manifest.warnings):
                supervisor.bus.emit(LogLevel.WARN, EventKind.CONFIG, warning)
            await service.run_service(supervisor, log.reopen)
    return 0


def _log_problem_reporter(bus: EventBus) -> Callable[[str], None]:
    """Return a function for the log's thread that reports problems of the log as events."""
    import asyncio  # noqa: PLC0415  as above

    from tunnel.model.events import EventKind  # noqa: PLC0415

    loop = asyncio.get_running_loop()

    def report(problem: str) -> None:
        text = f"{problem}; the tunnels are not affected, see nodepass-orch logs"
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
            loop.call_soon_threadsafe(partial(bus.emit, LogLevel.WARN, EventKind.LOG, text))

    return report


@click.command()
@json_option
@click.option("--strict", is_flag=True, help="Treat warnings as faults.")
@file_argument(str)
def check(*, file: str | None, as_json: bool, strict: bool) -> int:
    """Validate FILE: every fault as FILE:LINE:COLUMN: message."""
    from orchestrator.config.faults import ConfigError  # noqa: PLC0415  as in _load_manifest

    file = file or DEFAULT_FILE
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    count = None
    try:
        manifest = _load_manifest(file, is_check=True)
        warnings, count = manifest.warnings, len(manifest.entries)
    except ConfigError as error:
        faults, warnings = error.faults, error.warnings
    if strict:
        faults, warnings = (*faults, *warnings), ()
    if as_json:
        listed = {kind: [{**f.place.as_json(), "message": f.message} for f in found]
                  for kind, found in (("faults", faults), ("warnings", warnings))}  # fmt: skip
        print_json({"path": file, "ok": not faults, "tunnels": count, **listed})
    else:
        for fault in faults:
            click.echo(printable(str(fault)))
        for warning in warnings:
            click.echo(printable(f"{warning.place}: warning: {warning.message}"))
        if not faults:
            print_message(f"{file} is valid: {plural(count or 0, 'tunnel')}")
    return EXIT_USAGE if faults else 0


@click.command()
@click.option("--no-tui", is_flag=True, help="Log to stderr instead of opening the dashboard.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="Seconds to run.")
@click.pass_obj
def demo(launcher: DashboardLauncher | None, *, no_tui: bool, duration: float | None) -> int:
    """Run a self-contained demonstration on this machine's loopback interface."""
    if launcher is not None and not no_tui and is_terminal():
        return _show_demo(launcher, duration)
    from orchestrator import demo as demonstration  # noqa: PLC0415  imports everything that runs tunnels

    log = _log_writer("text")
    try:
        click.echo(demonstration.run(duration, log))
    except socket_paths.SocketPathError as error:
        exit_with_error(EXIT_FAILED, str(error))
    finally:
        log.close()
    return 0


def _show_demo(launcher: DashboardLauncher, duration_s: float | None) -> int:
    """Run the demonstration in the background and show it; print its summary after the dashboard is closed."""
    from orchestrator.commands import background  # noqa: PLC0415  imported where a process is started

    try:
        with background.run_demo() as running:
            launcher.show_daemon(running.socket, duration_s=duration_s)
    except background.BackgroundStartError as error:
        exit_with_error(error.exit_code, str(error))
    click.echo(running.summary, nl=False)
    return running.exit_code


@click.command()
def keygen() -> None:
    """Print a new key: 256 random bits and a checksum, without characters that a URL must escape."""
    click.echo(generate_key())


@click.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    from orchestrator.config.schema import json_schema  # noqa: PLC0415  as in _load_manifest

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the completion script of SHELL; for bash: source <(nodepass-orch completion bash).

    For zsh: source <(nodepass-orch completion zsh); for fish: nodepass-orch completion fish | source. Names and tags of
    tunnels, and files, are completed too.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415  rarely used

    found = get_completion_class(shell)
    if found is None:
        exit_with_error(EXIT_FAILED, f"there is no completion for {shell}")
    root = context.find_root().command
    click.echo(found(root, {}, "nodepass-orch", "_NODEPASS_ORCH_COMPLETE").source())
    return 0


COMMANDS: Final = (up, check, demo, keygen, schema, completion)
