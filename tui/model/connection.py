"""The dashboard's connection to its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """Where the data comes from, and whether it is current."""

    place: str
    is_read_only: bool = False
    error: str | None = None
    """why the source does not answer; None while it does"""
    silent_for: float = 0.0
    """seconds since the last message"""
    is_frozen: bool = False
    peer_name: str = "daemon"
    """what answers at the other end: ``daemon`` or ``broker``"""
