"""Why a visitor was disconnected, and the record of a visitor that has left. Pure data."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tunnel.model.spec import Proto


class VisitorEnd(enum.StrEnum):
    """Why a visitor is no longer connected, as the access log writes it."""

    VISITOR_CLOSED = "visitor_closed"
    """both sides have ended in order, the visitor first"""
    TARGET_CLOSED = "target_closed"
    VISITOR_RESET = "visitor_reset"
    """the visitor's connection failed or was reset; seen from the egress also by the other end of the tunnel"""
    TARGET_RESET = "target_reset"
    FAILED = "failed"
    """the visitor never reached the target"""
    REFUSED = "refused"
    """the ingress did not admit the visitor"""
    KICKED = "kicked"
    IDLE_TIMEOUT = "idle_timeout"
    MAX_AGE = "max_age"
    LINK_LOST = "link_lost"
    """the data connection was reset after its link had been lost"""
    VANISHED = "vanished"
    """a peer no longer acknowledged data"""
    TUNNEL_CLOSED = "tunnel_closed"
    """the tunnel was stopped, and the time of its drain was over"""
    KEY_REVOKED = "key_revoked"
    CORRUPTED = "corrupted"
    """what arrived on the data connection was changed on the way"""
    DEFECT = "defect"


class VisitorRecord(NamedTuple):
    """A visitor that has left, as one end of its tunnel saw the visitor. None: unknown."""

    id: str | None
    address: str | None
    proto: Proto
    """what the visitor spoke: TCP or UDP"""
    target: str | None
    link: str | None
    from_visitor: int
    """bytes"""
    to_visitor: int
    """bytes"""
    duration_s: float | None
    """None: the visitor was not forwarded"""
    end: VisitorEnd
    reason: str | None
    """the sentence of a failure"""
    ended_at: float
    """seconds since the epoch"""
