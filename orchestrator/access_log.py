"""The daemon's access log: where the lines of visitors go, as ``access_log:`` in the file says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.process.access_log_file import AccessLogFile
from orchestrator.status.visitor_lines import VisitorLines
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.config.supervisor_settings import AccessLogSettings
    from orchestrator.supervisor.control import AccessLogStatus
    from tunnel.model.events import EventLog, EventSink
    from tunnel.model.visitor_end import VisitorRecord


class AccessLog:
    """One per daemon, on its event loop. Workers send it the lines of their visitors."""

    def __init__(self, settings: AccessLogSettings, log: EventSink, event_log: EventLog) -> None:
        """``log`` is the daemon's own log, which gets the lines if no file is named."""
        self._log = log
        self._event_log = event_log
        self._loop = asyncio.get_running_loop()
        self._lost_in_workers = 0
        self._logged = 0
        self._file: AccessLogFile | None = None
        if settings.file is not None:
            report = partial(self._call_on_loop, self._report)
            self._file = AccessLogFile(settings.file, settings.max_size, settings.keep, report)
            # Opens the file: one that cannot be written is reported now, not when the first visitor has left.
            self._file.write(b"", 0)
        self._lines = VisitorLines(self._write)

    def add(self, tunnel: str, record: VisitorRecord) -> None:
        """Log a visitor of an engine in this process."""
        self._lines.add(tunnel, record)

    def add_lines(self, data: bytes, lines: int, lost: int) -> None:
        """Log the lines of a worker, which has lost some."""
        self._lost_in_workers += lost
        self._write(data, lines)

    def status(self) -> AccessLogStatus:
        """The number of lines that were written, and of those that were lost."""
        if self._file is None:
            return self._logged, self._lost_in_workers
        return self._file.lines, self._file.lost + self._lost_in_workers

    def reopen(self) -> None:
        """Open the file again, after another program has renamed it."""
        if self._file is not None:
            self._file.reopen()

    def close(self) -> None:
        """Write what is gathered and queued, for a limited time."""
        self._lines.flush()
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes, lines: int) -> None:
        if self._file is not None:
            self._file.write(data, lines)
            return
        self._logged += lines
        for line in data.splitlines():
            self._log(_event_of(json.loads(line)))

    def _call_on_loop(self, report: Callable[[str], None], problem: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
            self._loop.call_soon_threadsafe(report, problem)

    def _report(self, problem: str) -> None:
        _, lost = self.status()
        if problem:
            text = f"access log: {problem}; visitors are not affected"
            self._event_log.warn_throttled(EventKind.LOG, "access log", text)
        else:
            self._event_log.log_info(EventKind.LOG, f"access log: the problem is over; lines lost so far: {lost}")


def _event_of(line: dict[str, object]) -> Event:
    visitor = f"visitor {line['address']}" if line["address"] else "a visitor"
    text = f"{visitor} has left: {line['end']}"
    if line["duration_s"] is not None:
        text += f", {line['duration_s']} s"
    if line["reason"]:
        text += f": {line['reason']}"
    return Event(
        ts=datetime.fromisoformat(str(line["time"])).timestamp(),
        tunnel=str(line["tunnel"]),
        level=LogLevel.INFO,
        kind=EventKind.VISITOR,
        text=text,
        data={key: value for key, value in line.items() if key not in {"time", "tunnel"}},
    )


@contextlib.contextmanager
def opened_access_log(
    settings: AccessLogSettings | None, log: EventSink, event_log: EventLog
) -> Iterator[AccessLog | None]:
    """The access log of a daemon; None if its file wants none."""
    if settings is None:
        yield None
        return
    access_log = AccessLog(settings, log, event_log)
    try:
        yield access_log
    finally:
        access_log.close()
