"""What the handshake of a link has decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel.model.spec import Mux

if TYPE_CHECKING:
    from tunnel.model.address import Address
    from tunnel.model.spec import Carrier, Direction
    from tunnel.protocol.session import Negotiation, SessionRole


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What the handshake has decided."""

    ident: str
    """public random id"""
    secret: bytes
    direction: Direction
    carrier: Carrier
    role: SessionRole
    negotiation: Negotiation
    report_interval_s: float
    """seconds between pings"""
    features: tuple[str, ...] = ()
    """optional parts of the protocol that both ends use"""
    key_name: str | None = None
    """at a server: which of its named keys the client has"""
    weight: int = 1
    """of the client among several: its share of the visitors"""
    is_backup: bool = False
    """whether the client serves only while no other can"""
    server: Address | None = None
    """at a client: the configured address of the server"""
    mux: Mux = Mux.AUTO
    """whether its visitors share data connections, if both ends let them"""
