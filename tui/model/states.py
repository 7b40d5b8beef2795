"""States as the dashboard shows them: the state table of ``tunnel``, and the presence of a host that is offline.

A tunnel whose host is offline has the host's presence in place of its state.
"""

from __future__ import annotations

from typing import Final

from orchestrator.mqtt.fleet import GONE, SILENT
from tunnel.model.state import STATES, State, StateColor

_OFFLINE_RANKS: Final = {GONE: STATES[State.COOLDOWN].rank + 1, SILENT: STATES[State.COOLDOWN].rank + 2}

STATE_RANKS: Final[dict[str, int]] = {**{str(state): info.rank for state, info in STATES.items()}, **_OFFLINE_RANKS}
"""The order by state: what needs attention comes first."""

STATE_MEANINGS: Final[dict[str, str]] = {
    **{str(state): info.meaning for state, info in STATES.items()},
    GONE: "its host is offline; the last known values are shown",
    SILENT: "its host sends nothing; the last known values are shown",
}
"""What each state means."""

OFFLINE_STYLE: Final = "gone"
STATE_STYLES: Final[dict[str, str]] = {
    **{str(state): info.color.value for state, info in STATES.items()},
    GONE: OFFLINE_STYLE,
    SILENT: OFFLINE_STYLE,
}
"""The name of each state's style: its colour group; a state that only a newer daemon knows is plain."""

_RUNNING: Final = frozenset(str(state) for state, info in STATES.items() if info.is_running)

ALL: Final = "all"
_FILTER_COLORS: Final[dict[str, frozenset[StateColor]]] = {
    "up": frozenset({StateColor.GOOD}),
    "waiting": frozenset(),
    "connecting": frozenset({StateColor.PROGRESS}),
    "cooldown": frozenset({StateColor.WARNING}),
    "failed": frozenset({StateColor.ERROR}),
    "stopped": frozenset({StateColor.QUIET, StateColor.LEAVING}),
}


def _filter_of(state: State) -> str:
    """Return the filter that includes a state: one of its own name, else the one of its colour."""
    names = (name for name, colors in _FILTER_COLORS.items() if STATES[state].color in colors)
    return str(state) if state in _FILTER_COLORS else next(names)


STATE_FILTERS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    (ALL, frozenset()),
    *((name, frozenset(str(state) for state in STATES if _filter_of(state) == name)) for name in _FILTER_COLORS),
    (GONE, frozenset({GONE, SILENT})),
)
"""The filters by state, each with the states that it includes. Every state belongs to exactly one of them."""
_STATES_OF_FILTER: Final = dict(STATE_FILTERS)


def states_of_filter(name: str) -> frozenset[str]:
    """Return the states that a filter includes; none means all."""
    return _STATES_OF_FILTER[name]


def state_filters(*, is_fleet: bool) -> list[str]:
    """Return the names of the filters; only hosts of a fleet can be offline."""
    return [name for name, _ in STATE_FILTERS if is_fleet or name != GONE]


def is_running(state: str) -> bool:
    """Return whether a tunnel in this state has an engine that serves visitors or tries to."""
    return state in _RUNNING or state not in STATE_RANKS
