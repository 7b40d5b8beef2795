"""The states of a tunnel and the table of transitions between them."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(enum.StrEnum):
    """What a tunnel is doing."""

    STARTING = "starting"
    WAITING = "waiting"
    """a server that listens and has no client yet"""
    CONNECTING = "connecting"
    UP = "up"
    """the link is alive, at least one data connection is idle: visitors can be served"""
    COOLDOWN = "cooldown"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    """the tunnel cannot work as it is configured; an operator has to change something"""


_ENDINGS: Final = frozenset({State.DRAINING, State.STOPPED, State.FAILED})

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.STARTING: frozenset({State.WAITING, State.CONNECTING, State.COOLDOWN}) | _ENDINGS,
        State.WAITING: frozenset({State.CONNECTING, State.COOLDOWN}) | _ENDINGS,
        State.CONNECTING: frozenset({State.UP, State.WAITING, State.COOLDOWN}) | _ENDINGS,
        State.UP: frozenset({State.CONNECTING, State.WAITING, State.COOLDOWN}) | _ENDINGS,
        State.COOLDOWN: frozenset({State.STARTING, State.CONNECTING, State.WAITING, State.UP}) | _ENDINGS,
        State.DRAINING: frozenset({State.STOPPED, State.FAILED}),
        State.STOPPED: frozenset({State.STARTING}),
        State.FAILED: frozenset({State.STARTING, State.STOPPED}),
    }
)


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
        if state not in TRANSITIONS[self.state]:
            raise InvalidTransitionError(f"{self.state} cannot become {state}")
        return StateRecord(state, time.time(), reason)
