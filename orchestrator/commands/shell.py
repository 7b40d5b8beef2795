"""What all commands have in common: exit codes, how they fail, which daemon they ask, which tunnels they mean."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.shell_completion import CompletionItem

from orchestrator.client import Client, Json, NoDaemonError, RefusedError
from orchestrator.process import paths
from orchestrator.process.process import mask_url, say
from tunnel.model.options import nearest
from tunnel.model.spec import LogLevel

FAILED, WRONG, NOT_UP, NO_DAEMON = 1, 2, 3, 4
"""Exit codes, besides 0."""

DEFAULT_FILE: Final = "tunnels.yaml"
LEVELS: Final = tuple(level.name.lower() for level in LogLevel)

_COMPLETION_PATIENCE: Final = 1.0  # seconds that somebody who pressed Tab waits
_MAGIC: Final = set("*?[")


def fail(code: int, text: str) -> NoReturn:
    """End the command with a sentence."""
    say(text)
    raise click.exceptions.Exit(code)


def show(data: object) -> None:
    """One JSON value on one line."""
    click.echo(json.dumps(data, ensure_ascii=False, default=str))


def is_coloured() -> bool:
    """Whether who reads the answer sees colours, and wants to."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Group(click.Group):
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


socket_option = click.option("--socket", type=click.Path(path_type=Path), help="Unix socket of the daemon.")
file_option = click.option(
    "-f", "--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True, help="The daemon's file."
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


def client_at(socket: Path | None, file: Path, patience: float | None = None) -> Client:
    """The daemon that is meant. Raises SocketPathError."""
    named = paths.given_socket(socket, os.environ)
    path = named or paths.socket_to_ask(file, os.environ, os.getuid())
    return Client(path) if patience is None else Client(path, patience)


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Turn what a daemon, or its absence, may answer into the exit code and a sentence."""
    try:
        yield
    except NoDaemonError as error:
        fail(NO_DAEMON, str(error))
    except (RefusedError, paths.SocketPathError) as error:
        fail(FAILED, str(error))


def is_pattern(text: str) -> bool:
    """Whether a name stands for several."""
    return not _MAGIC.isdisjoint(text)


def selected(tunnels: Sequence[Json], names: Sequence[str]) -> list[Json]:
    """The tunnels that names and patterns mean (none: all), in the order of the file; none for one of them: an end."""
    for name in names:
        if not any(_matches(tunnel["name"], name) for tunnel in tunnels):
            hint = nearest(name, [str(tunnel["name"]) for tunnel in tunnels])
            fail(FAILED, f"no tunnel is named {name!r}{hint}")
    return [t for t in tunnels if not names or any(_matches(t["name"], name) for name in names)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def complete_names(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names of the daemon's tunnels that go on like that; none if no daemon answers soon."""
    given: dict[str, Any] = ctx.params
    try:
        file = given.get("file") or Path(DEFAULT_FILE)
        status = client_at(given.get("socket"), Path(file), _COMPLETION_PATIENCE).status()
    except (NoDaemonError, RefusedError, paths.SocketPathError):
        return []
    taken = set(given.get("names") or ())
    return [
        CompletionItem(tunnel["name"], help=f"{tunnel['role']}, {tunnel['state']}")
        for tunnel in status["tunnels"]
        if tunnel["name"].startswith(begun) and tunnel["name"] not in taken
    ]


names_argument = click.argument("names", nargs=-1, metavar="[NAME]…", shell_complete=complete_names)
