"""Collects the counters of tunnels and hands them to the thread that writes them; answers queries.

Everything here runs on the event loop and waits for nothing that a disk may delay: a batch that cannot be written is
kept and added up until it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from orchestrator.history import database
from orchestrator.history.database import HistoryError, HistoryFile
from orchestrator.history.periods import Period, Step, format_start, periods
from orchestrator.history.quota import first_hour
from orchestrator.history.quota_keeper import QuotaHolder, QuotaKeeper
from orchestrator.history.traffic import NO_TRAFFIC, Baselines, PendingRows, RowKey, Traffic, hour_of, read_traffic
from orchestrator.name_patterns import matching_names
from orchestrator.status.scanner import SCAN_BATCH_SIZE, ScanSchedule
from tunnel.model.events import EventKind, EventLog
from tunnel.model.wording import plural
from tunnel.runtime.blocking_calls import BlockingCalls, ThreadShortageError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from orchestrator.status.json_types import TrafficJson, TunnelTrafficJson
    from tunnel.model.events import Event, EventSink
    from tunnel.model.quota import Quota
    from tunnel.model.snapshot import Snapshot

Value = TypeVar("Value")

QUOTA_INTERVAL_S: Final = 1.0
"""Seconds between two checks of quotas."""

INTERVAL_S: Final = 10.0
"""Seconds between two batches: what a killed daemon loses at most."""

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the end of the daemon waits for the last batch."""

MAX_CELLS: Final = 50_000
"""Tunnels times periods that one query may ask for."""

_QUIET_ROUND_S: Final = 300.0  # in which every tunnel is read once; one with visitors is read in each interval
_QUIET_EVENTS: Final = frozenset({EventKind.STATE, EventKind.LINK, EventKind.LISTEN})  # all that a start emits
_PAUSE_S: Final = 0.004  # between two groups of tunnels, so that no visitor waits for the collection of all
_MAX_PENDING_ROWS: Final = 100_000
_SLOW_INTERVALS: Final = 3  # after so many a batch that is not written is reported
_READ_TIMEOUT_S: Final = 8.0
_CLOCK_STEP_S: Final = 5.0  # a smaller step of the clock is an adjustment
_REPEAT_S: Final = 3600.0  # between two reports of one problem


class TrafficSource(QuotaHolder, Protocol):
    """What the recorder uses of the supervisor."""

    @property
    def history_hours(self) -> int:
        """How long traffic is kept; 0: it is not recorded."""

    def names(self) -> Collection[str]:
        """Return the names of the tunnels that the supervisor has now."""

    def snapshot(self, name: str) -> Snapshot:
        """One tunnel now. Raises LookupError."""


class TooManyCellsError(HistoryError):
    """A query asks for more than one answer may hold."""


@dataclass(frozen=True, slots=True)
class HistoryStatus:
    """The numbers of the writer."""

    pending_rows: int
    lost_rows: int
    """rows that were dropped because the file could not be written for a long time"""
    failed_writes: int
    last_write: float | None
    """seconds since the epoch"""


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """The answer to a query."""

    step: Step
    days: int
    periods: Sequence[Period]
    until: float
    tunnels: Sequence[tuple[str, bool, Sequence[tuple[float, Traffic]]]]
    """name, whether it is a tunnel now, and its traffic by the start of the period, those without traffic left out"""

    @property
    def bytes(self) -> int:
        """The bytes of all tunnels, in both directions."""
        return sum(counted.bytes for _, _, rows in self.tunnels for _, counted in rows)

    def as_json(self) -> TrafficJson:
        """Return the answer of ``GET /v1/traffic``; takes some milliseconds for each thousand values."""
        return {
            "by": self.step.value,
            "days": self.days,
            "since": format_start(self.periods[0].start),
            "until": format_start(self.until),
            "tunnels": [_tunnel_json(name, rows, is_present=present) for name, present, rows in self.tunnels],
        }


def _tunnel_json(name: str, rows: Sequence[tuple[float, Traffic]], *, is_present: bool) -> TunnelTrafficJson:
    total = NO_TRAFFIC
    for _, counted in rows:
        total = total.plus(counted)
    return {
        "name": name,
        "present": is_present,
        "total": total.as_json(),
        "rows": [{"start": format_start(start), **counted.as_json()} for start, counted in rows],
    }


