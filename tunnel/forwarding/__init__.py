"""What happens to the bytes between a visitor and a target, and which forwarder a tunnel has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.base import Forwarder
from tunnel.forwarding.logged import LoggedForwarder, VisitorLog
from tunnel.forwarding.tcp import TcpForwarder

if TYPE_CHECKING:
    from tunnel.forwarding.flow import ByteCounter
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool

__all__ = ["Forwarder", "VisitorLog", "create_forwarder"]


def create_forwarder(
    _spec: TunnelSpec,
    reactor: Reactor,
    pipes: PipePool,
    *,
    from_near: ByteCounter,
    to_near: ByteCounter,
    visitor_log: VisitorLog | None = None,
    is_ingress: bool = False,
) -> Forwarder:
    """Create the forwarder of one end of a tunnel as its spec asks; today every tunnel forwards TCP.

    ``from_near`` counts bytes that come from visitors or targets, ``to_near`` bytes that go to them. ``visitor_log``
    receives each visitor that has left.
    """
    if visitor_log is not None:
        return LoggedForwarder(reactor, pipes, from_near, to_near, log=visitor_log, is_ingress=is_ingress)
    return TcpForwarder(reactor, pipes, from_near, to_near)
