"""How tables and screens show a state: a sign, a word and a colour. Derived from the state table. Pure."""

from __future__ import annotations

from typing import Final

from tunnel.model.state import STATES, StateColor

STATE_SIGNS: Final[dict[str, str]] = {state: info.sign for state, info in STATES.items()}
"""The sign of each state."""

OFFLINE_SIGN: Final = "◇"
"""The sign of a tunnel whose host is offline."""
OFFLINE_ASCII_SIGN: Final = "%"

ASCII_SIGNS: Final[dict[str, str]] = {info.sign: info.ascii_sign for info in STATES.values()} | {
    OFFLINE_SIGN: OFFLINE_ASCII_SIGN
}
"""The replacement of each sign on a terminal without Unicode."""

_TERMINAL_COLORS: Final = {
    StateColor.GOOD: "green",
    StateColor.WARNING: "yellow",
    StateColor.LEAVING: "cyan",
    StateColor.QUIET: "bright_black",
    StateColor.ERROR: "red",
}
STATE_COLORS: Final[dict[str, str]] = {
    state: _TERMINAL_COLORS[info.color] for state, info in STATES.items() if info.color in _TERMINAL_COLORS
}
"""The terminal colour of each state that has one."""


def format_state(state: str, wait: str = "") -> str:
    """Return sign and word of a state, and the remaining wait, if any; an unknown state has the sign ``?``.

    ``was up`` is the last known state of a tunnel whose host is offline.
    """
    is_offline = state in {"gone", "silent"} or state.startswith("was ")
    sign = STATE_SIGNS.get(state) or (OFFLINE_SIGN if is_offline else "?")
    return f"{sign} {state}{' ' if wait else ''}{wait}"
