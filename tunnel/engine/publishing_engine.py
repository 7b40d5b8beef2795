"""The engine of a server that lets clients publish: it listens, and hands each client to the tunnel of its service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.engine.publishing_acceptor import PublishingAcceptor
from tunnel.engine.server_engine import ServerEngine
from tunnel.model.state import State

if TYPE_CHECKING:
    from tunnel.engine.link_acceptor import LinkAcceptor
    from tunnel.model.spec import Direction


class PublishingEngine(ServerEngine):
    """Has no visitors and no links of its own. The tunnels of published services have engines of their own."""

    def _make_acceptor(self) -> LinkAcceptor:
        context, log = self._context, self._event_log
        return PublishingAcceptor(self.name, self.spec, context, log, self._stats, self._key_ring, self)

    @property
    def _listening_state(self) -> State:
        return State.UP

    async def _open_end(self, direction: Direction) -> None:
        """Open nothing: visitors are accepted by the tunnels of published services."""
