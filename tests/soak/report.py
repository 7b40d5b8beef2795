"""The result of a soak as one screen of text and as a page with plots."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.soak.readings import ProcessFigures, Reading
from tests.soak.run import Record, Sample
from tests.support import charts

_MIB: Final = 1 << 20
_MAX_SHOWN: Final = 12  # failed visits or findings of one kind

Row = tuple[str, ...]
_FIGURES: Final[tuple[tuple[str, Callable[[ProcessFigures], float]], ...]] = (
    ("sockets", lambda h: h.sockets),
    ("pipes", lambda h: h.pipes),
    ("other files", lambda h: h.other_files),
    ("threads", lambda h: h.threads),
    ("tasks", lambda h: h.tasks),
    ("RSS, MiB", lambda h: round(h.rss / _MIB, 1)),
    ("CLOSE_WAIT", lambda h: h.close_wait),
)
_WHOLE: Final[tuple[tuple[str, Callable[[Reading], float]], ...]] = (
    ("visitors", lambda r: r.active),
    ("idle data connections", lambda r: r.idle),
    ("TIME_WAIT", lambda r: r.time_wait),
    ("files", lambda r: len(r.files)),
)


def summary(record: Record, seconds: float) -> str:
    """Return the result as one screen of text."""
    visits, faults = sum(record.served.values()), record.incidents.faults
    load = f"{seconds / 60:.1f} minutes under load"
    unexplained = f"without an explanation: {len(record.unexplained)}"
    datagrams = record.datagrams
    lines = [
        f"{load}: {visits} visits, {record.bytes_verified / 1e9:.2f} GB verified, {len(faults)} faults",
        f"corrupted streams: {len(record.corruptions)}",
        f"failed visits: {len(record.failed)}, {unexplained}",
        f"time in which no fault could explain a failed visit: {record.fault_free_share:.0%}",
        f"datagrams: {sum(datagrams.sent.values())}, {sum(datagrams.answered.values())} answered; {_lost(record)}",
        "",
        *_text([("", "baseline", "maximum", "at the end"), *_figures(record)]),
        "",
        *_defects(record),
        "verdict: " + ("good" if record.is_good else "NOT GOOD" if record.is_complete else "NOT COMPLETE"),
    ]
    return "\n".join(lines)


def write(record: Record, seconds: float, folder: Path) -> Path:
    """Write ``soak.md`` and ``soak.svg``; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    total_s, gigabytes = record.ended - record.began, record.bytes_verified / 1e9
    verdict = "Good." if record.is_good else "Not good." if record.is_complete else "Not complete."
    parts = [
        "# Soak",
        "",
        f"{seconds / 60:.1f} minutes of load and faults on fourteen tunnels of two daemons, {total_s:.0f} s in total.",
        verdict,
        "",
        *_defects(record, "- "),
        "",
        "![Resources of the daemons over time](soak.svg)",
        "",
        *_table([("resource", "baseline", "maximum", "at the end"), *_figures(record)]),
        "",
        *_table([("visits", "served", "failed", "without an explanation"), *_visits(record)]),
        "",
        f"{gigabytes:.2f} GB were verified byte by byte; {len(record.corruptions)} streams were corrupted.",
        f"In {record.fault_free_share:.0%} of the time no fault could explain a failed visit.",
        "",
        *_table([("UDP tunnel", "datagrams", "answered"), *_datagrams(record)]),
        "",
        f"Of the datagrams without an answer: {_lost(record)}.",
        "",
        *_table([("fault", "count", "median s to recovery", "maximum"), *_faults(record)]),
        "",
    ]
    page = folder / "soak.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    _plot(record, folder / "soak.svg")
    return page


def _defects(record: Record, mark: str = "") -> Iterator[str]:
    for text in record.corruptions[:_MAX_SHOWN]:
        yield f"{mark}corrupted {text}"
    for text in record.incidents.findings[:_MAX_SHOWN]:
        yield f"{mark}{text}"
    for visit in record.unexplained[:_MAX_SHOWN]:
        after, lasted = visit.began - record.began, visit.ended - visit.began
        kind = f"{visit.kind}, {'' if visit.established else 'not '}established, {lasted:.2f} s long"
        yield f"{mark}after {after:.1f} s a visit to {visit.tunnel} ({kind}) failed: {visit.reason}"
    for loss in record.datagrams.losses.unexplained[:_MAX_SHOWN]:
        after = loss.began - record.began
        yield f"{mark}after {after:.1f} s {loss.tunnel} lost datagrams without counting them: {loss.count}"


