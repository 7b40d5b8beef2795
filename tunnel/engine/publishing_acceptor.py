"""What a server decides about clients that publish: authenticates them, and hands each to the tunnel of its service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.engine.link_acceptor import LinkAcceptor
from tunnel.engine.refusals import Refusals
from tunnel.model.publishing import PublishRequest
from tunnel.protocol.handshake import describe_service

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.control_channel import ControlChannel
    from tunnel.engine.key_ring import KeyRing
    from tunnel.engine.link_acceptor import LinkAcceptorOwner
    from tunnel.engine.pending import PendingConnection
    from tunnel.engine.stats import Stats
    from tunnel.model.events import EventLog
    from tunnel.model.spec import TunnelSpec
    from tunnel.protocol.handshake import AuthenticatedClient, ServerHandshake

_MAX_UNDECIDED: Final = 16  # an engine that starts may wait for the listener of another one that drains


class PublishingAcceptor(LinkAcceptor):
    """Judges the clients that publish, whatever their service is. Makes no links."""

    def __init__(
        self,
        name: str,
        spec: TunnelSpec,
        context: EngineContext,
        event_log: EventLog,
        stats: Stats,
        key_ring: KeyRing,
        owner: LinkAcceptorOwner,
    ) -> None:
        super().__init__(spec, context, event_log, stats, key_ring, owner)
        self._name = name
        self._context = context
        self._waiting = 0  # clients whose tunnel is being started

    async def _decide(
        self,
        connection: PendingConnection,
        channel: ControlChannel,
        handshake: ServerHandshake,
        client: AuthenticatedClient,
    ) -> bool:
        """Have the tunnel of its service decide about a client, or refuse the client."""
        acceptor, objection = None, await self._publish(client)
        if objection is None:
            channel.check_open()
            service = client.hello.service
            acceptor = self._place.port.acceptor_of(service) if self._place is not None else None
            objection = f"the tunnel of {describe_service(service)} has ended at this moment"
        if acceptor is not None:
            return await acceptor.adopt_client(connection, channel, handshake, client)
        self.refuse_client(connection, channel, Refusals.OBJECTION, objection, answer=objection)
        return False

    async def _publish(self, client: AuthenticatedClient) -> str | None:
        """Have the tunnel of a client opened; return why there is none."""
        hello, publisher = client.hello, self._context.publisher
        if hello.publish is None:
            service = describe_service(hello.service)
            return f"there is no tunnel for {service} here; a client that publishes it writes publish=PORT"
        if (objection := self._check_proto(hello)) is not None:  # before anything is opened for this client
            return objection
        if publisher is None or client.key.name is None:
            return "this server opens no tunnels for clients"
        if self._waiting >= _MAX_UNDECIDED:
            return "too many other clients publish at this moment"
        self._waiting += 1
        try:
            request = PublishRequest(client.key.name, hello.service, hello.publish)
            return await publisher.publish(self._name, request) or self._check_key(client)
        finally:
            self._waiting -= 1
