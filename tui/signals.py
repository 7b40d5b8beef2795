"""What signals mean to a dashboard: to leave, to stop for a while, and that its terminal is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def on_leaving(leave: Callable[[], None]) -> None:
    """Have ``leave`` called by every signal that means it. Inside a running loop.

    Where the terminal is gone, there is nothing any more that could be left as it was: what is still written goes
    nowhere, instead of failing where nobody expects it.
    """

    def hang_up() -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        os.close(nowhere)
        leave()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


def resume_only_what_stopped() -> None:
    """Let Textual take the terminal back after a stop alone. Call it once Textual has the terminal.

    The kernel sends SIGCONT to whoever loses a terminal, too, and Textual would begin to draw a second time.
    """
    stop, go_on = signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT)
    if not callable(stop) or not callable(go_on):
        return
    is_stopped = False

    def on_stop(number: int, frame: Any) -> None:  # noqa: ANN401  Python's own
        nonlocal is_stopped
        is_stopped = True
        stop(number, frame)

    def on_continue(number: int, frame: Any) -> None:  # noqa: ANN401  as above
        nonlocal is_stopped
        if is_stopped:
            is_stopped = False
            go_on(number, frame)

    signal.signal(signal.SIGTSTP, on_stop)
    signal.signal(signal.SIGCONT, on_continue)
