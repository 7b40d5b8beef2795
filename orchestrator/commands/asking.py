"""The commands that ask a running daemon, or tell it something."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.client import Client, Json, RefusedError
from orchestrator.commands.shell import (
    DEFAULT_FILE,
    FAILED,
    LEVELS,
    NOT_UP,
    WRONG,
    asking,
    client_at,
    fail,
    file_option,
    is_coloured,
    is_pattern,
    json_option,
    names_argument,
    selected,
    show,
    socket_option,
)
from orchestrator.process.logformat import as_line, printable
from orchestrator.process.process import say
from orchestrator.table import table
from tunnel.model.settings import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLOURS: Final = {"up": "green", "failed": "red", "cooldown": "yellow", "draining": "cyan", "stopped": "bright_black"}
_GLANCE: Final = 1.0  # seconds between two looks of ``ps --watch``
_HOME, _TO_LINE_END, _TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"
_ORDER: Final = ("add", "remove", "restart", "change")
_VERBS: Final = {"add": "add", "remove": "remove", "restart": "restart", "change": "change live"}


@click.command()
@names_argument
@json_option
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@socket_option
@file_option
def ps(*, names: tuple[str, ...], as_json: bool, watch: bool, socket: Path | None, file: Path) -> int:
    """List the tunnels; NAME may be a pattern like edge-*. Exit 3 if one of them is not up."""
    with asking():
        client = client_at(socket, file)
        while True:
            status = client.status()
            status["tunnels"] = selected(status["tunnels"], names)
            if as_json:
                show(status)
            else:
                _show_tunnels(status, is_screen=watch and sys.stdout.isatty())
            if not watch:
                return 0 if all(tunnel["state"] == "up" for tunnel in status["tunnels"]) else NOT_UP
            sys.stdout.flush()
            time.sleep(_GLANCE)


def _show_tunnels(status: Json, *, is_screen: bool) -> None:
    tunnels = status["tunnels"]
    if not status["config"]["ok"]:
        say(f"the last good configuration is in force: {status['config']['error']}")
    if status["mqtt"].get("reason"):
        say(printable(f"MQTT {status['mqtt']['state']} since {status['mqtt']['since']}: {status['mqtt']['reason']}"))
    text = tunnel_table(tunnels) if tunnels else "there are no tunnels"
    if is_screen:
        lines = text.split("\n")[: shutil.get_terminal_size().lines - 1]
        click.echo(_HOME + "".join(f"{line}{_TO_LINE_END}\n" for line in lines) + _TO_SCREEN_END, nl=False)
    elif tunnels:
        click.echo(text)
    else:
        say(text)


def tunnel_table(tunnels: Sequence[Json]) -> str:
    """Tunnels as a table for whoever reads stdout."""
    coloured = is_coloured()

    def paint(text: str, state: str) -> str:
        return click.style(text, fg=_COLOURS.get(state)) if coloured else text

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return table(tunnels, columns=columns, paint=paint)


def read_duration(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """The seconds of an option such as ``30s``."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _verb(verb: str, text: str, *, drains: bool) -> click.Command:
    def tell(
        *, names: tuple[str, ...], everything: bool, as_json: bool, socket: Path | None, file: Path,
        timeout: float | None = None,
    ) -> int:  # fmt: skip
        if bool(names) == everything:
            fail(WRONG, f"name the tunnels, or say --all: nodepass-orch {verb} NAME…")
        with asking():
            client = client_at(socket, file)
            chosen = [str(tunnel["name"]) for tunnel in selected(client.status()["tunnels"], names)]
            results = [_told(client, verb, name, timeout) for name in chosen]
        if as_json:
            show({"ok": all(result["ok"] for result in results), "results": results})
        for result in results:
            if not as_json:
                (click.echo if result["ok"] else say)(printable(f"{result['name']}: {result['text']}"))
        return 0 if all(result["ok"] for result in results) else FAILED

    decorators: list[Callable[[Any], Any]] = [
        names_argument,
        click.option("--all", "everything", is_flag=True, help="Every tunnel."),
        json_option,
        socket_option,
        file_option,
    ]
    if drains:
        help_text = "How long present visitors may finish, as in 30s."
        decorators.append(click.option("--timeout", metavar="DURATION", callback=read_duration, help=help_text))
    for decorate in reversed(decorators):
        tell = decorate(tell)
    return click.command(verb, help=f"{text} NAME may be a pattern like edge-*.")(tell)


def _told(client: Client, verb: str, name: str, timeout: float | None) -> Json:
    try:
        return client.command(verb, name, timeout)
    except RefusedError as error:
        return {"name": name, "ok": False, "state": None, "text": str(error)}


start = _verb("start", "Run tunnels that rest.", drains=False)
stop = _verb("stop", "Drain tunnels up to their SHUTDOWN_TIMEOUT, then let them rest.", drains=True)
restart = _verb("restart", "Drain tunnels up to their SHUTDOWN_TIMEOUT, then run them anew.", drains=True)
drain = _verb("drain", "Drain tunnels up to the file's drain_timeout, then let them rest.", drains=True)
retry = _verb("retry", "End the cooldown of tunnels: the next attempt is made now.", drains=False)


