"""What the dashboard costs, and how fast it answers keys, seen from its terminal: ``python -m tests.tui.pace``.

A daemon that is none shows many tunnels whose numbers change four times a second. A key counts as answered when the
terminal has been sent the row in the cursor's colour; beside it stands how fast this machine answers at all, through
a program that only sends back what it reads.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import random
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from tui.themes import DARK

_SIZE = (40, 120)
_FIRST = 5  # the row of the terminal in which the first tunnel stands
_PATIENCE = 5.0
_ECHO = "import os, tty; tty.setraw(0)\nwhile True: os.write(1, os.read(0, 1))"
_CURSOR = ";".join(str(int(DARK.variables["cursor"][at : at + 2], 16)) for at in (1, 3, 5)).encode()
_PLACE = re.compile(rb"\x1b\[(\d+);\d+H")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *_SIZE, 0, 0))
        environ = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        environ.pop("NO_COLOR", None)
        self._process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ)
        os.close(slave)

    def look(self, seconds: float) -> None:
        """Let it go on, and read what it sends."""
        self.until(lambda _: False, seconds)

    def until(self, is_there: Callable[[bytes], bool], seconds: float = _PATIENCE) -> bool:
        """Whether what is sent from now on became what is waited for."""
        seen, deadline = b"", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._master], [], [], left)[0]:
                seen += os.read(self._master, 1 << 16)
                if is_there(seen):
                    return True
        return False

    def answer(self, key: bytes, is_there: Callable[[bytes], bool]) -> float | None:
        """Seconds from a key to its answer; None where there was none."""
        began = time.perf_counter()
        os.write(self._master, key)
        return time.perf_counter() - began if self.until(is_there) else None

    def cpu(self) -> float:
        """Seconds of processor time that it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def _cursor_in(row: int) -> Callable[[bytes], bool]:
    def is_there(seen: bytes) -> bool:
        for found in re.finditer(_CURSOR, seen):
            places = _PLACE.findall(seen, 0, found.start())
            if places and int(places[-1]) == row:
                return True
        return False

    return is_there


def _told(title: str, answers: Sequence[float | None]) -> str:
    times = sorted(1000 * answer for answer in answers if answer is not None)
    missed = f", {len(answers) - len(times)} without an answer" if len(times) < len(answers) else ""
    high = times[int(0.9 * len(times))]
    return f"{title}: median {statistics.median(times):.1f} ms, 90 % {high:.1f} ms, worst {times[-1]:.1f} ms{missed}"


@contextlib.contextmanager
def _daemon(tunnels: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="np-") as folder:
        socket = Path(folder) / "np.sock"
        command = [sys.executable, "-m", "tests.tui.fake", str(socket), "--tunnels", str(tunnels)]
        process = subprocess.Popen(command)
        try:
            while not socket.exists():
                time.sleep(0.05)
            yield socket
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tunnels", type=int, default=500)
    parser.add_argument("--keys", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long it is only looked at")
    given = parser.parse_args()
    echo = Terminal(sys.executable, "-c", _ECHO)
    with _daemon(given.tunnels) as socket:
        shown = Terminal(sys.executable, "-m", "tui.command", "top", "--socket", str(socket))
        try:
            shown.look(6.0)  # it starts
            before, began = shown.cpu(), time.monotonic()
            shown.look(given.seconds)
            share = (shown.cpu() - before) / (time.monotonic() - began)
            row, step, answers, plain = _FIRST, 1, [], []
            for _ in range(given.keys):
                shown.look(random.uniform(0.15, 0.5))
                if not _FIRST <= row + step < _FIRST + min(20, given.tunnels):
                    step = -step
                row += step
                answers.append(shown.answer(b"j" if step > 0 else b"k", _cursor_in(row)))
                plain.append(echo.answer(b"x", bool))
        finally:
            shown.close()
            echo.close()
    click.echo(f"{given.tunnels} tunnels, all changing 4 times a second: {100 * share:.1f} % of a core")
    click.echo(_told("key to cursor", answers))
    click.echo(_told("key to echo, the machine's own", plain))


if __name__ == "__main__":
    main()
