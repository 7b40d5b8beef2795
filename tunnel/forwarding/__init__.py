"""What happens to the bytes between a visitor and a target, and which forwarder a tunnel has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.base import Forwarder
from tunnel.forwarding.tcp import TcpForwarder

if TYPE_CHECKING:
    from tunnel.forwarding.flow import ByteCounter
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool

__all__ = ["Forwarder", "create_forwarder"]


def create_forwarder(
    _spec: TunnelSpec, reactor: Reactor, pipes: PipePool, *, from_near: ByteCounter, to_near: ByteCounter
) -> Forwarder:
    """Create the forwarder of one end of a tunnel as its spec asks; today every tunnel forwards TCP.

    ``from_near`` counts bytes that come from visitors or targets, ``to_near`` bytes that go to them.
    """
    return TcpForwarder(reactor, pipes, from_near, to_near)
