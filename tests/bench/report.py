"""Evaluation of the samples: medians, ratios, goals and tables, without I/O."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure or for its ratio to the baseline: at least or at most ``bound``."""

    bound: float
    at_least: bool = False
    ratio: bool = True

    def is_met(self, value: float | None, ratio: float | None) -> bool | None:
        """Whether the goal is met, or None if there is nothing to compare."""
        figure = ratio if self.ratio else value
        return None if figure is None else figure >= self.bound if self.at_least else figure <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{'x' if self.ratio else ''}"


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table; ``key`` is ``MEASUREMENT.NAME``."""

    key: str
    label: str
    digits: int
    goal: Goal | None = None
    chart_title: str = ""
    """title of its chart if the label is incomplete without the rows above it"""
    goals: tuple[tuple[str, Goal], ...] = ()
    """goals of single variants, instead of ``goal``"""

    def goal_of(self, variant: str) -> Goal | None:
        """Return what this variant has to reach."""
        return dict(self.goals).get(variant, self.goal)

    @property
    def title(self) -> str:
        """The title of its chart."""
        return self.chart_title or self.label.strip()

    @property
    def measurement(self) -> str:
        """The name of its measurement."""
        return self.key.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The layout of a section: rows, columns, the column for ratios (baseline), the columns with goals (judged)."""

    metrics: tuple[Metric, ...]
    variants: tuple[str, ...]
    baseline: str | None = None
    judged: tuple[str, ...] = ()
    plotted: tuple[str, ...] = ()
    """keys of the metrics with a chart"""

    def without(self, absent: Collection[str]) -> Sheet:
        """Return the sheet without some columns."""
        return replace(self, variants=tuple(name for name in self.variants if name not in absent))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one trial: variant, round, measurement, values by metric, errors."""

    variant: str
    round: int
    measurement: str
    values: Mapping[str, float]
    errors: Sequence[str] = ()


def median(outcomes: Sequence[Outcome], variant: str, key: str) -> float | None:
    """Return the median over the rounds, or None without values."""
    values = _by_round(outcomes, variant, key).values()
    return statistics.median(values) if values else None


def spread(outcomes: Sequence[Outcome], variant: str, key: str) -> float | None:
    """Return half the distance between lowest and highest round, relative to the median."""
    values = _by_round(outcomes, variant, key).values()
    middle = median(outcomes, variant, key)
    return (max(values) - min(values)) / 2 / middle if middle and len(values) > 1 else None


def ratio(outcomes: Sequence[Outcome], variant: str, baseline: str, key: str) -> float | None:
    """Return the median of the ratios within each round, so that drift between rounds cancels out."""
    ours, theirs = (_by_round(outcomes, name, key) for name in (variant, baseline))
    ratios = [value / theirs[number] for number, value in ours.items() if theirs.get(number)]
    return statistics.median(ratios) if ratios else None


def _by_round(outcomes: Sequence[Outcome], variant: str, key: str) -> dict[int, float]:
    return {o.round: o.values[key] for o in outcomes if o.variant == variant and key in o.values}


def render(outcomes: Sequence[Outcome], sheet: Sheet) -> str:
    """Return the tables: medians with spread, ratios to the baseline, goals, and all errors.

    A ``!`` marks the figures of a measurement in which something failed.
    """
    tried = {outcome.measurement for outcome in outcomes}
    metrics = [metric for metric in sheet.metrics if metric.measurement in tried]
    others = [name for name in sheet.variants if name != sheet.baseline]
    parts = [align_columns(_medians(outcomes, metrics, sheet.variants))]
    if sheet.baseline in sheet.variants and others:
        parts.append(align_columns(_ratios(outcomes, metrics, others, sheet.baseline)))
    judged = [name for name in sheet.judged if name in sheet.variants]
    goals = [row for name in judged for row in _goals(outcomes, metrics, name, sheet)]
    if goals:
        parts.append(align_columns([["goal", "variant", "figure", "bound", ""], *goals]))
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


def _goals(outcomes: Sequence[Outcome], metrics: Sequence[Metric], name: str, sheet: Sheet) -> list[list[str]]:
    rows = []
    for metric in metrics:
        goal = metric.goal_of(name)
        if goal is None:
            continue
        value = median(outcomes, name, metric.key)
        compared = ratio(outcomes, name, sheet.baseline, metric.key) if sheet.baseline else None
        times = "-" if compared is None else f"{compared:.2f}x"
        shown = times if goal.ratio else _figure(metric, value)
        met = goal.is_met(value, compared)
        verdict = "unknown" if met is None else "met" if met else "MISSED"
        is_void = _mark(outcomes, name, metric) or (
            goal.ratio and sheet.baseline and _mark(outcomes, sheet.baseline, metric)
        )
        if is_void:
            verdict = "ERRORS"  # a rate with errors meets no goal
        rows.append([metric.label.strip(), name, shown, str(goal), verdict])
    return rows


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    rounds: dict[str, list[int]] = {}
    for outcome in outcomes:
        for error in outcome.errors:
            rounds.setdefault(f"! {outcome.variant}, {outcome.measurement}: {error}", []).append(outcome.round)
    return [f"{failure} (round {', '.join(map(str, numbers))})" for failure, numbers in rounds.items()]


def _figure(metric: Metric, value: float | None) -> str:
    return "-" if value is None else f"{value:,.{metric.digits}f}"


def _mark(outcomes: Sequence[Outcome], name: str, metric: Metric) -> str:
    mine = (name, metric.measurement)
    return "!" if any(o.errors for o in outcomes if (o.variant, o.measurement) == mine) else ""


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned columns with a line below the first row; only the first column is left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def chart_panels(outcomes: Sequence[Outcome], sheet: Sheet) -> dict[str, dict[str, float]]:
    """Return the medians of each plotted metric by variant, without missing values."""
    found = {}
    for metric in sheet.metrics:
        if metric.key in sheet.plotted:
            values = {name: median(outcomes, name, metric.key) for name in sheet.variants}
            if bars := {name: value for name, value in values.items() if value is not None}:
                found[metric.title] = bars
    return found


def as_document(outcomes: Sequence[Outcome], sheet: Sheet) -> dict[str, Any]:
    """Return a section as JSON data: medians and ratios by variant and metric, and every trial."""
    compared = sheet.variants if sheet.baseline else ()
    return {
        "baseline": sheet.baseline,
        "medians": {name: {m.key: median(outcomes, name, m.key) for m in sheet.metrics} for name in sheet.variants},
        "ratios": {
            name: {m.key: ratio(outcomes, name, sheet.baseline or "", m.key) for m in sheet.metrics}
            for name in compared
        },
        "trials": [
            {
                "variant": o.variant,
                "round": o.round,
                "measurement": o.measurement,
                "values": dict(o.values),
                "errors": list(o.errors),
            }
            for o in outcomes
        ],
    }
