"""The command ``traffic``: what tunnels carried, by hour, day or month."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from orchestrator.commands.common import (
    exit_on_api_error,
    file_option,
    json_option,
    make_client,
    names_argument,
    print_json,
    socket_option,
)
from orchestrator.process.messages import print_message
from orchestrator.process.terminal_text import printable
from orchestrator.table import align_columns, format_bytes
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from orchestrator.status.json_types import TrafficCountsJson, TrafficJson, TrafficRowJson

TOTAL: Final = "total"
STEPS: Final = ("hour", "day", "month", TOTAL)
_MAX_DAYS: Final = 3660
_LABEL_ENDS: Final = {"hour": 16, "day": 10, "month": 7}  # of the start in RFC 3339


@click.command()
@names_argument
@click.option("--by", "step", type=click.Choice(STEPS), default="day", show_default=True, help="What a line sums up.")
@click.option(
    "--days",
    type=click.IntRange(1, _MAX_DAYS),
    help="How many days, today included. Default: 30; with --by hour the last 24 hours, with --by month 365 days.",
)
@json_option
@socket_option
@file_option
def traffic(
    *, names: tuple[str, ...], step: str, days: int | None, as_json: bool, socket: Path | None, file: Path | None
) -> int:
    """Show what tunnels carried; NAME may be a pattern like edge-*, or a tunnel that was removed.

    Days and months are those of the daemon's time zone. A time without traffic has no line.
    """
    with exit_on_api_error():
        answer = make_client(socket, file).traffic(names, step, days)
    if as_json:
        print_json(answer)
        return 0
    rows = format_traffic(answer)
    if rows:
        click.echo(printable_table(rows))
    else:
        print_message(f"no traffic in the last {plural(answer['days'], 'day')}")
    return 0


def printable_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows of cells as a table, without control characters."""
    return align_columns([tuple(map(printable, cells)) for cells in rows])


def format_traffic(answer: TrafficJson) -> list[tuple[str, ...]]:
    """Return the cells of the table with its headings, in the order of time; empty where there is no traffic."""
    step, tunnels = answer["by"], answer["tunnels"]
    found = [(row, tunnel["name"]) for tunnel in tunnels for row in tunnel["rows"]]
    found.sort(key=lambda one: one[0]["start"])  # the tunnels stay in their order
    if not found:
        return []
    has_refused = any(row["refused"] for row, _ in found)
    heading = (step.upper(), "TUNNEL", *_headings(has_refused=has_refused))
    lines = [(_label(row, step), name, *_cells(row, has_refused=has_refused)) for row, name in found]
    if len(found) > 1:
        counts = sum_counts(row for row, _ in found)
        time, name = ("", "all") if step == TOTAL else ("all", "")
        lines.append((time, name, *_cells(counts, has_refused=has_refused)))
    return [cells[1:] if step == TOTAL else cells for cells in (heading, *lines)]


def sum_counts(rows: Iterable[TrafficRowJson]) -> TrafficCountsJson:
    """Return the sum of all rows."""
    total: TrafficCountsJson = {"in": 0, "out": 0, "visitors": 0, "failed": 0, "refused": 0}
    for row in rows:
        total["in"] += row["in"]
        total["out"] += row["out"]
        total["visitors"] += row["visitors"]
        total["failed"] += row["failed"]
        total["refused"] += row["refused"]
    return total


def _headings(*, has_refused: bool) -> tuple[str, ...]:
    return ("VISITORS", "FAILED", *(["REFUSED"] if has_refused else []), "FROM VISITORS", "TO VISITORS")


def _cells(counts: TrafficCountsJson | TrafficRowJson, *, has_refused: bool) -> tuple[str, ...]:
    refused = (str(counts["refused"]),) if has_refused else ()
    visitors = (str(counts["visitors"]), str(counts["failed"]), *refused)
    return (*visitors, format_bytes(counts["in"]), format_bytes(counts["out"]))


def _label(row: TrafficRowJson, step: str) -> str:
    return row["start"][: _LABEL_ENDS.get(step, 0)].replace("T", " ")


COMMANDS: Final = (traffic,)
