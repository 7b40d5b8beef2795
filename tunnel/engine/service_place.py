"""The place of an engine on a tunnel port, where the clients of its service arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    from tunnel.engine.link_acceptor import LinkAcceptor
    from tunnel.engine.tunnel_port import TunnelPort
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.acceptor import Acceptor


class ServicePlace:
    """The place of one engine on a tunnel port, from ``TunnelPorts.join`` to ``leave``."""

    def __init__(self, port: TunnelPort, spec: TunnelSpec) -> None:
        self.port = port
        self.spec = spec
        self.acceptor: LinkAcceptor | None = None
        """what judges the clients of the service, once the place is open"""
        self.former: ServicePlace | None = None
        """the place that this one replaces, and that has the service again if this one leaves before it is open"""

    @property
    def claimed(self) -> str | None:
        """The service whose clients the place receives; None: clients that publish, for any service."""
        return None if self.spec.publish_rules else self.spec.service

    def claim(self, replaced: ServicePlace | None = None) -> None:
        """Receive the clients of the service from now on, in place of ``replaced``. Raises NetError if it is taken."""
        self.port.claim(self, replaced)

    def open(self, acceptor: LinkAcceptor, context: ssl.SSLContext) -> None:
        """Have ``acceptor`` judge the clients that wait and those that come. ``context`` is used for the whole port."""
        self.port.open(self, acceptor, context)

    def update_spec(self, spec: TunnelSpec) -> None:
        """Use a spec with other keys or features."""
        self.spec = spec
        self.port.on_specs_changed()

    def leave(self) -> None:
        """Accept nothing for this engine any more; the last engine closes the port."""
        self.port.remove(self)

    @property
    def address(self) -> str | None:
        """Where control channels are accepted, once they are."""
        acceptor = self.port.tunnel_acceptor
        return acceptor.address if acceptor is not None else None

    @property
    def data_acceptor(self) -> Acceptor | None:
        """What accepts data connections, if they have a port of their own and the place is open."""
        return self.port.data_acceptor(self.spec.data_port)
