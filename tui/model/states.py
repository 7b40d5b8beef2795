"""What the dashboard knows about states: those of a tunnel, and the presence of a host that is offline."""

from __future__ import annotations

from typing import Final

from orchestrator.mqtt.fleet import GONE, SILENT
from tunnel.model.state import State

STATE_RANKS: Final[dict[str, int]] = {
    state: rank
    for rank, state in enumerate(
        (
            State.FAILED,
            State.COOLDOWN,
            GONE,
            SILENT,
            State.CONNECTING,
            State.STARTING,
            State.DRAINING,
            State.WAITING,
            State.UP,
            State.STOPPED,
        )
    )
}
"""The order by state: what needs attention comes first."""

STATE_MEANINGS: Final[dict[str, str]] = {
    State.UP: "linked, visitors can be served",
    State.CONNECTING: "making a link",
    State.STARTING: "just started",
    State.WAITING: "no client has connected yet",
    State.COOLDOWN: "waiting before the next attempt",
    State.DRAINING: "no new visitors, the present ones may finish",
    State.FAILED: "cannot run as configured: edit the file",
    State.STOPPED: "stopped by a command",
    GONE: "its host is offline; the last known values are shown",
    SILENT: "its host sends nothing; the last known values are shown",
}
"""What each state means."""
