"""The scale of a test run: promised sizes and times, or quick ones on a busy machine."""

from __future__ import annotations

import os
from typing import Final

IS_FULL_SCALE: Final = os.environ.get("NODEPASS_TEST_SCALE") == "full"
"""Whether sizes, counts and times are the promised ones instead of quick ones."""

GUARD_S: Final = 30.0
"""Seconds after which an awaited event counts as lost, however busy the machine is."""


def time_allowed(promised_s: float) -> float:
    """Return how many seconds an operation may take in this run.

    At full scale that is the promised time. Quick runs share their machine with other processes and may stall for a
    second or two at any moment, so they only check that the event happens at all.
    """
    return promised_s if IS_FULL_SCALE else max(GUARD_S, promised_s)
