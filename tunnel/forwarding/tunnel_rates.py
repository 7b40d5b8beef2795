"""The limits of the rates of one end of a tunnel, and the forwarder that applies them to new visitors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.limited_flow import limit_flow, unlimit_flow
from tunnel.forwarding.rate_limiter import RateLimiter
from tunnel.model.snapshot import RateLimitsView

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from tunnel.forwarding.base import ForwardedVisitor, Forwarder, ForwardingOwner, RelayLink, UsedConnection
    from tunnel.model.rate import Rate
    from tunnel.runtime.reactor import Reactor


def _bits_per_s(rate: Rate | None) -> int | None:
    return None if rate is None else rate.bits_per_s


def _bytes_per_s(rate: Rate | None) -> float | None:
    return None if rate is None else rate.bytes_per_s


class TunnelRates:
    """Both directions of one end. They have the same limits and share nothing."""

    def __init__(self, reactor: Reactor) -> None:
        self._rate: Rate | None = None
        self._visitor_rate: Rate | None = None
        self._from_near, self._to_near = RateLimiter(reactor), RateLimiter(reactor)

    @property
    def is_limited(self) -> bool:
        """Whether new visitors have a limit."""
        return self._rate is not None or self._visitor_rate is not None

    def set_rates(self, rate: Rate | None, visitor_rate: Rate | None, visitors: Iterable[ForwardedVisitor]) -> None:
        """Use these limits, also for the present visitors."""
        if (rate, visitor_rate) == (self._rate, self._visitor_rate):
            return
        was_limited = self.is_limited
        self._rate, self._visitor_rate = rate, visitor_rate
        for limiter in (self._from_near, self._to_near):
            limiter.set_rates(_bytes_per_s(rate), _bytes_per_s(visitor_rate))
        if self.is_limited is not was_limited:
            for visitor in visitors:
                if visitor.is_open:  # what was paused may have ended meanwhile
                    self.apply(visitor)

    def apply(self, visitor: ForwardedVisitor) -> None:
        """Limit an open visitor, or remove its limits."""
        for flow, limiter in zip(visitor.flows, (self._from_near, self._to_near), strict=False):
            if self.is_limited:
                limit_flow(flow, limiter)
            else:
                unlimit_flow(flow)

    def view(self, *, is_ingress: bool) -> RateLimitsView | None:
        """Return the limits and what they hold back, as observers see them; None without a limit.

        ``is_ingress``: what is near are visitors, not targets.
        """
        if not self.is_limited:
            return None
        incoming, outgoing = (self._from_near, self._to_near) if is_ingress else (self._to_near, self._from_near)
        return RateLimitsView(
            rate_bps=_bits_per_s(self._rate),
            visitor_rate_bps=_bits_per_s(self._visitor_rate),
            paused_in_s=round(incoming.paused_s, 3),
            paused_out_s=round(outgoing.paused_s, 3),
        )

    def close(self) -> None:
        """Stop the timers of both directions."""
        self._from_near.close()
        self._to_near.close()


class RateLimitedForwarder:
    """Forwards as another forwarder does, with limits of the rates."""

    def __init__(self, forwarder: Forwarder, rates: TunnelRates) -> None:
        self._forwarder = forwarder
        self._rates = rates

    def create(
        self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner
    ) -> ForwardedVisitor:
        """Take over both sockets."""
        visitor = self._forwarder.create(data, link, near, owner)
        self._rates.apply(visitor)
        return visitor
