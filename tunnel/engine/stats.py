"""What a tunnel counts over its whole life, whatever becomes of its links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tunnel.forwarding.tcp import Meter


@dataclass(slots=True)
class Stats:
    """Counters of one tunnel; only ever grow, but for ``active``."""

    stir: Callable[[], None] = lambda: None
    """to be called before the first visitor is counted where there are none: whoever looks on had better look now"""
    from_visitors: Meter = field(default_factory=Meter)
    to_visitors: Meter = field(default_factory=Meter)
    active: int = 0
    """visitors served just now"""
    total: int = 0
    """visitors for whom a data connection was launched"""
    failed: int = 0
    """visitors who were closed without having reached the target"""
    signals: int = 0
    refused_handshakes: int = 0
    refused_prefaces: int = 0
    silent: int = 0
