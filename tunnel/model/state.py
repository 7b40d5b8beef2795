"""The states of a tunnel: one row of STATES is everything the program knows about a state.

Tables, the dashboard, the API, metrics and the documentation derive from it. To add a state, add it to ``State`` and
STATES, and let the engine enter it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final


class State(enum.StrEnum):
    """What a tunnel is doing; STATES has the meaning of each."""

    STARTING = "starting"
    WAITING = "waiting"
    CONNECTING = "connecting"
    UP = "up"
    COOLDOWN = "cooldown"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class StateColor(enum.StrEnum):
    """The colour groups of states; each screen and terminal maps them to its own colours."""

    GOOD = "good"
    PROGRESS = "progress"
    WARNING = "warning"
    LEAVING = "leaving"
    QUIET = "quiet"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateInfo:
    """One row of the state table."""

    rank: int
    """the position when tunnels are sorted by state: what needs attention comes first"""
    sign: str
    """one character, one column wide"""
    ascii_sign: str
    """the same for a terminal without Unicode"""
    color: StateColor
    meaning: str
    """one sentence without a full stop, of at most 50 characters"""
    is_running: bool = True
    """whether the tunnel has an engine that serves visitors or tries to"""
    is_listening: bool = True
    """whether its engine may own listening sockets"""
    is_ended: bool = False
    """whether the tunnel has no engine"""
    next_states: Mapping[State, str]
    """the states that can follow, each with the cause of the transition"""


_ENDINGS: Final = {
    State.DRAINING: "a drain begins",
    State.STOPPED: "the tunnel is stopped",
    State.FAILED: "the tunnel cannot work as configured",
}

STATES: Final[Mapping[State, StateInfo]] = MappingProxyType(
    {
        State.STARTING: StateInfo(
            rank=40,
            sign="◔",
            ascii_sign=".",
            color=StateColor.PROGRESS,
            meaning="the engine starts and binds its addresses",
            next_states={
                State.WAITING: "the server listens",
                State.CONNECTING: "the client dials",
                State.UP: "the server listens, and lets clients publish",
                State.COOLDOWN: "an address cannot be bound",
                **_ENDINGS,
            },
        ),
        State.WAITING: StateInfo(
            rank=60,
            sign="◌",
            ascii_sign="w",
            color=StateColor.PROGRESS,
            meaning="the server listens; no client is connected",
            next_states={
                State.CONNECTING: "a client has authenticated",
                State.COOLDOWN: "the target is unreachable",
                **_ENDINGS,
            },
        ),
        State.CONNECTING: StateInfo(
            rank=30,
            sign="◐",
            ascii_sign="~",
            color=StateColor.PROGRESS,
            meaning="a link or its first data connection is being made",
            next_states={
                State.UP: "a data connection is idle",
                State.WAITING: "the server lost its client",
                State.COOLDOWN: "the attempt failed, or the target is unreachable",
                **_ENDINGS,
            },
        ),
        State.UP: StateInfo(
            rank=70,
            sign="●",
            ascii_sign="*",
            color=StateColor.GOOD,
            meaning="the link is alive and visitors can be served",
            next_states={
                State.CONNECTING: "a new link replaces the old one, or data connections cannot be made",
                State.WAITING: "the server lost its client",
                State.COOLDOWN: "the link was lost, or the target is unreachable",
                **_ENDINGS,
            },
        ),
        State.COOLDOWN: StateInfo(
            rank=10,
            sign="◷",
            ascii_sign="z",
            color=StateColor.WARNING,
            meaning="the last attempt failed; waiting for the next",
            next_states={
                State.STARTING: "the engine starts again",
                State.CONNECTING: "the next attempt begins",
                State.WAITING: "the server listens, or lost its client",
                State.UP: "the target answers again, or a server that lets clients publish listens",
                **_ENDINGS,
            },
        ),
        State.DRAINING: StateInfo(
            rank=50,
            sign="◑",
            ascii_sign="d",
            color=StateColor.LEAVING,
            meaning="no new visitors; the present ones may finish",
            is_running=False,
            is_listening=False,
            next_states={
                State.STOPPED: "all visitors have finished, or the time limit has passed",
                State.FAILED: "the engine broke down",
            },
        ),
        State.STOPPED: StateInfo(
            rank=80,
            sign="○",
            ascii_sign="-",
            color=StateColor.QUIET,
            meaning="stopped by a command, or disabled in the file",
            is_running=False,
            is_listening=False,
            is_ended=True,
            next_states={State.STARTING: "the tunnel is started"},
        ),
        State.FAILED: StateInfo(
            rank=0,
            sign="✖",
            ascii_sign="x",
            color=StateColor.ERROR,
            meaning="cannot work as configured; edit the file",
            is_running=False,
            is_listening=False,
            is_ended=True,
            next_states={State.STARTING: "the tunnel is started", State.STOPPED: "the tunnel is stopped"},
        ),
    }
)
"""Every state with its row."""


class InvalidTransitionError(AssertionError):
    """The engine requested a transition that is not in the table: a defect of the program, not a user's error."""


@dataclass(frozen=True, slots=True)
class StateRecord:
    """A state, since when (seconds since the epoch), and the reason as a sentence."""

    state: State = State.STARTING
    since: float = field(default_factory=time.time)
    reason: str | None = None

    def transition_to(self, state: State, reason: str | None = None) -> StateRecord:
        """Return the next record, or the same object if nothing changes. Raises InvalidTransitionError."""
        if state is self.state:
            return self if reason == self.reason else replace(self, reason=reason)
        if state not in STATES[self.state].next_states:
            raise InvalidTransitionError(f"{self.state} cannot become {state}")
        return StateRecord(state, time.time(), reason)


def render_state_table() -> str:
    """Return the reference of all states as Markdown tables, for docs/."""
    states = "".join(f"| {info.sign} `{state}` | {info.meaning} |\n" for state, info in STATES.items())
    transitions = "".join(
        f"| `{state}` | `{following}` | {cause} |\n"
        for state, info in STATES.items()
        for following, cause in info.next_states.items()
    )
    return f"| state | meaning |\n| --- | --- |\n{states}\n| from | to | cause |\n| --- | --- | --- |\n{transitions}"
