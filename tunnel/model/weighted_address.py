"""An address that is dialled, with its share of the visitors: a target, or a server of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.model.address import Address


@dataclass(frozen=True, slots=True)
class WeightedAddress:
    """One of several addresses as it is configured."""

    address: Address
    weight: int = 1
    """its share of the visitors in relation to the others; 0: it gets no new ones"""
    is_backup: bool = False
    """whether it gets visitors only while all others are down"""

    def __str__(self) -> str:
        weight = f" weight {self.weight}" if self.weight != 1 else ""
        return f"{self.address}{weight}{' backup' if self.is_backup else ''}"
