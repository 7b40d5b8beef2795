"""The engine of a server: listens, and uses the links that clients establish."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from tunnel.engine.engine import Engine
from tunnel.engine.link_acceptor import LinkAcceptor
from tunnel.model.events import EventKind
from tunnel.model.spec import Direction, LogLevel
from tunnel.model.state import State
from tunnel.runtime import listeners
from tunnel.runtime.sockets import NetError
from tunnel.runtime.tls import TlsError

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.link import Link
    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.acceptor import Acceptor


class ServerEngine(Engine):
    """Owns a link acceptor. Decides the direction of the tunnel."""

    def __init__(self, name: str, spec: TunnelSpec, *, context: EngineContext, sink: EventSink) -> None:
        super().__init__(name, spec, context=context, sink=sink)
        self._direction: Direction = listeners.decide_direction(spec)
        self._acceptor: LinkAcceptor | None = None
        self._direction_changed = asyncio.Event()

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Use settings and log level of a changed spec; no connection is closed."""
        super().apply_live_settings(spec)
        if self._acceptor is not None:
            self._acceptor.update_spec(spec)

    async def _serve(self) -> None:
        while True:
            acceptor = LinkAcceptor(self.spec, self._context, self._event_log, self._stats, self)
            try:
                await self._open_end(self._direction)
                await acceptor.open(self._bound)
            except (NetError, TlsError) as error:
                self._close_end()
                self._close_listeners()
                if isinstance(error, TlsError) or error.errno in {errno.EACCES, errno.EPERM}:
                    self._fail(str(error))
                    return
                await self._cool_down(str(error))
                continue
            self._acceptor = acceptor
            self._cooldown.reset()
            data = f", data connections on {acceptor.data_addr}" if acceptor.data_addr else ""
            self._event_log.log_info(
                EventKind.LISTEN, f"listening on {acceptor.address} as {self._direction} server{data}"
            )
            self._set_state(State.WAITING)
            await self._direction_changed.wait()  # links come and go without this task
            self._direction_changed.clear()
            self._direction = Direction.REVERSE
            self._close_end()
            self._close_listeners()

    def start_link(self, link: Link) -> None:
        """Use a link whose handshake is complete, unless the target has become an address of this host.

        That address may come after the start of the engine: with DHCP, VRRP or a VPN. Visitors are to be accepted on
        it then. The opposite is no change: a listener still works when its address comes back.
        """
        is_outdated = self._direction is Direction.FORWARD and self._end is not None
        if is_outdated and listeners.decide_direction(self.spec) is Direction.REVERSE:
            reason = f"the target {self.spec.target} has become an address of this server, which accepts visitors there"
            self._event_log.log_info(EventKind.LISTEN, reason)
            link.close(reason, goodbye=reason)
            self._direction_changed.set()
        else:
            super().start_link(link)

    def _on_link_closed(self, link: Link, reason: str, level: LogLevel) -> None:
        if not self._stop_requested.is_set():
            topic = "lost" if level is LogLevel.WARN else "closed"
            self._event_log.log_paced(level, EventKind.LINK, topic, reason, link=link.ident)
            self._set_state(State.WAITING, reason)

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

    def _acceptors(self) -> dict[str, Acceptor]:
        own = self._acceptor.acceptors if self._acceptor is not None else {}
        return {**own, **super()._acceptors()}

    def _close_listeners(self) -> None:
        super()._close_listeners()
        if self._acceptor is not None:
            self._acceptor.close()
