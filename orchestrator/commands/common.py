"""What all commands share: exit codes, output, common options, how a command finds its daemon and its tunnels."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import click
from click.shell_completion import CompletionItem

from orchestrator.client import ANSWER_TIMEOUT_S, ApiClient, NoDaemonError, RequestRefusedError
from orchestrator.name_patterns import matching_names
from orchestrator.process import daemon_lock, socket_paths
from orchestrator.process.arguments import mask_url
from orchestrator.process.messages import print_message
from orchestrator.process.state_directory import absolute_path
from orchestrator.process.terminal_text import dump_json_line
from tunnel.model.errors import did_you_mean
from tunnel.model.spec import LogLevel
from tunnel.model.times import parse_duration

if TYPE_CHECKING:
    from orchestrator.status.json_types import TunnelJson
    from orchestrator.tunnel_commands import TunnelCommand

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_UP, EXIT_NO_DAEMON = 1, 2, 3, 4
"""Exit codes besides 0: failed at run time, wrong usage or invalid file, a tunnel is not up, no daemon answers."""

EXIT_CODES: Final = {
    0: "done",
    EXIT_FAILED: "failed at run time, or refused",
    EXIT_USAGE: "wrong usage, or an invalid file; `ps --strict`, `fleet ps --strict`: a daemon refused its file",
    EXIT_NOT_UP: "`ps`, `fleet ps`: an enabled tunnel is not up, or a host is gone",
    EXIT_NO_DAEMON: "no daemon answers",
    130: "interrupted with Ctrl-C; a daemon, or a single URL, drains and ends with 0",
}
"""All exit codes, for the documentation."""

DEFAULT_FILE: Final = "tunnels.yaml"
LEVELS: Final = tuple(level.name.lower() for level in LogLevel)

_SYNONYMS: Final = {
    **dict.fromkeys(("show", "tunnels", "state"), "ps"),
    **dict.fromkeys(("run", "serve", "daemon"), "up"),
    **dict.fromkeys(("exit", "quit", "shutdown", "kill"), "down"),
    **dict.fromkeys(("connections", "sessions", "who", "ss"), "visitors"),
    **dict.fromkeys(("disconnect", "ban"), "kick"),
    **dict.fromkeys(("ping", "probe", "diagnose"), "test"),
    **dict.fromkeys(("validate", "lint", "test-config"), "check"),
    **dict.fromkeys(("log", "tail", "journal"), "logs"),
    **dict.fromkeys(("dashboard", "tui", "ui", "watch", "monitor"), "top"),
    **dict.fromkeys(("diff", "dry-run"), "plan"),
    **dict.fromkeys(("history", "usage", "bandwidth"), "traffic"),
}
"""What other programs call a command of this one: a hint."""
ALIASES: Final = {"status": "ps", "list": "ps"}
"""Words that are understood as a command, because they can mean nothing else."""
_URL_HINT: Final = "; a URL looks like server://0.0.0.0:10101/127.0.0.1:8080"
_COMPLETION_TIMEOUT_S: Final = 1.0  # the user has pressed Tab and waits
_MAX_NAMED_DAEMONS: Final = 5
_CURSOR_HOME, _CLEAR_TO_LINE_END, _CLEAR_TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


class DashboardLauncher(Protocol):
    """Opens the dashboard for ``up`` and ``demo``; the package ``tui`` provides it (click context object)."""

    def show_daemon(
        self, socket_path: Path, *, read_only: bool = False, owns_daemon: bool = False, duration_s: float | None = None
    ) -> bool:
        """Show the daemon at a socket until the user leaves. Returns True if the user asked to stop the daemon."""


def exit_with_error(code: int, message: str) -> NoReturn:
    """Print a message to stderr and end the command with an exit code."""
    print_message(message)
    raise click.exceptions.Exit(code)


def print_json(data: object) -> None:
    """Print one JSON value on one line."""
    click.echo(dump_json_line(data))


def print_screen(lines: Sequence[str]) -> None:
    """Show lines in place of what is on the terminal, as many as fit."""
    rows = "".join(f"{line}{_CLEAR_TO_LINE_END}\n" for line in lines[: shutil.get_terminal_size().lines - 1])
    click.echo(_CURSOR_HOME + rows + _CLEAR_TO_SCREEN_END, nl=False)


def is_color_enabled() -> bool:
    """Whether stdout is a terminal that shows colours and the user has not disabled them (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """Whether stdin, stdout and stderr are all a terminal."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


class CommandGroup(click.Group):
    """A group that understands other names of some commands, and suggests the nearest one for an unknown name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names."""
        if args and args[0] in ALIASES and ALIASES[args[0]] in self.list_commands(ctx):
            args = [ALIASES[args[0]], *args[1:]]
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            meant = _SYNONYMS.get(args[0].casefold(), "")
            hint = f"; did you mean {meant!r}?" if meant in known else did_you_mean(args[0], known) or _URL_HINT
            raise click.UsageError(f"unknown command {mask_url(args[0])[:60]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def parse_duration_option(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Return the seconds of an option such as ``30s`` (a click callback)."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


socket_option = click.option("--socket", type=click.Path(path_type=Path), help="Unix socket of the daemon.")
file_option = click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    help=f"The daemon's file; default {DEFAULT_FILE}, or the file of the only daemon.",
)
_own_file_option = click.option(
    "-f", "--file", type=click.Path(path_type=Path), help=f"The file; default {DEFAULT_FILE}."
)


def file_argument(kind: type[Path | str]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Let a command that takes no other names accept its file as FILE as well as with ``-f FILE``.

    ``kind`` is Path for commands that talk to a daemon, and str for those that read the file themselves.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def run(*arguments: object, file: Path | None, positional_file: str | None, **options: object) -> int:
            if file is not None and positional_file is not None:
                raise click.UsageError(f"two files are named, {positional_file} and {file}; name one")
            given = file if positional_file is None else positional_file
            return command(*arguments, file=None if given is None else kind(given), **options)

        argument = click.argument("positional_file", metavar="[FILE]", required=False, type=click.Path())
        return argument((file_option if kind is Path else _own_file_option)(run))

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
drain_timeout_option = click.option(
    "--timeout",
    metavar="DURATION",
    callback=parse_duration_option,
    help="How long connected visitors may stay, as in 30s.",
)


def make_client(socket: Path | None, file: Path | None, timeout_s: float = ANSWER_TIMEOUT_S) -> ApiClient:
    """Return a client for the daemon that the options select. Raises SocketPathError and NoDaemonError.

    Without a file it is ``tunnels.yaml`` of this directory; where that is missing, the file of the only daemon.
    """
    environ, uid = os.environ, os.getuid()
    named = socket_paths.explicit_socket(socket, environ)
    if named is not None:
        locate = partial(daemon_lock.find_daemon_at, named, environ, uid)
        advise = partial(_advise_other_socket, file or Path(DEFAULT_FILE), named)
        return ApiClient(named, timeout_s, locate=locate, advise=advise)
    file = file or _choose_file(environ, uid)
    locate = partial(daemon_lock.find_daemon, file, environ, uid)
    daemon = locate()
    path = daemon.socket if daemon is not None else None
    advise = partial(_advise_other_file, file)
    return ApiClient(path or socket_paths.find_socket(file, environ, uid), timeout_s, locate=locate, advise=advise)


def _advise_other_file(file: Path) -> str:
    """Return what to do if no daemon of a file runs: start it, or name the file of one that runs."""
    start = "start one with: nodepass-orch up" + ("" if file == Path(DEFAULT_FILE) else f" {shlex.quote(str(file))}")
    daemons = [daemon.file for daemon in daemon_lock.list_daemons(os.environ, os.getuid()) if daemon.file is not None]
    if not daemons:
        return start
    names = ", ".join(f"-f {shlex.quote(str(each))}" for each in daemons[:_MAX_NAMED_DAEMONS])
    return f"{start}; {'another daemon runs' if len(daemons) == 1 else 'other daemons run'}: {names}"


def _choose_file(environ: Mapping[str, str], uid: int) -> Path:
    """Return the file of the only daemon where this directory has none. Raises NoDaemonError where several run.

    A directory with a file of its own means that file: ``down`` there must not end the daemon of another project.
    """
    file = Path(DEFAULT_FILE)
    if file.exists() or daemon_lock.find_daemon(file, environ, uid) is not None:
        return file
    daemons = daemon_lock.list_daemons(environ, uid)
    if len(daemons) > 1:
        names = ", ".join(f"-f {daemon.file}" for daemon in daemons[:_MAX_NAMED_DAEMONS])
        text = f"there is no {file} in this directory and {len(daemons)} daemons run; name the file of one: {names}"
        raise NoDaemonError(text)
    return daemons[0].file or file if daemons else file


def _advise_other_socket(file: Path, named: Path) -> str:
    """Return what to do if nothing listens at a named socket: never ``up`` while a daemon runs the file."""
    daemon = daemon_lock.find_daemon(file, os.environ, os.getuid())
    if daemon is None:
        return "start one with: nodepass-orch up"
    if daemon.socket is None or daemon.socket == absolute_path(named):  # the daemon has just started
        return f"{daemon} has not opened its socket yet"
    return f"{daemon} is at {daemon.socket}"


@contextlib.contextmanager
def exit_on_api_error() -> Iterator[None]:
    """Turn errors of the API client into a message and the exit code."""
    try:
        yield
    except NoDaemonError as error:
        exit_with_error(EXIT_NO_DAEMON, str(error))
    except (RequestRefusedError, socket_paths.SocketPathError) as error:
        exit_with_error(EXIT_FAILED, str(error))


def select_tunnels(tunnels: Sequence[TunnelJson], names: Sequence[str]) -> list[TunnelJson]:
    """Return the tunnels that match names and patterns (none: all), in the order of the file.

    A name without a match ends the command.
    """
    present = [tunnel["name"] for tunnel in tunnels]
    selected: set[str] = set()
    for name in names:
        matching = matching_names(present, name)
        if not matching:
            exit_with_error(EXIT_FAILED, f"no tunnel is named {name!r}{did_you_mean(name, present)}")
        selected.update(matching)
    return [tunnel for tunnel in tunnels if not names or tunnel["name"] in selected]


def is_as_wanted(tunnel: TunnelJson) -> bool:
    """Whether a tunnel is up, or is not enabled in the file (hosts of version 0.1 do not publish that)."""
    return tunnel["state"] == "up" or not tunnel.get("enabled", True)


def select_tags(tunnels: Sequence[TunnelJson], tags: Sequence[str]) -> list[TunnelJson]:
    """Return the tunnels with one of these tags or patterns (none: all). A tag without a tunnel ends the command."""
    for tag in tags:
        if not any(_has_tag(tunnel, tag) for tunnel in tunnels):
            known = sorted({known for tunnel in tunnels for known in tunnel["tags"]})
            exit_with_error(EXIT_FAILED, f"no tunnel has the tag {tag!r}{did_you_mean(tag, known)}")
    return [tunnel for tunnel in tunnels if not tags or any(_has_tag(tunnel, tag) for tag in tags)]


def _has_tag(tunnel: TunnelJson, pattern: str) -> bool:
    return any(tag == pattern or fnmatchcase(tag, pattern) for tag in tunnel["tags"])


def _complete_from(ctx: click.Context) -> Sequence[TunnelJson]:
    """Return the daemon's tunnels, for the completion of their names or tags; none if no daemon answers in time."""
    given = ctx.params
    try:
        return make_client(given.get("socket"), given.get("file"), _COMPLETION_TIMEOUT_S).status()["tunnels"]
    except (NoDaemonError, RequestRefusedError, socket_paths.SocketPathError):
        return []


def complete_names(ctx: click.Context, _: click.Parameter, prefix: str) -> list[CompletionItem]:
    """Return the names of the daemon's tunnels with a prefix; none if no daemon answers in time."""
    used = set(ctx.params.get("names") or ())
    return [
        CompletionItem(tunnel["name"], help=f"{tunnel['role']}, {tunnel['state']}")
        for tunnel in _complete_from(ctx)
        if tunnel["name"].startswith(prefix) and tunnel["name"] not in used
    ]


def complete_tags(ctx: click.Context, _: click.Parameter, prefix: str) -> list[CompletionItem]:
    """Return the tags of the daemon's tunnels with a prefix; none if no daemon answers in time."""
    known = {tag for tunnel in _complete_from(ctx) for tag in tunnel["tags"]}
    return [CompletionItem(tag) for tag in sorted(known) if tag.startswith(prefix)]


names_argument = click.argument("names", nargs=-1, metavar="[NAME]…", shell_complete=complete_names)
WIDE: Final = "wide"
wide_option = click.option(
    "-o", "output", type=click.Choice([WIDE]), help="Print all columns, one line for each tunnel, on any terminal."
)
tag_option = click.option(
    "--tag", "tags", metavar="TAG", multiple=True, shell_complete=complete_tags,
    help="Only tunnels with this tag, or a pattern of it; several: with one of them.",
)  # fmt: skip


def member_options(command: TunnelCommand) -> list[Callable[[Any], Any]]:
    """Return the options with which a command concerns one target or link of a tunnel, as far as it takes them."""
    effect = "gets no new visitors" if command.is_end else "gets new visitors again"
    options: list[Callable[[Any], Any]] = []
    if command.takes_target:
        target_help = f"Only this one of several targets {effect}."
        options.append(click.option("--target", metavar="ADDRESS", help=target_help))
    if command.takes_link:
        link_help = f"Only this one of several links, as ps --json shows it, {effect}."
        options.append(click.option("--link", metavar="ID", help=link_help))
    return options


def chosen_member(target: str | None, link: str | None, *, is_for_all: bool) -> dict[str, str]:
    """Return the one target or link of a command by the name of its option; empty if it concerns the whole tunnel."""
    member = {key: value for key, value in (("target", target), ("link", link)) if value is not None}
    if len(member) > 1:
        exit_with_error(EXIT_USAGE, "a command concerns one target or one link: use --target or --link")
    if member and is_for_all:
        text = f"--{next(iter(member))} goes with the name of a tunnel, and not with --all or --timeout"
        exit_with_error(EXIT_USAGE, text)
    return member