class TrafficRecorder:
    """One per daemon. ``run`` is its life, ``close`` its end."""

    def __init__(
        self, source: TrafficSource, path: Path | None, sink: EventSink, *, clock: Callable[[], float] = time.time
    ) -> None:
        """``path`` is the file; None where there is no directory for it."""
        self._source = source
        self._log = EventLog("", sink)
        self._quotas = QuotaKeeper(source, sink)
        self._has_new_quotas = False
        self._busy: set[str] = set()  # tunnels that may have carried something since their quotas were checked
        self._clock = clock
        self._file = HistoryFile(path, clock) if path is not None else None
        self._calls = BlockingCalls("the traffic history", 1)
        self._schedule = ScanSchedule[str](_QUIET_ROUND_S)
        self._baselines = Baselines()
        self._pending = PendingRows(_MAX_PENDING_ROWS)
        self._in_flight: Mapping[RowKey, Traffic] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._file_turn = asyncio.Lock()
        self._collecting = asyncio.Lock()
        self._collected_at = (time.monotonic(), clock())
        self._pruned_hour = -1
        self._failed_writes = 0
        self._last_write: float | None = None
        self._problem: tuple[str, float] | None = None  # reported last, and when

    # --- its life -------------------------------------------------------------------------------------------------

    async def run(self, interval_s: float = INTERVAL_S, quota_interval_s: float = QUOTA_INTERVAL_S) -> None:
        """Collect and write in each interval until cancelled; check the quotas more often."""
        slow = 0
        due = time.monotonic() + interval_s
        await self.check_quotas()
        while True:
            await asyncio.sleep(min(quota_interval_s, max(0.0, due - time.monotonic())))
            await self.check_quotas()
            if time.monotonic() < due:
                continue
            due = time.monotonic() + interval_s
            await self.collect()
            if self._flushing is None or self._flushing.done():
                slow = 0
                self._start_flush()
            elif (slow := slow + 1) == _SLOW_INTERVALS:
                self._report_problem("the disk does not answer")
                self._count_unread_quotas()

    async def check_quotas(self) -> None:
        """Count what tunnels with a quota carried, and warn or refuse; read the history of new quotas."""
        self._has_new_quotas |= self._quotas.follow_file()
        if self._has_new_quotas and (self._flushing is None or self._flushing.done()):
            self._has_new_quotas = False
            self._start_flush()
        busy = [name for name in self._busy if self._quotas.is_followed(name)]
        self._busy.clear()
        async with self._collecting:
            for start in range(0, len(busy), SCAN_BATCH_SIZE):
                names = busy[start : start + SCAN_BATCH_SIZE]
                for name in names:
                    self._count(name)
                self._quotas.evaluate(names, self._clock())
                await asyncio.sleep(_PAUSE_S)
        self._quotas.evaluate((), self._clock())

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Write what is left, for ``timeout_s`` at most; the tunnels must have stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.collect(everything=True)
                if self._flushing is not None:
                    await asyncio.wait({self._flushing})
                await asyncio.wait({self._start_flush()})
        if self._flushing is not None:
            self._flushing.cancel()
        if count := len(self._pending) + len(self._in_flight):
            self._log.log_warn(EventKind.HISTORY, f"{plural(count, 'row')} of the traffic history could not be written")
        if self._file is not None:
            with contextlib.suppress(TimeoutError, ThreadShortageError):
                async with asyncio.timeout(timeout_s):
                    await self._calls.run(self._file.close)

    def on_event(self, event: Event) -> None:
        """Read the tunnel of an event in the next interval, unless the event says that nothing was carried."""
        if event.kind not in _QUIET_EVENTS:
            self.mark_busy(event.tunnel)

    def mark_busy(self, name: str) -> None:
        """Read this tunnel in the next interval."""
        self._schedule.mark(name)
        self._busy.add(name)

    def on_removed(self, name: str, last: Snapshot) -> None:
        """Count what a tunnel carried until it was removed; its history stays."""
        self._add(name, self._baselines.advance(name, read_traffic(last)))
        self._baselines.forget(name)

    def status(self) -> HistoryStatus | None:
        """The numbers of the writer; None where nothing is recorded."""
        if not self._is_on:
            return None
        pending = len(self._pending) + len(self._in_flight)
        return HistoryStatus(pending, self._pending.lost, self._failed_writes, self._last_write)

    @property
    def _is_on(self) -> bool:
        return self._file is not None and self._source.history_hours > 0

    # --- collecting -----------------------------------------------------------------------------------------------

    async def collect(self, *, everything: bool = False) -> None:
        """Read the tunnels that may have carried something since the last time, or all."""
        async with self._collecting:
            elapsed_s = self._check_clock()
            present = self._source.names()
            names = list(present)
            due = names if everything else self._schedule.due(names, present, elapsed_s)  # a new one counts from zero
            for number, name in enumerate(due, 1):
                self._count(name)
                if number % SCAN_BATCH_SIZE == 0:
                    await asyncio.sleep(_PAUSE_S)
            self._baselines.retain(self._source.names())

    def _check_clock(self) -> float:
        """Return the seconds since the last collection, and report a clock that was set back."""
        (monotonic, wall), self._collected_at = self._collected_at, (time.monotonic(), self._clock())
        elapsed_s = self._collected_at[0] - monotonic
        step_s = self._collected_at[1] - wall - elapsed_s
        if step_s < -_CLOCK_STEP_S and self._is_on:
            text = f"the clock was set back by {-step_s:.0f} s; traffic is added to hours that were counted before"
            self._log.warn_throttled(EventKind.HISTORY, "clock", text)
        return elapsed_s

    def _count(self, name: str) -> None:
        try:
            seen = self._source.snapshot(name)
        except LookupError:  # it was removed meanwhile
            return
        counted = self._baselines.advance(name, read_traffic(seen))
        if counted != NO_TRAFFIC or seen.connections.active:
            self.mark_busy(name)
        self._add(name, counted)

    def _add(self, name: str, counted: Traffic) -> None:
        if counted == NO_TRAFFIC:
            return
        hour = hour_of(self._clock())
        self._quotas.add(name, hour, counted.bytes)
        if self._is_on:
            self._pending.add((name, hour), counted)

    # --- writing --------------------------------------------------------------------------------------------------

    def _start_flush(self) -> asyncio.Task[None]:
        self._flushing = asyncio.create_task(self._flush())
        return self._flushing

    async def _flush(self) -> None:
        """Write what is pending, if there is anything to write; keep it where that fails."""
        async with self._file_turn:
            now_hour, kept_hours = hour_of(self._clock()), self._source.history_hours
            unread = dict(self._quotas.unread)
            first_hours = {name: first_hour(quota, self._clock()) for name, quota in unread.items()}
            if not self._is_on or not (self._pending or unread or now_hour != self._pruned_hour):
                self._count_unread_quotas()
                return
            rows = self._in_flight = self._pending.take_all()

            def write(connection: sqlite3.Connection) -> dict[str, dict[int, int]]:
                database.write_rows(connection, rows)
                if now_hour != self._pruned_hour:
                    database.prune(connection, now_hour, kept_hours)
                return {name: database.read_hours(connection, name, first) for name, first in first_hours.items()}

            try:
                found = await self._run_job(write)
            except HistoryError as error:
                self._failed_writes += 1
                self._pending.put_back(rows)
                self._report_problem(str(error))
                self._count_unread_quotas()
            else:
                self._pruned_hour, self._last_write = now_hour, self._clock()
                self._report_recovery()
                self._open_accounts(unread, found)
            self._in_flight = {}

    def _open_accounts(self, quotas: Mapping[str, Quota], found: Mapping[str, Mapping[int, int]]) -> None:
        """Count the quotas of these tunnels from what the file has, and from what came while it was read."""
        for name, quota in quotas.items():
            hours = dict(found[name])
            for (other, hour), counted in self._pending.rows.items():
                if other == name:
                    hours[hour] = hours.get(hour, 0) + counted.bytes
            self._quotas.open_account(name, quota, hours, is_complete=True)
        self._quotas.evaluate(quotas, self._clock())

    def _count_unread_quotas(self) -> None:
        """Count from now on where the history cannot be read."""
        for name, quota in dict(self._quotas.unread).items():
            self._quotas.open_account(name, quota, {}, is_complete=False)

    async def _run_job(self, job: Callable[[sqlite3.Connection], Value]) -> Value:
        """Run a job on the thread of the file. Raises HistoryError, whatever went wrong."""
        if self._file is None:
            raise HistoryError("there is no directory for the file")
        try:
            return await self._calls.run(partial(self._file.run, job))
        except (HistoryError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise HistoryError(str(error) or type(error).__name__) from error
        finally:
            while self._file.notes:
                self._log.log_warn(EventKind.HISTORY, f"traffic history: {self._file.notes.pop(0)}")

    def _report_problem(self, problem: str) -> None:
        """Report a problem once, and again each hour; the tunnels are not affected."""
        now = time.monotonic()
        if self._problem is None or self._problem[0] != problem or now - self._problem[1] > _REPEAT_S:
            self._problem = (problem, now)
            text = f"traffic history: {problem}; the tunnels are not affected, what is counted is written later"
            self._log.log_warn(EventKind.HISTORY, text)

    def _report_recovery(self) -> None:
        if self._problem is not None:
            self._problem = None
            lost = f"; {plural(self._pending.lost, 'row')} lost" if self._pending.lost else ""
            self._log.log_info(EventKind.HISTORY, f"the traffic history is written again{lost}")

    # --- reading --------------------------------------------------------------------------------------------------

    async def read(self, step: Step, days: int, patterns: Collection[str]) -> TrafficReport:
        """Return the traffic of the tunnels, present or former, that match names or patterns (none: all).

        Raises HistoryError, TooManyCellsError, and LookupError with the name that matches none.
        """
        if not self._is_on:
            raise HistoryError(
                "traffic is not recorded: the file says supervisor: history: 0, or no directory is usable"
            )
        await self.collect()
        now = self._clock()
        wanted = periods(step, days, now)
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S), self._file_turn:
                stored = await self._run_job(database.read_names)
                names = self._select(stored, patterns)
                if len(names) * len(wanted) > MAX_CELLS:
                    text = f"{plural(len(names), 'tunnel')} in {len(wanted)} periods are more than one answer holds"
                    raise TooManyCellsError(f"{text}; ask for fewer days, longer periods or fewer tunnels")
                pending, present = dict(self._pending.rows), self._source.names()

                def read(connection: sqlite3.Connection) -> TrafficReport:
                    found = database.read_periods(connection, wanted, names)
                    rows = _join_rows(names, wanted, found, pending)
                    tunnels = [(name, name in present, rows[name]) for name in names if name in present or rows[name]]
                    return TrafficReport(step, days, wanted, now, tunnels)

                return await self._run_job(read)
        except TimeoutError:
            raise HistoryError("the file does not answer in time; see the daemon's log") from None

    def _select(self, stored: Sequence[str], patterns: Collection[str]) -> list[str]:
        """Return present tunnels in the order of the file, then former ones by name."""
        pending = (name for name, _ in self._pending.rows)
        known = list(dict.fromkeys([*self._source.names(), *sorted({*stored, *pending})]))
        if not patterns:
            return known
        wanted: set[str] = set()
        for pattern in patterns:
            matching = matching_names(known, pattern)
            if not matching:
                raise LookupError(pattern)
            wanted.update(matching)
        return [name for name in known if name in wanted]


def _join_rows(
    names: Sequence[str],
    wanted: Sequence[Period],
    found: Sequence[dict[str, Traffic]],
    pending: Mapping[RowKey, Traffic],
) -> dict[str, list[tuple[float, Traffic]]]:
    """Return the rows of each tunnel, with what is not in the file yet."""
    rows: dict[str, list[tuple[float, Traffic]]] = {name: [] for name in names}
    starts = [period.first_hour for period in wanted]
    for (name, hour), counted in pending.items():
        index = bisect_right(starts, hour) - 1
        if name in rows and index >= 0 and hour < wanted[index].end_hour:
            found[index][name] = found[index].get(name, NO_TRAFFIC).plus(counted)
    for period, totals in zip(wanted, found, strict=True):
        for name, counted in totals.items():
            rows[name].append((period.start, counted))
    return rows
