"""Lists and disconnects the visitors of one end of a tunnel, a few in each turn of the event loop.

Nothing is kept for this while visitors come and go: what is shown is read from their relays. A relay of 10,000 is read
in some 3 µs, and a slice of them must not delay other visitors noticeably.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tunnel.forwarding.limited_flow import paused_s
from tunnel.model.visitor_end import VisitorEnd
from tunnel.model.visitors import CONNECTED, VisitorView
from tunnel.protocol.visitor_address import unpack_address
from tunnel.runtime import sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.engine.tunnel_end import TunnelEnd
    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.model.visitors import VisitorSelector

SLICE_SIZE: Final = 50
"""Visitors that are described in one turn: a quarter of a millisecond."""
_KICK_SLICE_SIZE: Final = 25  # a reset of two sockets costs ten times as much


async def list_visitors(end: TunnelEnd | None) -> AsyncIterator[list[VisitorView]]:
    """Yield the visitors in slices, with a turn of the event loop after each. Those that leave meanwhile are missing.

    ``end`` is None while an engine has no ingress or egress: then it has no visitors.
    """
    if end is None:
        return
    if waiting := end.waiting_visitors():
        yield waiting
    relays = end.relays.running()
    for start in range(0, len(relays), SLICE_SIZE):
        offset_s = time.time() - time.monotonic()
        yield [describe(one, end, offset_s) for one in relays[start : start + SLICE_SIZE] if one.is_open]
        await asyncio.sleep(0)


async def kick_visitors(end: TunnelEnd | None, selector: VisitorSelector) -> list[VisitorView]:
    """Reset the selected visitors, also those that wait for a connection; return what was disconnected."""
    if end is None:
        return []
    kicked = end.kick_waiting(selector)
    relays = end.relays.running()
    for start in range(0, len(relays), _KICK_SLICE_SIZE):
        offset_s = time.time() - time.monotonic()
        for relay in relays[start : start + _KICK_SLICE_SIZE]:
            if relay.is_open and selector.selects(relay.id, relay.visitor_address):
                kicked.append(describe(relay, end, offset_s))
                relay.abort(VisitorEnd.KICKED)
        await asyncio.sleep(0)
    end.stats.count_kicked(len(kicked))
    return kicked


def describe(relay: ForwardedVisitor, end: TunnelEnd, offset_s: float) -> VisitorView:
    """Return what is known of an open relay; ``offset_s`` is the wall clock minus the monotonic clock."""
    from_near, to_near = relay.passed()
    is_ingress = end.is_ingress
    return VisitorView(
        relay.id,
        format_packed(relay.visitor_address),
        relay.started_at + offset_s,
        from_near if is_ingress else to_near,
        to_near if is_ingress else from_near,
        None if is_ingress else relay.describe_near(),
        relay.link.ident,
        CONNECTED,
        relay.proto,
        paused_s(relay.flows),
    )


def format_packed(packed: bytes) -> str | None:
    """Return a packed address as text; None if the address is not known."""
    address = unpack_address(packed)
    return None if address is None else sockets.format_address(address)
