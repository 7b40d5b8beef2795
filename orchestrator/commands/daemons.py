"""The command ``ls``: which daemons of this user run."""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

import click

from orchestrator.client import ApiClient, NoDaemonError, RequestRefusedError
from orchestrator.commands.common import json_option, print_json
from orchestrator.process.daemon_lock import list_daemons
from orchestrator.process.messages import print_message
from orchestrator.process.running_daemon import RunningDaemon
from orchestrator.process.terminal_text import printable
from orchestrator.table import align_columns

_ANSWER_TIMEOUT_S: Final = 2.0  # of one daemon: others are listed all the same


@click.command()
@json_option
def ls(*, as_json: bool) -> int:
    """List the daemons of this user that run on this host, each with its file."""
    found = [(daemon, _count_states(daemon)) for daemon in list_daemons(os.environ, os.getuid())]
    if as_json:
        print_json([{**daemon.as_json(), "tunnels": states} for daemon, states in found])
    elif found:
        rows = [("PID", "FILE", "SOCKET", "TUNNELS"), *(_row(daemon, states) for daemon, states in found)]
        click.echo(align_columns(rows))
    else:
        print_message("no daemon of this user runs")
    return 0


def _count_states(daemon: RunningDaemon) -> dict[str, int] | None:
    """Return how many tunnels are in each state, or None if the daemon does not answer."""
    if daemon.socket is None:
        return None
    try:
        tunnels = ApiClient(daemon.socket, _ANSWER_TIMEOUT_S).status()["tunnels"]
    except (NoDaemonError, RequestRefusedError):
        return None
    return dict(Counter(tunnel["state"] for tunnel in tunnels))


def _row(daemon: RunningDaemon, states: dict[str, int] | None) -> tuple[str, ...]:
    counts = "does not answer" if states is None else ", ".join(f"{n} {state}" for state, n in states.items()) or "none"
    texts = ("-" if value is None else printable(str(value)) for value in (daemon.pid, daemon.file, daemon.socket))
    return *texts, counts


COMMANDS: Final = (ls,)
