"""The commands that query and control a running daemon over its local API."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from orchestrator.client import ApiClient, NoDaemonError, RequestRefusedError
from orchestrator.commands.common import (
    EXIT_FAILED,
    EXIT_NOT_UP,
    EXIT_USAGE,
    LEVELS,
    WIDE,
    chosen_member,
    drain_timeout_option,
    exit_on_api_error,
    exit_with_error,
    file_argument,
    file_option,
    is_as_wanted,
    is_color_enabled,
    json_option,
    make_client,
    member_options,
    names_argument,
    print_json,
    print_screen,
    select_tags,
    select_tunnels,
    socket_option,
    tag_option,
    wide_option,
)
from orchestrator.name_patterns import is_pattern, matching_names
from orchestrator.process.messages import print_message
from orchestrator.process.terminal_text import printable
from orchestrator.state_display import STATE_COLORS
from orchestrator.status.plan_texts import describe_finishing
from orchestrator.table import format_table
from orchestrator.tunnel_commands import TUNNEL_COMMANDS, TunnelCommand
from tunnel.model.files import FileError, read_file
from tunnel.model.state import STATES, State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.status.json_types import (
        EntryResultJson,
        EventJson,
        FaultJson,
        PlanJson,
        ReloadJson,
        StatusJson,
        TunnelJson,
    )

_Answer = TypeVar("_Answer")

_MAX_CANDIDATE_BYTES: Final = 4 << 20
_WATCH_INTERVAL_S: Final = 1.0  # of ``ps --watch``
_MAX_LINES: Final = 10_000
_ALL: Final = (", except those with enabled: false", "")


@click.command()
@names_argument
@tag_option
@json_option
@wide_option
@click.option("--watch", is_flag=True, help="Repeat every second until Ctrl-C.")
@click.option("--strict", is_flag=True, help="Exit code 2 if the daemon refused its file and runs with an earlier one.")
@socket_option
@file_option
def ps(
    *, names: tuple[str, ...], tags: tuple[str, ...], as_json: bool, output: str | None, watch: bool, strict: bool,
    socket: Path | None, file: Path | None,
) -> int:  # fmt: skip
    """List the tunnels; NAME may be a pattern like edge-*. Exit code 3 if an enabled one is not up.

    On a narrow terminal reasons are on lines of their own, and columns are left out, those that show trouble last; the
    last line says how many. If the daemon refused its file, as it is now, stderr has the fault; the tunnels of the last
    valid file go on.
    """
    with exit_on_api_error():
        client = make_client(socket, file)
        while True:
            status = client.status()
            status["tunnels"] = select_tags(select_tunnels(status["tunnels"], names), tags)
            if as_json:
                print_json(status)
            else:
                _print_status(status, is_screen=watch and sys.stdout.isatty(), is_wide=output == WIDE)
            if not watch:
                if strict and not status["config"]["ok"]:
                    return EXIT_USAGE
                return 0 if all(map(is_as_wanted, status["tunnels"])) else EXIT_NOT_UP
            sys.stdout.flush()
            time.sleep(_WATCH_INTERVAL_S)


def _print_status(status: StatusJson, *, is_screen: bool, is_wide: bool) -> None:
    tunnels = status["tunnels"]
    if not status["config"]["ok"]:
        print_message(f"the last valid configuration stays in force: {status['config']['error']}")
    if status["mqtt"].get("reason"):
        from orchestrator.process.logformat import format_local_time  # noqa: PLC0415  it doubles the imports

        print_message(
            printable(
                f"MQTT {status['mqtt']['state']} since {format_local_time(status['mqtt']['since'])}: "
                f"{status['mqtt']['reason']}"
            )
        )
    text = format_tunnels(tunnels, is_wide=is_wide, wide_option=f"-o {WIDE}") if tunnels else "no tunnels"
    if is_screen:
        print_screen(text.split("\n"))
    elif tunnels:
        click.echo(text)
    else:
        print_message(text)


def format_tunnels(tunnels: Sequence[TunnelJson], *, is_wide: bool = False, wide_option: str = "") -> str:
    """Return tunnels as a table for stdout: if that is a terminal, coloured, and unless ``is_wide`` as wide as it.

    If columns do not fit, a last line names ``wide_option``, if there is one.
    """
    is_colored = is_color_enabled()

    def paint(text: str, state: str) -> str:
        return click.style(text, fg=STATE_COLORS.get(state)) if is_colored else text

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return format_table(tunnels, columns=columns, paint=paint, is_wide=is_wide, wide_option=wide_option)


def _tunnel_command(command: TunnelCommand) -> click.Command:
    """Return the command line's command that gives selected tunnels one command."""

    def send_to_tunnels(
        *, names: tuple[str, ...], everything: bool, as_json: bool, socket: Path | None, file: Path | None,
        timeout: float | None = None, target: str | None = None, link: str | None = None,
    ) -> int:  # fmt: skip
        if bool(names) == everything:
            exit_with_error(EXIT_USAGE, f"name the tunnels or use --all: nodepass-orch {command.name} NAME…")
        member = chosen_member(target, link, is_for_all=everything or timeout is not None)
        with exit_on_api_error():
            client = make_client(socket, file)
            selected = select_tunnels(client.status()["tunnels"], names)
            if everything:
                selected = [tunnel for tunnel in selected if tunnel["enabled"] or _ends_running(command, tunnel)]
            replies = [_send_command(client, command.name, tunnel["name"], timeout, member) for tunnel in selected]
        is_success = all(reply.ok for reply in replies)
        if as_json:
            print_json({"ok": is_success, "results": [asdict(reply) for reply in replies]})
        for reply in replies:
            if not as_json:
                (click.echo if reply.ok else print_message)(printable(f"{reply.name}: {reply.text}"))
        return 0 if is_success else EXIT_FAILED

    decorators: list[Callable[[Any], Any]] = [
        names_argument,
        click.option("--all", "everything", is_flag=True, help=f"All tunnels{_ALL[command.is_end]}."),
        json_option,
        socket_option,
        file_option,
        *([drain_timeout_option] if command.takes_timeout else []),
        *member_options(command),
    ]
    for decorate in reversed(decorators):
        send_to_tunnels = decorate(send_to_tunnels)
    return click.command(command.name, help=f"{command.summary} NAME may be a pattern like edge-*.")(send_to_tunnels)


