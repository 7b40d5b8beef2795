"""Visitors of TCP and of UDP in one tunnel: each is forwarded by the forwarder of what it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from tunnel.forwarding.base import ForwardedVisitor, Forwarder, ForwardingOwner, RelayLink, UsedConnection
    from tunnel.model.spec import Proto


class ForwarderByProto:
    """Chooses a forwarder for each visitor."""

    def __init__(self, forwarders: Mapping[Proto, Forwarder]) -> None:
        self._forwarders = forwarders

    def create(
        self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner
    ) -> ForwardedVisitor:
        """Take over both sockets."""
        return self._forwarders[data.proto].create(data, link, near, owner)

    def map(self, change: Callable[[Forwarder], Forwarder]) -> ForwarderByProto:
        """Return one that chooses among changed forwarders."""
        return ForwarderByProto({proto: change(forwarder) for proto, forwarder in self._forwarders.items()})
