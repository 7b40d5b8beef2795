"""The engine of a client: establishes a link with its server, again after each loss."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnel.engine.engine import Engine
from tunnel.engine.link_connector import LinkConnector, LinkFailedError
from tunnel.model.spec import Direction, LogLevel
from tunnel.model.state import State
from tunnel.runtime import listeners
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.link import Link
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec


class ClientEngine(Engine):
    """Owns a link connector, and one pool filler for each link."""

    def __init__(self, name: str, spec: TunnelSpec, *, context: EngineContext, sink: EventSink) -> None:
        super().__init__(name, spec, context=context, sink=sink)
        self._connector = LinkConnector(spec, context, self._event_log)
        self._present_filler: PoolFiller | None = None
        self._link_loss: asyncio.Future[tuple[str, LogLevel]] | None = None

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Use settings and log level of a changed spec; no connection is closed."""
        super().apply_live_settings(spec)
        self._connector.update_spec(spec)
        if self._link is not None:
            try:
                self._settle_targets()
            except NetError as error:
                self._link.close(str(error), goodbye=str(error))

    def _settle_targets(self) -> None:
        """Raise NetError if there are several targets, and the server wants this end to accept visitors."""
        if self.spec.targets and self._direction is Direction.FORWARD:
            self._close_end()
            raise NetError("this end has several targets to dial, but the server dials; set mode=reverse at the server")

    async def _serve(self) -> None:
        while True:
            self._set_state(State.CONNECTING)
            level = LogLevel.WARN
            try:
                link, filler = await self._connector.connect()
                reason, level = await self._use_link(link, filler)
            except LinkFailedError as error:
                if error.is_final:
                    self._fail(str(error))
                    return
                reason = str(error)
            await self._cool_down(reason, level)

    async def _use_link(self, link: Link, filler: PoolFiller) -> tuple[str, LogLevel]:
        """Use a link until it is closed; the reason, and how serious that is."""
        if self._direction is not link.direction:
            self._close_end()  # the server has another mode now
            self._direction = link.direction
        try:
            self._settle_targets()
            await self._open_end(link.direction)
        except NetError as error:
            link.close(str(error), goodbye=str(error))
            return str(error), LogLevel.WARN
        listeners.close(self._bound)  # taken over for a direction that the server no longer has
        self._present_filler = filler
        self._link_loss = self._loop.create_future()
        started_at = self._loop.time()
        self.start_link(link, filler)
        filler.start()
        reason, level = await self._link_loss
        if self._loop.time() - started_at >= self._context.timing.stable_after_s:
            self._cooldown.reset()
        return reason, level

    def _on_link_closed(self, link: Link, reason: str, level: LogLevel) -> None:
        if self._present_filler is not None:
            self._present_filler.close()
            self._present_filler = None
        if self._link_loss is not None and not self._link_loss.done():
            self._link_loss.set_result((reason, level))

    @property
    def _data_address(self) -> str | None:
        return self._present_filler.address if self._present_filler is not None else None
