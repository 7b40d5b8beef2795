"""The topics of ``help`` that explain what tables and ``ps --json`` show: columns and counters."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from orchestrator.column_meanings import COLUMN_MEANINGS, ColumnMeaning
from tunnel.model.snapshot import HELP, REFUSED_VISITORS, CountersView, RefusedView

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTER_REMEDIES: Final = {
    "links": "More than the peers explain: links are lost and made again; the log has the reasons.",
    "vanished": "Many at once: a firewall or a NAT forgets connections, or a network failed.",
    "kicked": "By kick, the key x in the dashboard's list of visitors, or the API.",
    "idle_timeouts": "If visitors that are still in use are among them, raise that option; 0 turns idle_timeout off.",
    "max_ages": "0 turns max_age off.",
    "redispatched": "Their first link was lost, or the client behind it could not reach its target: see the log.",
    "dropped_datagrams": "It grows with the refused visitors: compare REFUSED. Of others some are normal where a path "
    "is slower than its senders; a larger receive buffer helps against bursts (sysctl net.core.rmem_max).",
}
"""What to do about a counter of CountersView, where that is not evident."""


def figure_topics() -> Iterator[str]:
    """Yield the words that have help here."""
    yield from (row.title.casefold() for row in COLUMN_MEANINGS)
    yield from (each.name for each in (*fields(CountersView), *fields(RefusedView)))


def explain_figure(topic: str) -> str:
    """Return what a column or a counter of this name shows, or both; empty if there is none."""
    name = topic.replace("-", "_").replace(" ", "_").removeprefix("refused.").removeprefix("counters.")
    columns = [
        f"{row.title}, {_describe_screens(row)}: {row.text}"
        for row in COLUMN_MEANINGS
        if row.title.casefold().replace(" ", "_") == name
    ]
    return "\n\n".join([*columns, *(text for key, text in counter_rows() if key.rpartition(".")[2] == name)])


def column_rows() -> list[tuple[str, str]]:
    """Return each column with what it shows."""
    return [(row.title, row.text) for row in COLUMN_MEANINGS]


def counter_rows() -> list[tuple[str, str]]:
    """Return each counter, as ``ps --json`` names it, with what it counts and what to do about it."""
    counters = [
        (f"counters.{each.name}", each.metadata[HELP], COUNTER_REMEDIES.get(each.name, ""))
        for each in fields(CountersView)
    ]
    refused = [
        (
            f"refused.{each.name}",
            each.metadata[HELP],
            "nodepass-orch help visitors-refused" if each.name in REFUSED_VISITORS else "nodepass-orch help wrong-key",
        )
        for each in fields(RefusedView)
    ]
    return [(key, f"{key} in ps --json: {text} {remedy}".rstrip()) for key, text, remedy in (*counters, *refused)]


def _describe_screens(row: ColumnMeaning) -> str:
    return f"a column of {' and '.join(row.screens)}"
