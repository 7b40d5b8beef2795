"""Traffic by hour, day or month as bars of characters. Pure: from the answer of the API to lines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tui.format.text import Line, clip, fit, format_bytes, format_count, paragraph, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.status.json_types import TrafficJson, TrafficRowJson

STEPS: Final = ("hour", "day", "month")
"""How the screen sums traffic up, in the order of its keys."""
DAYS: Final = {"hour": 2, "day": 31, "month": 365}
"""How much of it is asked for."""

_BARS: Final = " ▁▂▃▄▅▆▇█"
_SCALE_WIDTH: Final = 6
_MIN_HEIGHT, _MAX_HEIGHT = 3, 9
_OTHER_LINES: Final = 7  # of the page: headings, labels, empty lines
_MAX_BAR: Final = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """One hour, day or month of the chart."""

    key: str
    label: str


def chart_slots(step: str, until: str, count: int) -> list[Slot]:
    """Return the last ``count`` periods up to the time ``until`` (RFC 3339), the oldest first."""
    end = datetime.fromisoformat(until)
    if step == "hour":
        hours = [end.replace(minute=0, second=0, microsecond=0) - timedelta(hours=ago) for ago in range(count)]
        return [Slot(_hour_key(hour), f"{hour:%H}") for hour in reversed(hours)]
    if step == "day":
        days = [end.date() - timedelta(days=ago) for ago in range(count)]
        return [Slot(day.isoformat(), f"{day:%d}") for day in reversed(days)]
    last = end.year * 12 + end.month - 1
    months = [date(number // 12, number % 12 + 1, 1) for number in range(last - count + 1, last + 1)]
    return [Slot(f"{month:%Y-%m}", f"{month:%m}") for month in months]


def _hour_key(moment: datetime) -> str:
    return str(int(moment.timestamp() // 3600))


def row_key(row: TrafficRowJson, step: str) -> str:
    """Return the key of the slot to which a row belongs."""
    start = row["start"]
    return _hour_key(datetime.fromisoformat(start)) if step == "hour" else start[: 10 if step == "day" else 7]


def bar_lines(values: Sequence[int], labels: Sequence[str], bar: int, height: int) -> list[Line]:
    """Return bars of ``bar`` columns each, with a scale at the left and the labels below."""
    top = max(values, default=0)
    lines: list[Line] = []
    for row in range(height, 0, -1):
        scale = format_bytes(top) if row == height else format_bytes(top / 2) if row == height // 2 and top else ""
        cells = (_BARS[_eighths(value, top, row, height)] * (bar - (bar > 1)) + " " * (bar > 1) for value in values)
        lines.append(((fit(scale, _SCALE_WIDTH - 1, right=True), "dim"), (" ", ""), ("".join(cells), "spark")))
    shown = "".join(fit(label if _has_label(i, len(labels), bar) else "", bar) for i, label in enumerate(labels))
    if bar < 3:  # a label takes the columns of those that follow it
        shown = _spread_labels(labels, bar)
    lines.append(((" " * _SCALE_WIDTH, ""), (shown, "dim")))
    return lines


def _eighths(value: int, top: int, row: int, height: int) -> int:
    """Return how many eighths of a cell a bar fills; one that is not empty is visible at the bottom."""
    if value <= 0 or top <= 0:
        return 0
    filled = max(1, round(8 * height * value / top))
    return max(0, min(8, filled - 8 * (row - 1)))


def _has_label(index: int, count: int, bar: int) -> bool:
    return bar >= 3 or (count - 1 - index) % 3 == 0


def _spread_labels(labels: Sequence[str], bar: int) -> str:
    every = 3 if bar == 2 else 6
    cells = [" "] * (len(labels) * bar + 1)
    for index in range(len(labels) - 1, -1, -every):
        cells[index * bar : index * bar + 2] = labels[index]
    return "".join(cells)


def traffic_lines(answer: TrafficJson, width: int, height: int) -> list[Line]:
    """Return the page of one tunnel: a chart for each direction, and the sums of what it shows."""
    step = answer["by"]
    rows = {row_key(row, step): row for tunnel in answer["tunnels"] for row in tunnel["rows"]}
    room = max(12, width - _SCALE_WIDTH - 1)
    count = {"hour": min(48, room), "day": min(DAYS["day"], room), "month": 12}[step]
    slots = chart_slots(step, answer["until"], count)
    bar = max(1, min(_MAX_BAR, room // count))
    lines = [_choice_line(step, width), ()]
    shown = [rows[slot.key] for slot in slots if slot.key in rows]
    if not shown:
        return [*lines, *paragraph(f"No traffic in the last {plural(count, step)}.", width, "dim")]
    sums = paragraph(_sums(shown, count, step), width)
    each = max(_MIN_HEIGHT, min(_MAX_HEIGHT, (height - _OTHER_LINES - len(sums)) // 2))
    labels = [slot.label for slot in slots]
    received = [rows[slot.key]["in"] if slot.key in rows else 0 for slot in slots]
    sent = [rows[slot.key]["out"] if slot.key in rows else 0 for slot in slots]
    for title, values in (("to visitors", sent), ("from visitors", received)):
        lines.append(((f"{title} ", "title"), (f" {format_bytes(sum(values))}", "")))
        lines += [clip(line, width) for line in bar_lines(values, labels, bar, each)]
    return [*lines, (), *sums]


def _choice_line(step: str, width: int) -> Line:
    spans = []
    for one in STEPS:
        spans += [(one[0], "key"), (f" {one}", "pick" if one == step else "dim"), ("   ", "")]
    return clip(tuple(spans), width)


def _sums(rows: Sequence[TrafficRowJson], count: int, step: str) -> str:
    visitors, failed = sum(row["visitors"] for row in rows), sum(row["failed"] for row in rows)
    refused = sum(row["refused"] for row in rows)
    parts = [plural(visitors, "visitor") if visitors < 2 else f"{format_count(visitors)} visitors"]
    parts += [f"{failed} not served"] if failed else []
    parts += [f"{refused} refused"] if refused else []
    return f"{', '.join(parts)} in the last {plural(count, step)}"
