"""The servers of a client as they are configured, if a file gives each a share of the visitors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunnel.model.weighted_address import WeightedAddress

MAX_SERVERS: Final = 16
"""Servers of one client: each has a link of its own."""


@dataclass(frozen=True, slots=True)
class ServerShare(WeightedAddress):
    """One of several servers of a client that accepts visitors, and which of them it gets."""
