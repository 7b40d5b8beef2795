"""Counters of one tunnel over its whole life, across all its links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tunnel.forwarding.flow import ByteCounter


@dataclass(slots=True)
class Stats:
    """Counters of one tunnel. All of them only grow."""

    notify_activity: Callable[[], None] = lambda: None
    """called before the first visitor is counted while there are none, so that observers refresh at once"""
    from_visitors: ByteCounter = field(default_factory=ByteCounter)
    to_visitors: ByteCounter = field(default_factory=ByteCounter)
    total: int = 0
    """visitors for which a data connection was launched"""
    failed: int = 0
    """visitors that were closed without having reached the target"""
    signals: int = 0
    refused_handshakes: int = 0
    refused_prefaces: int = 0
    silent: int = 0
    """connections that were closed because they did not authenticate in time, or to make room for newer ones"""
