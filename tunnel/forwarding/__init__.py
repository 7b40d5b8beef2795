"""What happens to the bytes between a visitor and a target, and which forwarder a tunnel has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.forwarding.base import Forwarder
from tunnel.forwarding.by_proto import ForwarderByProto
from tunnel.forwarding.logged import LoggedForwarder, VisitorLog
from tunnel.forwarding.tcp_forwarder import TcpForwarder
from tunnel.model.spec import Proto

if TYPE_CHECKING:
    from tunnel.forwarding.base import NearCounters
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.splice import PipePool

__all__ = ["Forwarder", "VisitorLog", "create_forwarder"]


def create_forwarder(
    spec: TunnelSpec,
    reactor: Reactor,
    pipes: PipePool,
    *,
    counters: NearCounters,
    visitor_log: VisitorLog | None = None,
    is_ingress: bool = False,
) -> Forwarder:
    """Create the forwarder of one end of a tunnel as its spec asks.

    ``visitor_log`` receives each visitor that has left.
    """
    forwarders: dict[Proto, Forwarder] = {}
    if spec.proto.has_tcp:
        from_near, to_near, _ = counters
        forwarders[Proto.TCP] = (
            TcpForwarder(reactor, pipes, from_near, to_near)
            if visitor_log is None
            else LoggedForwarder(reactor, pipes, from_near, to_near, log=visitor_log, is_ingress=is_ingress)
        )
    if spec.proto.has_udp:
        from tunnel.forwarding.udp import UdpForwarder  # noqa: PLC0415  memory that other tunnels do not need

        forwarders[Proto.UDP] = UdpForwarder(reactor, counters, log=visitor_log, is_ingress=is_ingress)
    return forwarders.get(spec.proto) or ForwarderByProto(forwarders)
