"""Process signals: leave the dashboard, suspend it, survive the loss of its terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from typing import TYPE_CHECKING

from orchestrator.process.setup import handle_signal

if TYPE_CHECKING:
    from collections.abc import Callable


def call_on_termination(leave: Callable[[], None]) -> None:
    """Call ``leave`` on SIGTERM, SIGINT and SIGHUP. Must run inside the event loop.

    If the terminal is gone, the standard descriptors are pointed at /dev/null: later output is discarded instead of
    raising errors in the middle of the shutdown.
    """

    def hang_up() -> None:
        try:
            termios.tcgetattr(0)
        except termios.error:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.close(null)
        leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        handle_signal(number, leave)
    handle_signal(signal.SIGHUP, hang_up)


def call_on_suspend(suspend: Callable[[], None]) -> None:
    """Call ``suspend`` on SIGTSTP. Must run inside the event loop, after Textual has taken the terminal.

    This replaces Textual's handlers: with them the process stops after its parent has stopped, when the shell already
    has the terminal; and it starts drawing a second time on any SIGCONT, which the kernel also sends to a process that
    loses its terminal.
    """
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    handle_signal(signal.SIGTSTP, suspend)


def stop_until_foreground() -> None:
    """Stop the whole process group until it is in the foreground again.

    The group includes the process that started the dashboard: a ``make`` in between would wait, and the shell for it.
    """
    while True:
        os.kill(0, signal.SIGSTOP)
        with contextlib.suppress(OSError):  # stdin is not the controlling terminal: using it stops nothing
            if os.tcgetpgrp(0) != os.getpgrp():  # continued in the background, with bg
                continue
        return