def _lost(record: Record) -> str:
    losses = record.datagrams.losses
    unexplained = sum(loss.count for loss in losses.unexplained)
    explained = f"in faults: {losses.in_faults}, dropped and counted: {losses.counted}"
    return f"{explained}, without an explanation: {unexplained}; answered late: {record.datagrams.late}"


def _datagrams(record: Record) -> Iterator[Row]:
    for name, sent in sorted(record.datagrams.sent.items()):
        yield name, str(sent), str(record.datagrams.answered.get(name, 0))


def _figures(record: Record) -> Iterator[Row]:
    before, last = record.baseline, record.last
    readings = [sample.reading for sample in record.samples if sample.reading]
    for name in before.processes if before else ():
        for title, value in _FIGURES:
            if title == "tasks" and name.endswith("workers"):
                continue
            held = [value(reading.processes[name]) for reading in readings if name in reading.processes]
            ends = [
                value(reading.processes.get(name, ProcessFigures())) if reading else None for reading in (before, last)
            ]
            yield (
                f"{name}: {title}",
                _format_value(ends[0]),
                _format_value(max(held, default=None)),
                _format_value(ends[1]),
            )
    for title, figure in _WHOLE:
        most = max((figure(reading) for reading in readings), default=None)
        yield (
            title,
            _format_value(figure(before) if before else None),
            _format_value(most),
            _format_value(figure(last) if last else None),
        )


def _visits(record: Record) -> Iterator[Row]:
    failed = collections.Counter(visit.kind for visit in record.failed)
    wrong = collections.Counter(visit.kind for visit in record.unexplained)
    for kind in sorted({*record.served, *failed}):
        yield kind, str(record.served.get(kind, 0)), str(failed[kind]), str(wrong[kind])


def _faults(record: Record) -> Iterator[Row]:
    lasted: dict[str, list[float]] = {}
    for what, began, ended in record.incidents.faults:
        lasted.setdefault(what, []).append(ended - began)
    for what, times in sorted(lasted.items()):
        yield what, str(len(times)), f"{sorted(times)[len(times) // 2]:.1f}", f"{max(times):.1f}"


def _format_value(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _table(rows: list[Row]) -> list[str]:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body]


def _text(rows: list[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _plot(record: Record, path: Path) -> None:
    samples = record.samples
    kinds = sorted({name for sample in samples if sample.reading for name in sample.reading.processes})

    def line(value: Callable[[Reading], float | None]) -> list[tuple[float, float]]:
        return [
            (sample.at - record.began, found)
            for sample in samples
            if sample.reading is not None and (found := value(sample.reading)) is not None
        ]

    def held(value: Callable[[ProcessFigures], float]) -> dict[str, list[tuple[float, float]]]:
        return {
            name: line(lambda r, name=name: value(r.processes[name]) if name in r.processes else None)  # type: ignore[misc]  # mypy does not infer defaults of lambdas
            for name in kinds
        }

    panels = {
        "Visits a second": {"served": _rate(record, lambda s: s.served), "failed": _rate(record, lambda s: s.failed)},
        "Resident memory, MiB": held(lambda h: h.rss / _MIB),
        "Sockets, without idle data connections": held(lambda h: h.sockets),
        "Threads; tasks of the daemon's loop": held(lambda h: h.threads)
        | {"stable, tasks": line(lambda r: r.processes["stable"].tasks)},
        "Data connections in the pools": held(lambda h: h.idle) | {"capacity of all": line(lambda r: r.capacity)},
        "Connections in TIME_WAIT": {"all": line(lambda r: r.time_wait)},
    }
    charts.lines(path, panels, across="seconds since the start")


def _rate(record: Record, value: Callable[[Sample], int]) -> list[tuple[float, float]]:
    return [
        (after.at - record.began, (value(after) - value(before)) / (after.at - before.at))
        for before, after in zip(record.samples, record.samples[1:], strict=False)
    ]
