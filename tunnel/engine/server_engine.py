"""The engine of a server: listens, and uses the links that clients establish."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from tunnel.engine.cooldown import Cooldown
from tunnel.engine.engine import Engine
from tunnel.engine.key_ring import KeyRing
from tunnel.engine.link_acceptor import LinkAcceptor
from tunnel.model.events import EventKind
from tunnel.model.spec import Direction, LogLevel
from tunnel.model.state import State
from tunnel.model.wording import plural
from tunnel.runtime import listeners
from tunnel.runtime.sockets import NetError
from tunnel.runtime.tls import TlsError

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.link import Link
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.engine.service_place import ServicePlace
    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec

_KEY_RETRY_DELAY_S: Final = 5.0  # after a new key could not be computed for want of a thread or memory


class ServerEngine(Engine):
    """Owns a link acceptor. Decides the direction of the tunnel."""

    def __init__(self, name: str, spec: TunnelSpec, *, context: EngineContext, sink: EventSink) -> None:
        super().__init__(name, spec, context=context, sink=sink)
        self._retry = Cooldown(context.timing.retry_delay)
        self._direction: Direction = listeners.decide_direction(spec)
        self._acceptor: LinkAcceptor | None = None
        self._place: ServicePlace | None = None  # on the tunnel port, until the acceptor owns it
        self._is_direction_outdated = False
        self._key_ring = KeyRing(spec)
        self._wake_up = asyncio.Event()  # for the task of ``_serve``: another direction, or other keys
        self._named_links: WeakSet[Link] = WeakSet()  # of clients with a named key; a link with relays is alive

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Use settings, log level and named keys of a changed spec; only clients of a revoked key are disconnected."""
        super().apply_live_settings(spec)
        if self._acceptor is not None:
            self._acceptor.update_spec(spec)
        self._disconnect_clients(self._key_ring.update(spec))
        self._wake_up.set()

    def _disconnect_clients(self, revoked: frozenset[str | None]) -> None:
        """Close the links of revoked keys, and disconnect the visitors of present and former links of theirs."""
        links = {link for link in self._named_links if link.key_name in revoked}
        for link in links:
            if not link.is_lost:
                link.close(f"its key {link.key_name} was revoked", goodbye="the key of this client was revoked")
        count = self._end.disconnect(links) if self._end is not None and links else 0
        if count:
            text = f"{plural(count, 'visitor')} of a revoked key {'was' if count == 1 else 'were'} disconnected"
            self._event_log.log_warn(EventKind.VISITOR, text)

    async def _serve(self) -> None:
        while True:
            acceptor = self._make_acceptor()
            try:
                await self._join_port()
                await self._open_end(self._direction)
                await self._open_acceptor(acceptor)
            except (NetError, TlsError) as error:
                self._close_end()
                self._close_listeners()
                if isinstance(error, TlsError) or error.errno in {errno.EACCES, errno.EPERM}:
                    self._fail(str(error))
                    return
                await self._cool_down(str(error))
                continue
            self._retry.reset()
            data = f", data connections on {acceptor.data_addr}" if acceptor.data_addr else ""
            self._event_log.log_info(
                EventKind.LISTEN, f"listening on {acceptor.address} as {self._direction} server{data}"
            )
            self._set_state(self._listening_state)
            await self._load_new_keys()  # links come and go without this task
            self._is_direction_outdated = False
            self._direction = Direction.REVERSE
            self._close_end()
            self._close_listeners()

    def _make_acceptor(self) -> LinkAcceptor:
        return LinkAcceptor(self.spec, self._context, self._event_log, self._stats, self._key_ring, self)

    @property
    def _listening_state(self) -> State:
        """The state of a server that listens and has no link."""
        return State.WAITING

    async def _cool_down(self, reason: str) -> None:
        self._retry.start(self.spec.cooldown, reason, self._event_log)
        self._set_state(State.COOLDOWN, reason)
        await self._retry.wait()

    def retry(self) -> None:
        """End a cooldown, or the pause after failed data connections: make the next attempt now."""
        self._retry.skip()
        super().retry()

    @property
    def _cooldown(self) -> Cooldown:
        return self._retry

    async def _bind_new_addresses(self, predecessor: Engine) -> None:
        await super()._bind_new_addresses(predecessor)
        try:
            await self._join_port(predecessor.place if isinstance(predecessor, ServerEngine) else None)
        except BaseException:
            listeners.close(self._bound)
            raise

    async def _join_port(self, former: ServicePlace | None = None) -> None:
        """Bind the tunnel port, or share it with other servers, and claim the service. Raises NetError."""
        if self._place is not None:
            return
        place = await self._context.tunnel_ports.join(self.spec, former)
        try:
            place.claim(former)
        except NetError:
            place.leave()
            raise
        self._place = place

    async def _open_acceptor(self, acceptor: LinkAcceptor) -> None:
        if self._place is None:
            raise RuntimeError("the engine has no place on a tunnel port")
        await acceptor.open(self._place)
        self._acceptor, self._place = acceptor, None

    @property
    def place(self) -> ServicePlace | None:
        """The engine's place on its tunnel port, until it has left."""
        return self._place or (self._acceptor.place if self._acceptor is not None else None)

    async def _load_new_keys(self) -> None:
        """Compute the keys that a change adds, until the direction is outdated."""
        while not self._is_direction_outdated:
            self._wake_up.clear()
            retry_delay_s: float | None = None
            try:
                await self._key_ring.load()
            except NetError as error:
                self._event_log.warn_throttled(EventKind.STATE, "keys", f"a new key is not accepted yet: {error}")
                retry_delay_s = _KEY_RETRY_DELAY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry_delay_s):
                    await self._wake_up.wait()

    def start_link(self, link: Link, filler: PoolFiller | None = None) -> None:
        """Use a link whose handshake is complete, unless the target has become an address of this host.

        That address may come after the start of the engine: with DHCP, VRRP or a VPN. Visitors are to be accepted on
        it then. The opposite is no change: a listener still works when its address comes back.
        """
        is_outdated = self._direction is Direction.FORWARD and self._end is not None
        if is_outdated and listeners.decide_direction(self.spec) is Direction.REVERSE:
            reason = f"the target {self.spec.target} has become an address of this server, which accepts visitors there"
            self._event_log.log_info(EventKind.LISTEN, reason)
            link.close(reason, goodbye=reason)
            self._is_direction_outdated = True
            self._wake_up.set()
        else:
            if link.key_name is not None:
                self._named_links.add(link)
            super().start_link(link, filler)

    def _on_link_closed(self, link: Link, reason: str, level: LogLevel) -> None:
        if self._acceptor is not None:
            self._acceptor.forget_link(link)
        if not self._stop_requested.is_set():
            topic = "lost" if level is LogLevel.WARN else "closed"
            self._event_log.log_paced(level, EventKind.LINK, topic, reason, link=link.ident)
            if not self._links:
                self._set_state(State.WAITING, reason)
            self._update_state()

    def on_client_refused(self, reason: str) -> None:
        """Show the reason in the state until a client has the tunnel."""
        if self._record.state is State.WAITING:
            self._set_state(State.WAITING, reason)

    @property
    def _tunnel_address(self) -> str | None:
        return self._acceptor.address if self._acceptor is not None else None

    @property
    def _data_address(self) -> str | None:
        if self._acceptor is None:
            return None
        return self._acceptor.data_addr or (self._acceptor.address if self._link is not None else None)

    def _close_listeners(self) -> None:
        super()._close_listeners()
        if self._acceptor is not None:
            self._acceptor.close()
        if self._place is not None:
            self._place.leave()
            self._place = None
