"""Process signals that the dashboard handles."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.support.process_signals import signal_while_wakeup_pipe_is_full
from tests.support.scale import GUARD_S
from tui.process_signals import call_on_suspend, call_on_termination


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP])
async def test_the_dashboard_loses_no_signal_while_the_pipe_that_wakes_its_loop_is_full(number: signal.Signals) -> None:
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT)
    before = {each: signal.getsignal(each) for each in handled}
    left, suspended = asyncio.Event(), asyncio.Event()
    call_on_termination(left.set)
    call_on_suspend(suspended.set)
    try:
        signal_while_wakeup_pipe_is_full(number)
        await asyncio.wait_for((suspended if number is signal.SIGTSTP else left).wait(), GUARD_S)
    finally:
        for each, handler in before.items():
            asyncio.get_running_loop().remove_signal_handler(each)
            signal.signal(each, handler)
