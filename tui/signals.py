"""What signals mean to a dashboard: to leave, to stop for a while, and that its terminal is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def on_leaving(leave: Callable[[], None]) -> None:
    """Have ``leave`` called by every signal that means it. Inside a running loop.

    Where the terminal is gone, what is still written goes nowhere, instead of failing where nobody expects it.
    """

    def hang_up() -> None:
        try:
            termios.tcgetattr(0)
        except termios.error:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nowhere, number)
            os.close(nowhere)
        leave()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


def on_stopping(suspend: Callable[[], None]) -> None:
    """Have ``suspend`` called by the signal to stop. Inside a running loop, once Textual has the terminal.

    Textual's own ways are given up: it stops after its parent has, when the terminal is the shell's already; and it
    begins to draw a second time at any SIGCONT, which the kernel also sends to whoever loses a terminal.
    """
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, suspend)


def stop_until_foreground() -> None:
    """Stop, and with us whatever started us: a ``make`` in between would wait, and the shell for it."""
    while True:
        os.kill(0, signal.SIGSTOP)
        with contextlib.suppress(OSError):  # it is not our terminal: nobody stops us for using it
            if os.tcgetpgrp(0) != os.getpgrp():  # somebody said bg
                continue
        return
