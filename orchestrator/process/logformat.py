"""Events as lines of a log, and the one writer of those lines."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.times import format_timestamp
from tunnel.runtime import sockets

Format = Callable[[Event], str]

_HELD: Final = 10_000  # lines
_FAREWELL: Final = 1.0  # seconds


def as_text(event: Event) -> str:
    """``TIME LEVEL NAME  text``, always one line."""
    return _line(format_timestamp(event.ts), event.level.name, event.tunnel, event.text)


def format_json_event(event: Mapping[str, Any]) -> str:
    """The same of an event that comes as JSON."""
    return _line(event["ts"], event["level"].upper(), event["tunnel"], event["text"])


def _line(moment: str, level: str, tunnel: str, text: str) -> str:
    return printable(f"{moment} {level:<5} {tunnel or 'nodepass-orch'}  {text}")


def as_json(event: Event) -> str:
    """The event as a JSON object, always one line."""
    line = json.dumps(event.as_json(), ensure_ascii=False, default=str)
    return line if line.isprintable() else json.dumps(event.as_json(), default=str)


def printable(text: str) -> str:
    """The text with escapes for what would move the cursor or break the line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class LogWriter:
    """Writes lines to a descriptor from a thread of its own.

    A terminal that is paused with Ctrl-S, or a pipe that nobody reads, would otherwise stop every tunnel of the
    process. Lines beyond a bound are dropped and counted, and so are those that a full disk does not take.
    """

    def __init__(self, fd: int = 2, form: Format = as_text) -> None:
        self._fd = fd
        self._form = form
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._trouble = ""
        self._is_torn = False
        self._tell: Callable[[str], None] | None = None
        self._closing = False
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Put the event's line in the queue; never blocks, never raises."""
        line = self._form(event)
        with self._turn:
            if len(self._lines) >= _HELD:
                self._dropped += 1
                return
            self._lines.append(line)
            self._turn.notify()

    def on_write_error(self, tell: Callable[[str], None]) -> None:
        """Call ``tell``, in some thread, with why lines are being lost; once until one is written again."""
        with self._turn:
            self._tell, trouble = tell, self._trouble
        if trouble:
            tell(trouble)

    def close(self) -> None:
        """Write what is queued, as far as the reader lets us within a second."""
        with self._turn:
            self._closing = True
            self._turn.notify()
        self._thread.join(_FAREWELL)

    def _write_all(self) -> None:
        while True:
            with self._turn:
                while not self._lines and not self._closing:
                    self._turn.wait()
                lines, dropped = list(self._lines), self._dropped
                self._lines.clear()
                self._dropped = 0
                is_last = self._closing
            self._dispatch(lines, dropped)
            if is_last:
                return

    def _dispatch(self, lines: list[str], dropped: int) -> None:
        lost = 0
        if self._trouble and dropped:
            lost = dropped if self._write([self._form(_lost(dropped, self._trouble))]) else 0
        elif dropped:
            lines.append(self._form(_lost(dropped, "it is read too slowly")))
        lost += len(lines) if lost else self._write(lines)
        if lost:
            with self._turn:
                self._dropped += lost

    def _write(self, lines: list[str]) -> int:
        """How many of them could not be written."""
        data = b"\n" * self._is_torn + "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        try:
            while data:
                written = os.write(self._fd, data)
                self._is_torn = data[written - 1 : written] != b"\n"
                data = data[written:]
        except OSError as error:  # nobody listens, or the disk is full: tunnels go on without a log
            with self._turn:
                before, self._trouble = self._trouble, sockets.describe_error(error)
                tell = self._tell
            if before != self._trouble and tell is not None:
                tell(self._trouble)
            return data.count(b"\n")
        self._trouble = ""
        return 0


def _lost(count: int, why: str) -> Event:
    text = f"{count} {'line' if count == 1 else 'lines'} of this log lost: {why}"
    return Event(ts=time.time(), tunnel="", level=LogLevel.WARN, kind=EventKind.LOG, text=text)
