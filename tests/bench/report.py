"""What the samples say: medians, ratios, goals, one table. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Goal:
    """What our figure should be: a value, or a ratio to the baseline; at least or at most ``bound``."""

    bound: float
    at_least: bool = False
    ratio: bool = True

    def met(self, value: float | None, ratio: float | None) -> bool | None:
        """Whether it is; None where there is nothing to compare."""
        figure = ratio if self.ratio else value
        return None if figure is None else figure >= self.bound if self.at_least else figure <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{'x' if self.ratio else ''}"


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table; ``key`` is its measurement's name, a dot, and its own."""

    key: str
    label: str
    digits: int
    goal: Goal | None = None

    @property
    def measurement(self) -> str:
        """The measurement it comes from."""
        return self.key.partition(".")[0]


METRICS: Final = (
    Metric("keepalive.rate", "keep-alive requests/s", 0, Goal(0.9, at_least=True)),
    Metric("keepalive.p50", "  p50 ms", 2),
    Metric("keepalive.p99", "  p99 ms", 2),
    Metric("keepalive.cpu", "  CPU µs per request", 1),
    Metric("newconn.rate", "new connections/s", 0, Goal(0.6, at_least=True)),
    Metric("newconn.p50", "  p50 ms", 2),
    Metric("newconn.p99", "  p99 ms, new connections", 2, Goal(2.0)),
    Metric("newconn.cpu", "  CPU µs per connection", 0),
    Metric("bulk1.rate", "bulk, 1 stream, Gbit/s", 2, Goal(1.25, at_least=True)),
    Metric("bulk1.cpu", "  CPU s per GB, 1 stream", 3, Goal(0.6)),
    Metric("bulk8.rate", "bulk, 8 streams, Gbit/s", 2, Goal(1.25, at_least=True)),
    Metric("bulk8.cpu", "  CPU s per GB, 8 streams", 3, Goal(0.6)),
    Metric("idle.both", "idle connection, both ends, KB", 2, Goal(4.0, ratio=False)),
    Metric("idle.server", "  server end", 2),
    Metric("idle.client", "  client end", 2),
    Metric("idle.rest_server", "RSS at rest, server end, MB", 1, Goal(32.0, ratio=False)),
    Metric("idle.rest_client", "RSS at rest, client end, MB", 1, Goal(32.0, ratio=False)),
    Metric("start.ms", "start to first byte, ms", 0, Goal(1000.0, ratio=False)),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one visit gave: who was measured, in which round, the values by metric, what went wrong."""

    contender: str
    round: int
    measurement: str
    values: Mapping[str, float]
    errors: Sequence[str] = ()


def median(outcomes: Sequence[Outcome], contender: str, key: str) -> float | None:
    """The median over the rounds, None if no round has a value."""
    values = _by_round(outcomes, contender, key).values()
    return statistics.median(values) if values else None


def spread(outcomes: Sequence[Outcome], contender: str, key: str) -> float | None:
    """Half the distance from the lowest to the highest round, as a part of the median."""
    values = _by_round(outcomes, contender, key).values()
    middle = median(outcomes, contender, key)
    return (max(values) - min(values)) / 2 / middle if middle and len(values) > 1 else None


def ratio(outcomes: Sequence[Outcome], contender: str, baseline: str, key: str) -> float | None:
    """The median of the ratios within each round: what drifts from round to round cancels out."""
    ours, theirs = (_by_round(outcomes, name, key) for name in (contender, baseline))
    ratios = [value / theirs[number] for number, value in ours.items() if theirs.get(number)]
    return statistics.median(ratios) if ratios else None


def _by_round(outcomes: Sequence[Outcome], contender: str, key: str) -> dict[int, float]:
    return {o.round: o.values[key] for o in outcomes if o.contender == contender and key in o.values}


def render(outcomes: Sequence[Outcome], contenders: Sequence[str], *, baseline: str, ours: str) -> str:
    """The tables: medians with their spread, ratios to the baseline with our goals, and every error in words.

    A ``!`` marks the figures of a measurement in which something failed.
    """
    tried = {outcome.measurement for outcome in outcomes}
    metrics = [metric for metric in METRICS if metric.measurement in tried]
    parts = [aligned(_medians(outcomes, metrics, contenders))]
    if len(contenders) > 1 and baseline in contenders:
        parts.append(aligned(_ratios(outcomes, metrics, [name for name in contenders if name != baseline], baseline)))
    if ours in contenders:
        parts.append(aligned(_goals(outcomes, metrics, ours, baseline)))
    if failures := _failures(outcomes):
        parts.append("\n".join(failures))
    return "\n\n".join(parts)


def _medians(outcomes: Sequence[Outcome], metrics: Sequence[Metric], names: Sequence[str]) -> list[list[str]]:
    def cell(metric: Metric, name: str) -> str:
        width = spread(outcomes, name, metric.key)
        text = _figure(metric, median(outcomes, name, metric.key))
        return text + ("" if width is None else f" ±{width:.0%}") + _mark(outcomes, name, metric)

    return [["median", *names], *([metric.label, *(cell(metric, name) for name in names)] for metric in metrics)]


def _ratios(
    outcomes: Sequence[Outcome], metrics: Sequence[Metric], names: Sequence[str], baseline: str
) -> list[list[str]]:
    def cell(metric: Metric, name: str) -> str:
        figure = ratio(outcomes, name, baseline, metric.key)
        text = "-" if figure is None else f"{figure:.2f}"
        return text + (_mark(outcomes, name, metric) or _mark(outcomes, baseline, metric))

    rows = [[metric.label, *(cell(metric, name) for name in names)] for metric in metrics]
    return [[f"ratio to {baseline}", *names], *rows]


def _goals(outcomes: Sequence[Outcome], metrics: Sequence[Metric], ours: str, baseline: str) -> list[list[str]]:
    rows = [["goal", ours, "wanted", ""]]
    for metric in metrics:
        if metric.goal is None:
            continue
        value, compared = median(outcomes, ours, metric.key), ratio(outcomes, ours, baseline, metric.key)
        times = "-" if compared is None else f"{compared:.2f}x"
        shown = times if metric.goal.ratio else _figure(metric, value)
        met = metric.goal.met(value, compared)
        verdict = "unknown" if met is None else "met" if met else "MISSED"
        if _mark(outcomes, ours, metric) or (metric.goal.ratio and _mark(outcomes, baseline, metric)):
            verdict = "ERRORS"  # a rate with errors in it is no achievement
        rows.append([metric.label.strip(), shown, str(metric.goal), verdict])
    return rows


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    rounds: dict[str, list[int]] = {}
    for outcome in outcomes:
        for error in outcome.errors:
            rounds.setdefault(f"! {outcome.contender}, {outcome.measurement}: {error}", []).append(outcome.round)
    return [f"{failure} (round {', '.join(map(str, numbers))})" for failure, numbers in rounds.items()]


def _figure(metric: Metric, value: float | None) -> str:
    return "-" if value is None else f"{value:,.{metric.digits}f}"


def _mark(outcomes: Sequence[Outcome], name: str, metric: Metric) -> str:
    mine = (name, metric.measurement)
    return "!" if any(o.errors for o in outcomes if (o.contender, o.measurement) == mine) else ""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows in columns, a line below the first; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def as_document(
    outcomes: Sequence[Outcome], contenders: Sequence[str], *, baseline: str, facts: Mapping[str, str]
) -> dict[str, Any]:
    """Everything for a machine to read: facts, medians and ratios by contender and metric, and every visit."""
    return {
        "facts": dict(facts),
        "baseline": baseline,
        "medians": {name: {m.key: median(outcomes, name, m.key) for m in METRICS} for name in contenders},
        "ratios": {name: {m.key: ratio(outcomes, name, baseline, m.key) for m in METRICS} for name in contenders},
        "visits": [
            {
                "contender": o.contender,
                "round": o.round,
                "measurement": o.measurement,
                "values": dict(o.values),
                "errors": list(o.errors),
            }
            for o in outcomes
        ],
    }
