"""Formats events as log lines, and writes them without blocking the event loop."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from orchestrator.json_text import json_text
from orchestrator.process.standard_streams import write_waiting
from orchestrator.process.terminal_text import printable
from tunnel.model.events import VISITOR, Event, EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.wording import plural
from tunnel.runtime import sockets
from tunnel.runtime.blocking_calls import ThreadShortageError

if TYPE_CHECKING:
    from orchestrator.process.log_file import LogFile

Format = Callable[[Event], str]

MAX_QUEUED_LINES: Final = 10_000
CLOSE_TIMEOUT_S: Final = 1.0


def as_text(event: Event) -> str:
    """``TIME LEVEL NAME  text``, always one line; the time is local, with its offset from UTC."""
    return _line(_local_time(event.ts), event.level.name, event.tunnel, _with_visitor(event.text, event.data))


def format_json_event(event: Mapping[str, Any]) -> str:
    """The same line, for an event in JSON."""
    text = _with_visitor(event["text"], event)
    return _line(format_local_time(event["ts"]), event["level"].upper(), event["tunnel"], text)


def _with_visitor(text: str, data: Mapping[str, Any]) -> str:
    """Return the text of an event with the visitor's address, which is not in it: the broker must not receive it."""
    return f"{text} [{data[VISITOR]}]" if VISITOR in data else text


def format_local_time(timestamp: str | None) -> str:
    """Return a timestamp of the API in local time; one that is none, as it is."""
    try:
        return _local_time(datetime.fromisoformat(str(timestamp)).timestamp())
    except (ValueError, OverflowError, OSError):
        return str(timestamp)


def _local_time(moment: float) -> str:
    """Return seconds since the epoch as RFC 3339 writes them, to the millisecond, with the local offset from UTC."""
    return datetime.fromtimestamp(moment, UTC).astimezone().isoformat(timespec="milliseconds")


def _line(moment: str, level: str, tunnel: str, text: str) -> str:
    return printable(f"{moment} {level:<5} {tunnel or 'nodepass-orch'}  {text}")


def as_json(event: Event) -> str:
    """The event as a JSON object, always on one line."""
    line = json_text(event.as_json())
    return line if line.isprintable() else json.dumps(json.loads(line))


class LogWriter:
    """Writes lines to a descriptor in a separate thread.

    A terminal that is paused with Ctrl-S, or a pipe without a reader, would otherwise stop every tunnel of the process.
    Lines beyond a bound are dropped and counted, and so are those that a full disk does not take.
    """

    def __init__(self, fd: int = 2, form: Format = as_text, file: LogFile | None = None) -> None:
        """``file`` is the file behind ``fd``, if it is to be reopened and rotated. Raises ThreadShortageError."""
        self._fd = fd
        self._file = file
        self._is_reopening = False
        self._form = form
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._error = ""
        self._is_line_cut = False
        self._problems: dict[str, str] = {}
        self._report_problem: Callable[[str], None] | None = None
        self._closing = False
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # "can't start new thread": Python has no narrower class for it
            raise ThreadShortageError("the log") from None

    def __call__(self, event: Event) -> None:
        """Put the event's line in the queue; never blocks, never raises."""
        line = self._form(event)
        with self._turn:
            if len(self._lines) >= MAX_QUEUED_LINES:
                self._dropped += 1
                return
            self._lines.append(line)
            self._turn.notify()

    def on_problem(self, report: Callable[[str], None]) -> None:
        """Call ``report``, in the writing thread or this one, with a sentence about what fails: once per failure."""
        with self._turn:
            self._report_problem, problems = report, tuple(filter(None, self._problems.values()))
        for problem in problems:
            report(problem)

    def reopen(self) -> None:
        """Open the file again, if there is one, before the next line: another program may have renamed it."""
        with self._turn:
            self._is_reopening = self._file is not None
            self._turn.notify()

    def close(self) -> None:
        """Write the queued lines, as far as the reader takes them within CLOSE_TIMEOUT_S."""
        with self._turn:
            self._closing = True
            self._turn.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _write_all(self) -> None:
        while True:
            with self._turn:
                while not self._lines and not self._closing and not self._is_reopening:
                    self._turn.wait()
                is_reopening, self._is_reopening = self._is_reopening, False
                lines, dropped = list(self._lines), self._dropped
                self._lines.clear()
                self._dropped = 0
                is_last = self._closing
            if self._file is not None and is_reopening:
                self._file.reopen()
            self._dispatch(lines, dropped)
            self._rotate()
            if is_last:
                return

    def _dispatch(self, lines: list[str], dropped: int) -> None:
        lost = 0
        if self._error and dropped:
            lost = dropped if self._write([self._form(_lost(dropped, self._error))]) else 0
        elif dropped:
            lines.append(self._form(_lost(dropped, "it is read too slowly")))
        lost += len(lines) if lost else self._write(lines)
        if lost:
            with self._turn:
                self._dropped += lost

    def _write(self, lines: list[str]) -> int:
        """Write the lines; the number of those that could not be written."""
        data = b"\n" * self._is_line_cut + "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        try:
            while data:
                written = write_waiting(self._fd, data)
                self._is_line_cut = data[written - 1 : written] != b"\n"
                data = data[written:]
        except OSError as error:  # no reader, or the disk is full: the tunnels keep running without a log
            self._error = sockets.describe_error(error)
            self._set_problem("write", f"cannot write the log: {self._error}")
            return data.count(b"\n")
        self._error = ""
        self._set_problem("write", "")
        return 0

    def _rotate(self) -> None:
        if self._file is None:
            return
        problem = ""
        try:
            self._file.rotate_if_large()
        except OSError as error:
            problem = f"the log is too large and cannot be renamed: {sockets.describe_error(error)}"
        self._set_problem("rotate", problem)

    def _set_problem(self, action: str, problem: str) -> None:
        """Report what fails with an action, unless it was reported before; an empty text is the end of a problem."""
        if problem == self._problems.get(action, ""):
            return
        with self._turn:
            self._problems[action] = problem
            report = self._report_problem
        if report is not None and problem:
            report(problem)


def _lost(count: int, why: str) -> Event:
    text = f"{plural(count, 'line')} of this log lost: {why}"
    return Event(ts=time.time(), tunnel="", level=LogLevel.WARN, kind=EventKind.LOG, text=text)
