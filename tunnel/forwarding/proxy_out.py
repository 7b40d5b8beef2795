"""A PROXY header for the target, before the visitor's first byte: option ``proxy``.

The rest of a visitor is forwarded as without the header, spliced or encrypted.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from tunnel.forwarding.by_proto import ForwarderByProto
from tunnel.model.spec import ProxyVersion
from tunnel.model.visitors import visitor_id
from tunnel.protocol.proxy_header import encode_header

if TYPE_CHECKING:
    from tunnel.forwarding.base import ForwardedVisitor, Forwarder, ForwardingOwner, RelayLink, UsedConnection


class ProxyHeaderForwarder:
    """Sends the header to each target, then forwards as another forwarder does."""

    def __init__(self, forwarder: Forwarder, version: ProxyVersion) -> None:
        self._forwarder = forwarder
        self._version = version

    def create(
        self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner
    ) -> ForwardedVisitor:
        """Take over both sockets. A target that does not take the header gets none of the visitor's bytes.

        A new socket takes a header at once: it is smaller than a segment (§2.1 and §2.2 of the specification).
        """
        ident = visitor_id(link.ident, data.ident, data.use).encode()
        try:
            header = encode_header(self._version, data.visitor_address, near.getpeername()[:2], ident)
            is_sent = near.send(header) == len(header)
        except OSError:
            is_sent = False
        if not is_sent:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)
        return self._forwarder.create(data, link, near, owner)


def with_proxy_header(forwarder: Forwarder, version: ProxyVersion) -> Forwarder:
    """Return a forwarder that sends headers of a version; the same forwarder if there are to be none."""
    if version is ProxyVersion.OFF:
        return forwarder
    if isinstance(forwarder, ForwarderByProto):
        return forwarder.map(lambda each: with_proxy_header(each, version))
    from tunnel.forwarding.udp import UdpForwarder  # noqa: PLC0415  only with headers

    if isinstance(forwarder, UdpForwarder):
        return forwarder.with_headers()
    return ProxyHeaderForwarder(forwarder, version)