@click.command()
@click.option("--wait", is_flag=True, help="Say what became of each entry.")
@json_option
@socket_option
@file_option
def reload(*, wait: bool, as_json: bool, socket: Path | None, file: Path) -> int:
    """Read the file again now. Exit 2 if it cannot be run as it is, 1 if an entry of it cannot."""
    with asking():
        answer = client_at(socket, file).reload()
    results = answer["results"]
    bad = [name for name, result in results.items() if result["action"] in {"rejected", "failed"}]
    if as_json:
        show(answer)
    elif answer["error"]:
        say(f"nothing was changed: {_place(answer['error'])}")
    elif wait:
        for name, result in results.items():
            click.echo(_result_line(name, result))
    else:
        for name in bad:
            say(_result_line(name, results[name]))
    if not as_json and not answer["error"]:
        say(f"generation {answer['generation']}: {_counted(result['action'] for result in results.values())}")
    return WRONG if answer["error"] else FAILED if bad else 0


def _place(error: Json) -> str:
    parts = [error.get("file"), error.get("line"), error.get("column")]
    place = ":".join(str(part) for part in parts if part is not None)
    return printable(f"{place}: {error['message']}" if place else str(error["message"]))


def _result_line(name: str, result: Json) -> str:
    details = [*result["changes"], *([result["detail"]] if result["detail"] else [])]
    return printable(f"{result['action']} {name}{': ' if details else ''}{'; '.join(details)}")


def _counted(words: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counts.items()) or "there are no tunnels"


@click.command()
@click.argument("file", default=DEFAULT_FILE, type=click.Path(path_type=Path))
@json_option
@socket_option
def plan(*, file: Path, as_json: bool, socket: Path | None) -> int:
    """Show what a reload of FILE would add, remove, restart, change live and leave. Exit 2 if it cannot be run."""
    with asking():
        answer = client_at(socket, file).plan()
    if as_json:
        show(answer)
    elif answer["error"]:
        say(f"a reload would change nothing: {_place(answer['error'])}")
    else:
        for line in _plan_lines(answer):
            click.echo(line)
        for warning in answer.get("warnings", ()):
            say(printable(warning))
        say(f"{answer['unchanged']} left as they are")
    return 0 if answer["ok"] else WRONG


def _plan_lines(answer: Json) -> Iterator[str]:
    for kind in _ORDER:
        for step in answer[kind]:
            name, changes = (step, []) if isinstance(step, str) else (step["name"], step["changes"])
            yield printable(f"{_VERBS[kind]} {name}{': ' if changes else ''}{'; '.join(changes)}")


@click.command()
@names_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C or the daemon's end.")
@click.option("-n", "count", type=click.IntRange(0, 10_000), default=200, show_default=True, help="Lines at the most.")
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@json_option
@socket_option
@click.option("--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True)
def logs(
    *, names: tuple[str, ...], follow: bool, count: int, level: str, as_json: bool, socket: Path | None, file: Path
) -> int:
    """Show the last lines of the log, of all tunnels or of some; NAME may be a pattern like edge-*."""
    with asking():
        client = client_at(socket, file)
        exact = [name for name in names if not is_pattern(name)]  # they may be gone from the file
        patterns = [name for name in names if is_pattern(name)]
        if patterns:
            exact += [str(tunnel["name"]) for tunnel in selected(client.status()["tunnels"], patterns)]
        _print_events(client.logs(exact, count, level.lower(), follow=follow), as_json=as_json)
        if follow:
            say("the daemon has ended")
    return 0


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C or the daemon's end.")
@click.option("-n", "count", type=click.IntRange(0, 10_000), default=100, show_default=True, help="Lines at the most.")
@json_option
@socket_option
@click.option("--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True)
def events(*, follow: bool, count: int, as_json: bool, socket: Path | None, file: Path) -> int:
    """Show the last state changes, reloads and commands."""
    with asking():
        _print_events(client_at(socket, file).events(count, follow=follow), as_json=as_json)
        if follow:
            say("the daemon has ended")
    return 0


def _print_events(found: Iterable[Json], *, as_json: bool) -> None:
    for event in found:
        if as_json:
            show(event)
        else:
            click.echo(as_line(event))
        sys.stdout.flush()


@click.command()
@click.option("--wait", is_flag=True, help="Return when the daemon is gone.")
@click.option("--now", is_flag=True, help="Let nobody finish.")
@socket_option
@file_option
def down(*, wait: bool, now: bool, socket: Path | None, file: Path) -> int:
    """Drain all tunnels and end the daemon."""
    with asking():
        client = client_at(socket, file)
        answer = client.shutdown(drain=not now)
        say(f"the daemon is shutting down; {answer['active']} visitors {'are cut off' if now else 'may finish'}")
        if wait:
            client.wait_gone()
    return 0


COMMANDS: Final = (ps, start, stop, restart, drain, retry, reload, plan, logs, events, down)
"""All of them."""
