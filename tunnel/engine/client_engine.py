"""The engine of a client: keeps a link with its server, or with each of several."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnel.engine.engine import Engine
from tunnel.engine.server_member import ServerMember
from tunnel.model.events import EventKind
from tunnel.model.links import LinkState
from tunnel.model.spec import Direction, LogLevel
from tunnel.model.state import State
from tunnel.runtime import listeners
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.cooldown import Cooldown
    from tunnel.engine.link import Link
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.model.address import Address
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot_builder import ServerFacts
    from tunnel.model.spec import TunnelSpec


class ClientEngine(Engine):
    """Owns its servers, each with a connector and a cooldown of its own, and one pool filler for each link."""

    def __init__(self, name: str, spec: TunnelSpec, *, context: EngineContext, sink: EventSink) -> None:
        super().__init__(name, spec, context=context, sink=sink)
        self._servers: dict[Address, ServerMember] = {}
        self._members: dict[Link, ServerMember] = {}  # of the present links, also of servers that were removed
        self._is_serving = False
        self._has_failed = asyncio.Event()
        self._end_lock = asyncio.Lock()  # the first of several links decides the direction
        self._set_servers(spec)

    # --- servers --------------------------------------------------------------------------------------------------

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Use settings, log level and servers of a changed spec; only links with removed servers are closed."""
        super().apply_live_settings(spec)
        for member in self._servers.values():
            member.update_spec(spec)
        if tuple(member.share for member in self._servers.values()) != spec.servers:
            self._set_servers(spec)
        if self._links:
            try:
                self._settle_targets()
            except NetError as error:
                for link in self._links:
                    link.close(str(error), goodbye=str(error))

    def _set_servers(self, spec: TunnelSpec) -> None:
        """Start servers that are new, end those that are gone; the links of others stay, with their new shares."""
        before, self._servers = self._servers, {}
        for rank, share in enumerate(spec.servers):
            member = before.pop(share.address, None)
            if member is None:
                member = ServerMember(share, spec, self._context, self._event_log, self)
                if self._is_serving:
                    member.start()
            self._servers[share.address] = member
            member.set_place(rank, share)
        for member in before.values():
            self._event_log.log_info(EventKind.LINK, f"the server {member.address} was removed")
            member.leave()
        if self._end is not None:
            self._end.on_links_changed()
        self.on_server_changed()

    def retry(self) -> None:
        """End the cooldowns, or the pauses after failed data connections: make the next attempts now."""
        for member in self._servers.values():
            member.cooldown.skip()
        super().retry()

    async def _serve(self) -> None:
        self._is_serving = True
        for member in self._servers.values():
            member.start()
        try:
            await self._has_failed.wait()
        finally:
            self._is_serving = False
            ending = [task for member in self._servers.values() if (task := member.stop()) is not None]
            if ending:
                await asyncio.wait(ending)

    def fail_for_good(self, reason: str) -> bool:
        """End the tunnel if there is no other server; return whether it ends."""
        if len(self._servers) > 1:
            return False
        self._fail(reason)
        self._has_failed.set()
        return True

    def on_server_changed(self) -> None:
        """Show what the servers do while there is no link with any of them."""
        if not self._is_serving or self._stop_requested.is_set() or self._links:
            return
        states = {member.state for member in self._servers.values()}
        reason = next((member.reason for member in self._servers.values() if member.reason is not None), None)
        if LinkState.CONNECTING not in states:
            self._set_state(State.COOLDOWN, reason)
        else:
            self._set_state(State.CONNECTING, reason if LinkState.COOLDOWN in states else None)

    # --- links ----------------------------------------------------------------------------------------------------

    def _settle_targets(self) -> None:
        """Raise NetError if there are several targets, and the server wants this end to accept visitors."""
        if self.spec.targets and self._direction is Direction.FORWARD:
            self._close_end()
            raise NetError("this end has several targets to dial, but the server dials; set mode=reverse at the server")

    async def adopt_link(self, member: ServerMember, link: Link, filler: PoolFiller) -> None:
        """Use a link from now on. Raises NetError if its server and the others disagree, or an address is in use."""
        async with self._end_lock:
            if self._direction is not link.direction:
                if self._direction is not None and self._links:
                    text = f"the server {member.address} wants mode={link.direction}, other servers of this client"
                    raise NetError(f"{text} mode={self._direction}; set the same mode at all of them")
                self._close_end()  # the server has another mode now
                self._direction = link.direction
            self._settle_targets()
            await self._open_end(link.direction)
            listeners.close(self._bound)  # taken over for a direction that the server no longer has
            self._members[link] = member
            member.set_link(link, filler)
            self.start_link(link, filler)
            filler.start()

    def _on_link_closed(self, link: Link, reason: str, level: LogLevel) -> None:
        member = self._members.pop(link, None)
        if member is not None:
            member.on_link_closed(reason, level)
        self._update_state()

    # --- what observers see ---------------------------------------------------------------------------------------

    @property
    def _cooldown(self) -> Cooldown:
        """That of the server with which an attempt is made next."""
        waiting = [each.cooldown for each in self._servers.values() if each.state is LinkState.COOLDOWN]
        first = next(iter(self._servers.values())).cooldown
        return min(waiting, key=lambda cooldown: cooldown.next_attempt_at, default=first)

    @property
    def _server_facts(self) -> tuple[ServerFacts, ...]:
        if len(self._servers) < 2:
            return ()
        return tuple(member.facts() for member in self._servers.values())

    @property
    def _data_address(self) -> str | None:
        member = self._members.get(self._link) if self._link is not None else None
        return member.filler.address if member is not None and member.filler is not None else None