def _ends_running(command: TunnelCommand, tunnel: TunnelJson) -> bool:
    return command.is_end and not STATES[State(tunnel["state"])].is_ended


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the daemon answered to the command for one tunnel."""

    name: str
    ok: bool
    state: str | None
    text: str


def _send_command(
    client: ApiClient, verb: str, name: str, timeout_s: float | None, member: Mapping[str, str]
) -> _Reply:
    try:
        result = client.command(verb, name, timeout_s, **member)
    except RequestRefusedError as error:
        return _Reply(name, ok=False, state=None, text=str(error))
    return _Reply(result["name"], result["ok"], result["state"], result["text"])


@click.command()
@click.option("--wait", is_flag=True, help="Print the result of each entry.")
@json_option
@socket_option
@file_argument(Path)
def reload(*, wait: bool, as_json: bool, socket: Path | None, file: Path | None) -> int:
    """Read the file again. Exit code 2 if the file is invalid, 1 if an entry cannot run."""
    with exit_on_api_error():
        answer = make_client(socket, file).reload()
    return _print_reload(answer, wait=wait, as_json=as_json)


def _print_reload(answer: ReloadJson, *, wait: bool, as_json: bool) -> int:
    """Print what a reload did, each entry with ``wait``. Returns the exit code."""
    results = answer["results"]
    bad = [name for name, result in results.items() if result["action"] in {"rejected", "failed"}]
    if as_json:
        print_json(answer)
    elif answer["error"]:
        print_message(f"nothing was changed: {_format_error(answer['error'])}")
    elif wait:
        for name, result in results.items():
            click.echo(_format_result(name, result))
    else:
        for name in bad:
            print_message(_format_result(name, results[name]))
    if not as_json and not answer["error"]:
        print_message(
            f"generation {answer['generation']}: {_count_actions(result['action'] for result in results.values())}"
        )
    return EXIT_USAGE if answer["error"] else EXIT_FAILED if bad else 0


def _format_error(error: FaultJson) -> str:
    parts = [error["file"], error["line"], error["column"]]
    place = ":".join(str(part) for part in parts if part is not None)
    return printable(f"{place}: {error['message']}" if place else error["message"])


def _format_result(name: str, result: EntryResultJson) -> str:
    details = [*result["changes"], *([result["detail"]] if result["detail"] else [])]
    return printable(f"{result['action']} {name}{': ' if details else ''}{'; '.join(details)}")


def _count_actions(actions: Iterable[str]) -> str:
    return ", ".join(f"{count} {action}" for action, count in Counter(actions).items()) or "no tunnels"


@click.command()
@click.argument("candidate", required=False, type=click.Path(path_type=Path))
@json_option
@socket_option
@file_option
def plan(*, candidate: Path | None, as_json: bool, socket: Path | None, file: Path | None) -> int:
    """Show which entries a reload would add, remove, restart and change live.

    Visitors of entries that are restarted, removed or disabled may finish for drain_timeout; then they are
    disconnected. The plan says how many there are. With CANDIDATE, what that file would change in place of the
    daemon's. Exit code 2 if the file is invalid.
    """
    with exit_on_api_error():
        if candidate is None:
            answer = make_client(socket, file).plan()
        else:
            text = _read_candidate(candidate)
            answer = _call_with_candidate(socket, file, candidate, lambda c: c.plan_candidate(text, str(candidate)))
    if as_json:
        print_json(answer)
    elif answer["error"]:
        print_message(f"nothing would be changed: {_format_error(answer['error'])}")
    else:
        for line in _plan_lines(answer):
            click.echo(line)
        for warning in answer["warnings"]:
            print_message(printable(warning))
        print_message(f"{answer['unchanged']} unchanged")
    return 0 if answer["ok"] else EXIT_USAGE


@click.command()
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--wait", is_flag=True, help="Print the result of each entry.")
@json_option
@socket_option
@file_option
def apply(*, candidate: Path, wait: bool, as_json: bool, socket: Path | None, file: Path | None) -> int:
    """Put CANDIDATE in place of the daemon's file and apply it; an invalid one changes nothing.

    The daemon writes the file. Relative names in CANDIDATE start at the directory of the daemon's file. Exit code 2 if
    the candidate is invalid, 1 if an entry cannot run.
    """
    text = _read_candidate(candidate)
    with exit_on_api_error():
        answer = _call_with_candidate(socket, file, candidate, lambda c: c.apply_candidate(text, str(candidate)))
    return _print_reload(answer, wait=wait, as_json=as_json)


def _read_candidate(path: Path) -> str:
    try:
        return read_file(path, _MAX_CANDIDATE_BYTES).text()
    except FileError as error:
        exit_with_error(EXIT_USAGE, f"cannot read {printable(str(path))}: {error}")


def _call_with_candidate(
    socket: Path | None, file: Path | None, candidate: Path, call: Callable[[ApiClient], _Answer]
) -> _Answer:
    """Call the daemon that the options select; if none runs and no file is named, the one that runs the candidate."""
    try:
        return call(make_client(socket, file))
    except NoDaemonError:
        if socket is not None or file is not None:
            raise
        with contextlib.suppress(NoDaemonError):
            return call(make_client(None, candidate))
        raise


def _plan_lines(plan: PlanJson) -> Iterator[str]:
    finishing = describe_finishing(plan)
    steps: list[tuple[str, str, list[str]]] = [
        *(("add", name, []) for name in plan["add"]),
        *(("remove", name, []) for name in plan["remove"]),
        *(("restart", step["name"], step["changes"]) for step in plan["restart"]),
        *(("change live", step["name"], step["changes"]) for step in plan["change"]),
    ]
    for action, name, changes in steps:
        details = [*changes, *filter(None, [finishing.get(name)])]
        yield printable(f"{action} {name}{': ' if details else ''}{'; '.join(details)}")


def _follow_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Print further events as they happen, until Ctrl-C or until the daemon ends."
    return click.option("-F", "--follow", is_flag=True, help=text)(command)


def _count_option(default: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    kind = click.IntRange(0, _MAX_LINES)
    return click.option("-n", "count", type=kind, default=default, show_default=True, help="Maximum number of lines.")


@click.command()
@names_argument
@_follow_option
@_count_option(200)
@click.option(
    "--level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True,
    help="Lowest level to print.",
)  # fmt: skip
@json_option
@socket_option
@file_option
def logs(
    *,
    names: tuple[str, ...],
    follow: bool,
    count: int,
    level: str,
    as_json: bool,
    socket: Path | None,
    file: Path | None,
) -> int:
    """Print the last lines of the log, of all tunnels or of some; NAME may be a pattern like edge-*.

    The last 500 lines of each tunnel are kept.
    """
    with exit_on_api_error():
        client = make_client(socket, file)
        selected = [name for name in names if not is_pattern(name)]  # the log may have lines of removed tunnels
        if len(selected) < len(names):
            present = [tunnel["name"] for tunnel in client.status()["tunnels"]]
            for pattern in names:
                if is_pattern(pattern):
                    selected += matching_names(present, pattern) or [pattern]
        _print_events(client.logs(selected, count, level.lower(), follow=follow), as_json=as_json)
        if follow:
            print_message("the daemon has ended")
    return 0


@click.command()
@_follow_option
@_count_option(100)
@json_option
@socket_option
@file_argument(Path)
def events(*, follow: bool, count: int, as_json: bool, socket: Path | None, file: Path | None) -> int:
    """Print the last state changes, reloads and commands."""
    with exit_on_api_error():
        _print_events(make_client(socket, file).events(count, follow=follow), as_json=as_json)
        if follow:
            print_message("the daemon has ended")
    return 0


def _print_events(events: Iterable[EventJson], *, as_json: bool) -> None:
    from orchestrator.process.logformat import format_json_event  # noqa: PLC0415  as in _print_status

    for event in events:
        if as_json:
            print_json(event)
        else:
            click.echo(format_json_event(event))
        sys.stdout.flush()


@click.command()
@click.option("--wait", is_flag=True, help="Return when the daemon has ended.")
@click.option("--now", is_flag=True, help="Disconnect visitors at once.")
@socket_option
@file_argument(Path)
def down(*, wait: bool, now: bool, socket: Path | None, file: Path | None) -> int:
    """Drain all tunnels and end the daemon."""
    with exit_on_api_error():
        client = make_client(socket, file)
        active = client.shutdown(drain=not now)["active"]
        visitors = (
            f" and disconnects {plural(active, 'visitor')}" if now else f"; {plural(active, 'visitor')} may finish"
        )
        print_message(f"the daemon is shutting down{visitors if active else ''}")
        if wait:
            client.wait_until_ended()
    return 0


COMMANDS: Final = (ps, *map(_tunnel_command, TUNNEL_COMMANDS.values()), reload, plan, apply, logs, events, down)
