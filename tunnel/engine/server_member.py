"""One server of a client: establishes a link with it, again after each loss."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from tunnel.engine.cooldown import Cooldown
from tunnel.engine.link_connector import LinkConnector, LinkFailedError
from tunnel.model.links import LinkState
from tunnel.model.snapshot_builder import ServerFacts
from tunnel.model.spec import LogLevel
from tunnel.protocol.frames import Goodbye
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.link import Link
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.model.events import EventLog
    from tunnel.model.servers import ServerShare
    from tunnel.model.spec import TunnelSpec


class ServerMemberOwner(Protocol):
    """The engine, as one of its servers sees it."""

    async def adopt_link(self, member: ServerMember, link: Link, filler: PoolFiller) -> None:
        """Use a link from now on. Raises NetError if that is not possible."""

    def on_server_changed(self) -> None:
        """Show that an attempt has begun or failed."""

    def fail_for_good(self, reason: str) -> bool:
        """End the tunnel if no other attempt can help; return whether it ends."""

    def on_handler_error(self, error: Exception) -> None:
        """End the engine because of a defect."""


class ServerMember:
    """One server of a client, with attempts and waits of its own. The engine owns its links."""

    def __init__(
        self,
        share: ServerShare,
        spec: TunnelSpec,
        context: EngineContext,
        event_log: EventLog,
        owner: ServerMemberOwner,
    ) -> None:
        self.address = share.address
        self.share = share
        """which of the visitors it gets, if this end accepts them"""
        self.rank = 0
        """its place in the configuration"""
        self.link: Link | None = None
        """the present link"""
        self.filler: PoolFiller | None = None
        """what fills the pool of that link"""
        self.cooldown = Cooldown(context.timing.retry_delay)
        self.state = LinkState.CONNECTING
        """what happens while there is no link"""
        self.reason: str | None = None
        """why the latest attempt or link has ended"""
        self._spec = spec
        self._connector = LinkConnector(spec, share.address, context, event_log)
        self._timing = context.timing
        self._event_log = event_log
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._loss: asyncio.Future[tuple[str, LogLevel]] | None = None
        self._task: asyncio.Task[None] | None = None

    def update_spec(self, spec: TunnelSpec) -> None:
        """Use the settings of a changed spec from now on."""
        self._spec = spec
        self._connector.update_spec(spec)

    def start(self) -> None:
        """Begin to establish links."""
        self._task = self._loop.create_task(self._run(), name=f"server {self.address}")

    def stop(self) -> asyncio.Task[None] | None:
        """Establish no other link; the task that ends now. A present link stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    def leave(self) -> None:
        """End the present link in order: its visitors may finish, and new ones go to other servers."""
        self.stop()
        if self.link is not None:
            self.link.send_goodbye(Goodbye.SHUTDOWN)
            self._loop.call_later(self._timing.goodbye_grace_s, self._close_left, self.link)

    @staticmethod
    def _close_left(link: Link) -> None:
        if not link.is_lost:
            link.close("its server was removed from the tunnel")

    def set_place(self, rank: int, share: ServerShare) -> None:
        """Take this place in the order of preference and this share of the visitors, also with the present link."""
        self.rank, self.share = rank, share
        if self.link is not None:
            self.link.set_server(rank, share)

    def set_link(self, link: Link, filler: PoolFiller) -> None:
        """Note the link that is used from now on."""
        self.link, self.filler, self.reason = link, filler, None
        link.set_server(self.rank, self.share)
        self._loss = self._loop.create_future()

    def on_link_closed(self, reason: str, level: LogLevel) -> None:
        """Handle the loss of the link."""
        if self.filler is not None:
            self.filler.close()
        self.link = self.filler = None
        if self._loss is not None and not self._loss.done():
            self._loss.set_result((reason, level))

    def facts(self) -> ServerFacts:
        """What a snapshot shows of the server."""
        ident = self.link.ident if self.link is not None else None
        return ServerFacts(str(self.address), ident, self.state, self.reason, self.share.weight, self.share.is_backup)

    async def _run(self) -> None:
        try:
            await self._keep_linked()
        except Exception as error:  # noqa: BLE001  a defect, which the engine reports
            self._owner.on_handler_error(error)

    async def _keep_linked(self) -> None:
        while True:
            self.state = LinkState.CONNECTING
            self._owner.on_server_changed()
            level = LogLevel.WARN
            try:
                link, filler = await self._connector.connect()
                reason, level = await self._use_link(link, filler)
            except LinkFailedError as error:
                reason = str(error)
                if error.is_final and self._owner.fail_for_good(reason):
                    return
            await self._cool_down(reason, level)

    async def _use_link(self, link: Link, filler: PoolFiller) -> tuple[str, LogLevel]:
        """Use a link until it is closed; the reason, and how serious that is."""
        started_at = self._loop.time()
        try:
            await self._owner.adopt_link(self, link, filler)
        except NetError as error:
            link.close(str(error), goodbye=str(error))
            return str(error), LogLevel.WARN
        except asyncio.CancelledError:
            link.close("this end is shutting down", goodbye=Goodbye.SHUTDOWN)
            raise
        if self._loss is None:
            raise RuntimeError("the engine has adopted a link without noting it")
        reason, level = await self._loss
        if self._loop.time() - started_at >= self._timing.stable_after_s:
            self.cooldown.reset()
        return reason, level

    async def _cool_down(self, reason: str, level: LogLevel) -> None:
        self.cooldown.start(self._spec.cooldown, reason, self._event_log, level)
        self.state, self.reason = LinkState.COOLDOWN, reason
        self._owner.on_server_changed()
        await self.cooldown.wait()
