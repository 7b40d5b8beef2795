"""A program on a pseudo-terminal: the contents of its screen, and the time from a key to a change."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import os
import pty
import re
import struct
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from .processes import BenchError, RunningProcess, run_process

ROWS: Final = 40
COLUMNS: Final = 120

_CHUNK: Final = 65536
_SEQUENCE: Final = re.compile(
    r"\x1b\[(?P<arguments>[0-?]*)[ -/]*(?P<final>[@-~])"  # CSI
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC, DCS and similar sequences, which print nothing
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f])"
    r"|(?P<text>[^\x00-\x1f\x7f]+)"
)

Screen = Sequence[str]
"""The contents of a screen, one string per row."""


class TerminalScreen:
    """A minimal terminal emulator without colours."""

    def __init__(self, rows: int = ROWS, columns: int = COLUMNS) -> None:
        self.rows, self.columns = rows, columns
        self._cells = [[" "] * columns for _ in range(rows)]
        self._row = self._column = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """Process output of the program; a sequence may be split anywhere."""
        text = self._rest + self._decode(data)
        end = 0
        for found in _SEQUENCE.finditer(text):
            if found.start() != end:
                break  # an incomplete escape sequence
            end = found.end()
            if found["text"]:
                self._write_text(found["text"])
            elif found["control"]:
                self._apply_control(found["control"])
            elif found["final"]:
                self._apply_sequence(found["arguments"], found["final"])
        self._rest = text[end:]

    def screen(self) -> Screen:
        """Return the current rows."""
        return ["".join(row) for row in self._cells]

    def _write_text(self, text: str) -> None:
        row = self._cells[self._row]
        shown = text[: max(0, self.columns - self._column)]
        row[self._column : self._column + len(shown)] = shown
        self._column = min(self.columns, self._column + len(shown))

    def _apply_control(self, character: str) -> None:
        if character == "\n":
            self._row = min(self.rows - 1, self._row + 1)
        elif character == "\r":
            self._column = 0
        elif character == "\b":
            self._column = max(0, self._column - 1)

    def _apply_sequence(self, arguments: str, final: str) -> None:
        if not re.fullmatch(r"[\d;]*", arguments):
            return  # private modes
        numbers = [int(number or 0) for number in arguments.split(";")]
        first = max(1, numbers[0])
        match final:
            case "H" | "f":
                self._move(first - 1, max(1, numbers[1] if len(numbers) > 1 else 1) - 1)
            case "A":
                self._move(self._row - first, self._column)
            case "B":
                self._move(self._row + first, self._column)
            case "C":
                self._move(self._row, self._column + first)
            case "D":
                self._move(self._row, self._column - first)
            case "J" if numbers[0] in {2, 3}:
                self._cells = [[" "] * self.columns for _ in range(self.rows)]
            case "K":
                self._cells[self._row][self._column :] = [" "] * (self.columns - self._column)

    def _move(self, row: int, column: int) -> None:
        self._row, self._column = min(max(0, row), self.rows - 1), min(max(0, column), self.columns - 1)


class Terminal:
    """A running program with its screen."""

    def __init__(self, program: RunningProcess, master: int, terminal_screen: TerminalScreen) -> None:
        self.program = program
        self._master = master
        self._picture = terminal_screen
        self._unread = bytearray()  # parsed on demand, so that the emulator costs no CPU during a measurement
        self._waiting: dict[asyncio.Future[float], Callable[[Screen], object]] = {}

    def screen(self) -> Screen:
        """Return the current screen."""
        self._picture.feed(bytes(self._unread))
        self._unread.clear()
        return self._picture.screen()

    def check(self) -> None:
        """Raise BenchError with the last output if the program has ended."""
        if self.program.process.returncode is not None:
            words = " / ".join(line.strip() for line in self.screen() if line.strip())
            raise BenchError(f"{self.program.name} ended with code {self.program.process.returncode}: {words[-300:]}")

    def type(self, keys: str) -> None:
        """Send keys to the program."""
        os.write(self._master, keys.encode())

    async def wait_shown(self, wanted: Callable[[Screen], object], what: str, *, within: float) -> float:
        """Wait until ``wanted`` accepts the screen; return that ``time.perf_counter()``. Raises BenchError."""
        if wanted(self.screen()):
            return time.perf_counter()
        shown: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[shown] = wanted
        try:
            async with asyncio.timeout(within):
                return await shown
        except TimeoutError:
            self.check()
            raise BenchError(f"{self.program.name} did not show {what} within {within:g} s") from None
        finally:
            del self._waiting[shown]

    async def press_and_wait(
        self, key: str, wanted: Callable[[Screen], object], what: str, *, within: float = 5.0
    ) -> float:
        """Press a key; return the seconds until ``wanted`` accepts the screen, which it must not accept before."""
        if wanted(self.screen()):
            raise BenchError(f"{self.program.name} shows {what} before {key!r} is pressed")
        pressed = time.perf_counter()
        self.type(key)
        return await self.wait_shown(wanted, what, within=within) - pressed

    def read(self) -> None:
        """Read output of the program; the time of reading counts as the time of the change."""
        with suppress(OSError):  # the program has ended
            if data := os.read(self._master, _CHUNK):
                now = time.perf_counter()
                self._unread += data
                for shown, wanted in self._waiting.items():
                    if not shown.done() and wanted(self.screen()):
                        shown.set_result(now)
                return
        asyncio.get_running_loop().remove_reader(self._master)


@asynccontextmanager
async def run_on_terminal(
    name: str,
    command: Sequence[str],
    *,
    directory: Path,
    env: Mapping[str, str],
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> AsyncIterator[Terminal]:
    """Run the command on a pseudo-terminal for the duration of the block."""
    master, slave = pty.openpty()
    loop = asyncio.get_running_loop()
    try:
        tty.setraw(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(master, False)
        env = {key: value for key, value in env.items() if key not in {"LINES", "COLUMNS", "NO_COLOR"}}
        env |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        async with run_process(name, command, directory=directory, env=env, terminal=slave) as program:
            terminal = Terminal(program, master, TerminalScreen(rows, columns))
            loop.add_reader(master, terminal.read)
            yield terminal
    finally:
        loop.remove_reader(master)
        os.close(slave)
        os.close(master)
