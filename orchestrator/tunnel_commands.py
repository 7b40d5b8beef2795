"""The commands that a running tunnel takes: one table for the command line, the local API, MQTT and the dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class TunnelCommand:
    """A command for one or many tunnels."""

    name: str
    summary: str
    """One line for help texts and for the description of the API."""
    takes_timeout: bool
    """Whether it drains the tunnel, and so takes a limit for the drain in seconds."""
    takes_target: bool = False
    """Whether it may also concern one target of a tunnel alone: whether the target gets new visitors."""
    takes_link: bool = False
    """Whether it may also concern one link of a server with several clients."""
    is_end: bool = False
    """Whether it stops a tunnel. The others, given to all tunnels, leave out those with ``enabled: false``."""


TUNNEL_COMMANDS: Final = {
    command.name: command
    for command in (
        TunnelCommand("start", "Start stopped tunnels.", takes_timeout=False, takes_target=True, takes_link=True),
        TunnelCommand(
            "stop", "Stop tunnels; their visitors may finish within SHUTDOWN_TIMEOUT.", takes_timeout=True, is_end=True
        ),
        TunnelCommand("restart", "Drain tunnels, then start them again.", takes_timeout=True),
        TunnelCommand(
            "drain",
            "Stop tunnels; their visitors may finish within drain_timeout.",
            takes_timeout=True,
            takes_target=True,
            takes_link=True,
            is_end=True,
        ),
        TunnelCommand("retry", "End the cooldown of tunnels: make the next attempt now.", takes_timeout=False),
    )
}
"""By name, in the order in which they are offered."""
