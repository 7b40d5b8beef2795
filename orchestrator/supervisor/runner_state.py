"""The states of a runner, and how commands and the ends of its engine change them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class RunnerState(enum.Enum):
    """What a runner does."""

    STOPPED = enum.auto()
    """no engine, by command or because it was never started"""
    RUNNING = enum.auto()
    """an engine runs"""
    PAUSED = enum.auto()
    """the engine crashed, the next one starts after a pause"""
    DRAINING = enum.auto()
    """the engine ends, none follows"""
    RESTARTING = enum.auto()
    """the engine ends, another one follows"""
    ENDED = enum.auto()
    """the engine ended by itself: the tunnel cannot work as it is configured"""


class RunnerEvent(enum.Enum):
    """What moves a runner from one state to another: three commands, and three things that happen to its engine."""

    START = enum.auto()
    DRAIN = enum.auto()
    RESTART = enum.auto()
    ENGINE_CRASHED = enum.auto()
    PAUSE_OVER = enum.auto()
    ENGINE_ENDED = enum.auto()


def _transitions() -> Mapping[RunnerState, Mapping[RunnerEvent, RunnerState]]:
    s, e = RunnerState, RunnerEvent
    end = {e.DRAIN: s.DRAINING, e.RESTART: s.RESTARTING}
    again = {e.START: s.RESTARTING, **end}
    return MappingProxyType(
        {
            s.STOPPED: {e.START: s.RUNNING},
            s.RUNNING: {e.START: s.RUNNING, **end, e.ENGINE_CRASHED: s.PAUSED, e.ENGINE_ENDED: s.ENDED},
            s.PAUSED: {e.START: s.PAUSED, **end, e.PAUSE_OVER: s.RUNNING},
            s.DRAINING: {**again, e.ENGINE_CRASHED: s.STOPPED, e.PAUSE_OVER: s.STOPPED, e.ENGINE_ENDED: s.STOPPED},
            s.RESTARTING: {**again, e.ENGINE_CRASHED: s.RUNNING, e.PAUSE_OVER: s.RUNNING, e.ENGINE_ENDED: s.RUNNING},
        }
    )


TRANSITIONS: Final = _transitions()
"""The state that follows each event. Without a task a runner is at rest, and START is the only event."""

AT_REST: Final = frozenset({RunnerState.STOPPED, RunnerState.ENDED})
"""States without a task."""
ENDING: Final = frozenset({RunnerState.DRAINING, RunnerState.RESTARTING})
"""States in which the engine ends."""
UNWANTED: Final = frozenset({RunnerState.STOPPED, RunnerState.DRAINING})
"""States in which no engine is wanted."""
