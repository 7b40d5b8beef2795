"""How a state looks to people, in every table and on the screen: a shape and a word. Pure."""

from __future__ import annotations

from typing import Final

from tunnel.model.state import State

STATE_SIGNS: Final[dict[str, str]] = {
    State.UP: "●",
    State.STARTING: "◔",
    State.CONNECTING: "◐",
    State.WAITING: "◌",
    State.COOLDOWN: "◷",
    State.DRAINING: "◑",
    State.FAILED: "✖",
    State.STOPPED: "○",
}
"""The shape of each state."""

OFFLINE_SIGN: Final = "◇"
"""The shape of a tunnel whose host is not there to speak for it."""


def format_state(state: str, wait: str = "") -> str:
    """Shape and word, and where somebody waits, how long; a state that only a newer daemon knows has no shape yet."""
    sign = STATE_SIGNS.get(state) or (OFFLINE_SIGN if state in {"gone", "silent"} else "?")
    return f"{sign} {state}{' ' if wait else ''}{wait}"
