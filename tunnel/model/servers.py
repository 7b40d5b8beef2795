"""The servers of a client as they are configured, if a file gives each a share of the visitors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.model.address import Address

MAX_SERVERS: Final = 16
"""Servers of one client: each has a link of its own."""


@dataclass(frozen=True, slots=True)
class ServerShare:
    """One of several servers of a client that accepts visitors, and which of them it gets."""

    address: Address
    weight: int = 1
    """its share of the visitors in relation to the others; 0: it gets no new ones"""
    is_backup: bool = False
    """whether it gets visitors only while no other can serve"""

    def __str__(self) -> str:
        weight = f" weight {self.weight}" if self.weight != 1 else ""
        return f"{self.address}{weight}{' backup' if self.is_backup else ''}"
