"""What the dashboard knows about states: those of a tunnel, and the presence of a host that is offline."""

from __future__ import annotations

from typing import Final

from orchestrator.mqtt.fleet import GONE, SILENT
from tunnel.model.state import STATES, State

_OFFLINE_RANK: Final = STATES[State.COOLDOWN].rank + 1

STATE_RANKS: Final[dict[str, int]] = {
    **{state: info.rank for state, info in STATES.items()},
    GONE: _OFFLINE_RANK,
    SILENT: _OFFLINE_RANK + 1,
}
"""The order by state: what needs attention comes first."""

STATE_MEANINGS: Final[dict[str, str]] = {
    **{state: info.meaning for state, info in STATES.items()},
    GONE: "its host is offline; the last known values are shown",
    SILENT: "its host sends nothing; the last known values are shown",
}
"""What each state means."""
