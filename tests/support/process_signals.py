"""A process signal in the worst case: while the pipe that wakes the event loop is full."""

from __future__ import annotations

import asyncio
import os
import signal


def signal_while_wakeup_pipe_is_full(number: signal.Signals) -> None:
    """Fill the pipe of the running loop, then send the signal to this process.

    asyncio's own handlers were seen to lose it: the pipe of a loop that is behind takes about 280 bytes.
    """
    loop = asyncio.get_running_loop()
    for _ in range(2000):
        loop.call_soon_threadsafe(int)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)  # asyncio's warning about the full pipe
    os.kill(os.getpid(), number)
