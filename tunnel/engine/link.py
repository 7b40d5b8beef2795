"""A link: one authenticated control session, with its channel, its pool and its relays.

The session (``tunnel.protocol.session``) knows the frames; the link moves bytes between session and channel, and passes
events to the parts that they concern: the ingress or egress, the pool filler of a client, the engine.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

from tunnel.carriers import create_carrier
from tunnel.engine.capacity import surplus
from tunnel.engine.link_events import DialStatusChanged, EventTable, LinkClosed, LinkOwner, LinkPart, PoolAvailable
from tunnel.engine.link_sharing import LinkSharing
from tunnel.engine.pool import DataConnection, Pool
from tunnel.model.snapshot_builder import LinkFacts
from tunnel.model.spec import MUX, REUSE, SHARE, UDP, Mux, UdpCarrier
from tunnel.protocol.frames import ConnectionsRetired, Goodbye, Pong, ShareChanged
from tunnel.protocol.heartbeat import Heartbeat
from tunnel.protocol.session import Session
from tunnel.protocol.tunnel_test_messages import TargetTest

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.engine.control_channel import ControlChannel
    from tunnel.engine.datagram_path import DatagramPath
    from tunnel.engine.link_terms import LinkTerms
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.engine.tunnel_end import TunnelEnd
    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.model.limits import ConfiguredLimits, Limits
    from tunnel.model.servers import ServerShare
    from tunnel.model.spec import Proto
    from tunnel.protocol.frame_codec import Frame
    from tunnel.runtime.reactor import Reactor

_LATE_MOVE_S: Final = 5.0  # in which an egress keeps its pool after the link, if visitors share a connection


class Link:
    """One end of a link. Owns its channel, session and pool."""

    def __init__(self, terms: LinkTerms, channel: ControlChannel, reactor: Reactor) -> None:
        self.ident = terms.ident
        self.wire_id = bytes.fromhex(terms.ident)
        """the id in the prefaces of its data connections"""
        self.secret = terms.secret
        self.direction = terms.direction
        self.carrier = terms.carrier
        self.key_name = terms.key_name
        self.weight, self.is_backup = terms.weight, terms.is_backup
        self.server = terms.server
        """at a client: the configured address of the server"""
        self.rank, self.server_weight, self.is_server_backup = 0, 1, False
        """at a client: the place of its server among several, the server's share of the visitors that the client
        accepts, and whether the server gets them only while no other can serve"""
        self.is_drained = False
        """by command: it gets no new visitors while there are other links"""
        self.since = time.time()
        """when its handshake was complete, as a Unix time"""
        self.has_been_up = False
        """whether a visitor could have been served, once: then an empty pool is a moment's lack only"""
        self.flow_source = create_carrier(terms.carrier, terms.secret, reactor.scratch, is_client=terms.role.is_client)
        """what makes the flows of relays over its data connections"""
        self.features = terms.features
        """optional parts of the protocol that both ends use"""
        self.datagram_path: DatagramPath | None = None
        """what carries UDP flows beside the data connections, if both ends want that; owned by the link"""
        self.reuses = REUSE in self.features
        """whether a data connection serves another visitor after one that has left in order; not after the link"""
        self.sharing = LinkSharing(terms.mux if MUX in self.features else Mux.OFF, channel)
        """the data connections that visitors share"""
        self.is_client = terms.role.is_client
        self.is_ingress = terms.role.is_ingress
        self.announces_ends = self.is_client or self.reuses
        """whether this end announces the ends of streams over the link; not after the link"""
        self.has_announced_ends = self.reuses or not self.is_client
        """whether the other end does so; not after the link"""
        self.channel = channel
        self.own_pool_min = terms.negotiation.defaults.pool_min
        """idle data connections that this end wants; the peer may want more"""
        self._reactor = reactor
        self._loop = asyncio.get_running_loop()
        heartbeat = Heartbeat(terms.report_interval_s, self._loop.time())
        self.session = Session(terms.role, terms.negotiation, heartbeat, self._flush_later)
        self.pool = Pool(
            reactor,
            is_ingress=self.is_ingress,
            on_connection_lost=self._on_connection_lost,
            on_crash=self.on_handler_error,
        )
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong: asyncio.Future[None] | None = None
        self._is_peer_stopping = self._is_stopping = False
        self._filler: PoolFiller | None = None
        self._owner: LinkOwner
        self._events = EventTable()
        self._on_pool_grown: Callable[[], None] | None = None

    def start(self, owner: LinkOwner, end: LinkPart, filler: PoolFiller | None) -> None:
        """Handle frames from now on, and send pings. ``filler``: at the client, the part that fills the pool."""
        self._owner, self._filler = owner, filler
        for part in (end, filler, self, owner):
            if part is not None:
                part.register_handlers(self._events)
        self.session.heartbeat.note_received(self._loop.time())
        self._ping(random.random())  # noqa: S311  links that started together must not all ping together
        if self.datagram_path is not None:
            self.datagram_path.start()
        self.channel.set_receiver(self)

    def set_datagram_path(self, path: DatagramPath) -> None:
        """Carry UDP flows on this path, too; before the link starts."""
        self.datagram_path = path

    @property
    def description(self) -> str:
        """The link in words, for events."""
        with_key = f" with key {self.key_name}" if self.key_name is not None else ""
        return f"link {self.ident} with {self.channel.peer}{with_key}, {self.direction}"

    @property
    def keeps_visitors(self) -> bool:
        """Whether one of the ends stops in order: then the visitors of the link are served to their end without it."""
        return self._is_peer_stopping or self._is_stopping

    @property
    def is_stopping(self) -> bool:
        """Whether this end has said goodbye: a launch would not be served any more."""
        return self._is_stopping

    @property
    def is_lost(self) -> bool:
        """Whether it is closed: nothing comes over it any more."""
        return self.channel.closed_reason is not None

    @property
    def dial_error(self) -> str | None:
        """Why data connections cannot be dialled, at a client; None while they can."""
        return None if self._filler is None else self._filler.dial_error

    def note_usable(self) -> bool:
        """Return whether visitors can be served."""
        is_usable = len(self.pool) > 0 or (self.has_been_up and self.dial_error is None)
        self.has_been_up = self.has_been_up or is_usable
        return is_usable

    def facts(self, end: TunnelEnd | None) -> LinkFacts:
        """What a snapshot shows of the link, whose visitors are at this end."""
        own_error = end.target_error if end is not None and not end.is_ingress else None
        is_shared_here = self.is_client and self.is_ingress
        return LinkFacts(
            id=self.ident,
            client=self.key_name,
            peer=self.channel.peer,
            target_error=self.session.target_error or own_error,
            is_usable=self.has_been_up,
            is_drained=self.is_drained,
            weight=self.server_weight if is_shared_here else self.weight,
            backup=self.is_server_backup if is_shared_here else self.is_backup,
            pool=len(self.pool),
            rtt=self.session.heartbeat.round_trip_s,
            udp_carrier=self._udp_carrier,
            udp_reason=self.datagram_path.reason if self.datagram_path is not None else None,
            visitors=end.relays.count_of(self) if end is not None else 0,
            lanes=self.sharing.lane_count,
            since=self.since,
        )

    @property
    def _udp_carrier(self) -> UdpCarrier | None:
        """How UDP flows travel at this moment; None without such flows."""
        if self.datagram_path is not None:
            return self.datagram_path.carrier
        return UdpCarrier.STREAM if UDP in self.features else None

    def set_server(self, rank: int, share: ServerShare) -> None:
        """At a client: note the place of its server among several, and the server's share of the visitors."""
        self.rank, self.server_weight, self.is_server_backup = rank, share.weight, share.is_backup

    def update_share(self, weight: int, *, is_backup: bool) -> None:
        """At a client: ask the server for another share of the visitors; an older server learns it with a new link."""
        if (weight, is_backup) == (self.weight, self.is_backup):
            return
        self.weight, self.is_backup = weight, is_backup
        if SHARE in self.features:
            self.session.send_share(weight, is_backup=is_backup)
        else:
            self.close("weight or backup has changed", goodbye=Goodbye.SHUTDOWN)

    def _on_share_changed(self, share: ShareChanged) -> None:
        self.weight, self.is_backup = share.weight, share.is_backup
        self._owner.on_link_event(self, share)

    def retry_dials(self) -> None:
        """At a client: end the pause after failed data connections."""
        if self._filler is not None:
            self._filler.retry()

    def subscribe_pool_growth(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever idle connections were added."""
        self._on_pool_grown = callback

    def update_limits(self, ours: ConfiguredLimits, defaults: Limits) -> None:
        """Use other configured limits at this end; no connection is closed."""
        self.own_pool_min = defaults.pool_min
        self.session.send_limits(ours, defaults)
        self._refill()

    def set_report_interval(self, seconds: float) -> None:
        """Send pings in another interval from now on."""
        self.session.heartbeat.set_interval(seconds)
        if self._ping_timer is not None:
            self._ping(random.random())  # noqa: S311  as above

    # --- to the other end -----------------------------------------------------------------------------------------

    def send_launch(self, ident: int, address: bytes, proto: Proto) -> None:
        """Ask the egress to serve the visitor on this data connection; ``address`` is the visitor's, packed."""
        self.session.send_launch(ident, address, proto)
        self.note_used()

    def fail_visitor(self, ident: int, reason: str) -> None:
        """Report to the ingress that a visitor cannot be served any more; nothing is sent after the link."""
        if not self.is_lost:
            self.session.send_visitor_failed(ident, reason)

    def send_test(self, ident: int) -> None:
        """Ask the egress to test its targets, and to close this data connection."""
        self.session.send_use(TargetTest(ident))
        self.note_used()

    def send_queue_length(self, count: int) -> None:
        """Report the visitors that wait at this ingress to the end that dials data connections."""
        if self._filler is not None:
            self._filler.set_queue_length(count)
        else:
            self.session.send_queue_length(count)

    def take_back(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        """Use the data connection of a visitor that has left in order again, as soon as both ends may."""
        connection = DataConnection(relay.ident, sock, self.flow_source, self.pool)
        connection.use = relay.use + 1
        if self.is_ingress and not relay.is_freed:
            self.pool.hold(connection)
            return
        before = len(self.pool.idle)
        self.pool.add(connection, is_registered=True)
        if not self.is_ingress:
            self.session.send_freed(relay.ident)
        self.note_pool_grown(before)

    def free(self, ident: int) -> None:
        """Let a data connection whose visitor has left be used again: the egress has freed it."""
        before = len(self.pool.idle)
        if self.pool.free(ident):
            self.note_pool_grown(before)

    def claim(self, ident: int) -> DataConnection | None:
        """Return the data connection that the ingress uses, but not for a new visitor; None if it was lost.

        A frame in a shared connection may overtake the one on the control channel that says it was pooled.
        """
        if self._filler is not None:
            self._filler.confirm((ident,))
        data = self.pool.claim(ident)
        self.note_used()
        return data

    def note_used(self) -> None:
        """Note that an idle connection is used, but not for a new visitor."""
        if self._filler is not None:
            self._filler.note_used(1)

    def send_stream_ended(self, ident: int, total: int) -> bool:
        """Announce to the other end that a stream has ``total`` bytes; whether it was announced.

        A server announces it only where data connections are used again, and else shows the end on the connection. So
        does an end whose link is closed.
        """
        if not self.announces_ends:
            return False
        self.session.send_stream_ended(ident, total)
        return True

    def _flush_later(self) -> None:
        self._reactor.defer(self._flush)

    def _flush(self) -> None:
        data = self.session.data_to_send()
        if data:
            self.channel.send(data)

    # --- from the other end ---------------------------------------------------------------------------------------

    def on_frames(self, received: list[Frame]) -> None:
        """Handle frames that arrived together. Raises ProtocolError."""
        now = self._loop.time()
        session, events = self.session, self._events
        session.heartbeat.note_received(now)
        for kind, payload in received:
            event = session.receive_frame(kind, payload, now)
            if event is not None:
                events.handle(self, event)

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of the events of the link that it handles."""
        table.add(Pong, lambda _link, _pong: self._settle_pong())
        table.add(ConnectionsRetired, lambda _link, retired: self.pool.discard(retired.idents))
        table.add(Goodbye, lambda _link, goodbye: self._on_goodbye(goodbye))
        table.add(ShareChanged, lambda _link, share: self._on_share_changed(share))

    def _on_goodbye(self, goodbye: Goodbye) -> None:
        self._flush()  # launches that were not sent yet still count
        self._is_peer_stopping = goodbye.is_shutdown
        reason = "the other end is shutting down" if goodbye.is_shutdown else f"the other end refused: {goodbye.reason}"
        self.channel.close(reason)

    def note_dial_status(self) -> None:
        """Dialling data connections fails, or succeeds again."""
        self._owner.on_link_event(self, DialStatusChanged())

    def note_pool_grown(self, size_before: int) -> None:
        """The pool has grown from ``size_before`` connections: visitors that wait can be served."""
        if self._on_pool_grown is not None:
            self._on_pool_grown()
        if not size_before:
            self._owner.on_link_event(self, PoolAvailable())

    def _on_connection_lost(self, ident: int) -> None:
        if self.is_ingress:
            self.session.send_retired([ident])
        self._refill()

    def _refill(self) -> None:
        if self._filler is not None:
            self._filler.refill_later()

    # --- health ---------------------------------------------------------------------------------------------------

    def _ping(self, share: float = 1.0) -> None:
        """Ping now, and again after ``share`` of the interval, at a moment that other links use too."""
        if self.is_lost:
            return
        if self._ping_timer is not None:
            self._ping_timer.cancel()  # only one timer, also when the interval changes between two pings
        now, heartbeat = self._loop.time(), self.session.heartbeat
        if heartbeat.is_peer_lost(now):
            self.channel.close(f"the other end has been silent for {heartbeat.silence_s(now):.1f} s")
            return
        if heartbeat.silence_s(now) > heartbeat.interval_s and not self.channel.has_local_address():
            # It has moved to another network, or the address to another host (VRRP): no answer can come any more.
            self.channel.close(f"this host no longer has the address {self.channel.local}")
            return
        self.session.send_ping(now)
        self._ping_timer = self._reactor.call_later(heartbeat.seconds_until_ping(now, share), self._on_ping_timer)

    def _on_ping_timer(self) -> None:
        self.pool.run_maintenance()
        if self.is_ingress:
            wanted = max(self.session.wanted_idle, self.session.limits.pool_min)
            self.session.send_retired(self.pool.close_surplus(surplus(wanted=wanted, idle=len(self.pool))))
        self._refill()
        self.sharing.check()
        # After the process was stopped or starved, frames of that time are still unread: read them before judging.
        self._reactor.defer(self._ping)

    async def answers(self, timeout_s: float) -> bool:
        """Whether the other end answers a ping, sent now, in time."""
        if self.is_lost:
            return False
        if self._pong is None or self._pong.done():
            self._pong = self._loop.create_future()
        self.session.send_ping(self._loop.time())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._pong)
        except TimeoutError:
            await self._read_all()
        return self._pong.done() and not self.is_lost

    async def _read_all(self) -> None:
        """Wait until all frames are handled that have arrived: a process that was stopped finds the answers unread."""
        done = asyncio.Event()
        self._reactor.defer(done.set)
        await done.wait()

    def _settle_pong(self) -> None:
        if self._pong is not None and not self._pong.done():
            self._pong.set_result(None)

    # --- end ------------------------------------------------------------------------------------------------------

    def send_goodbye(self, reason: str) -> None:
        """Ask the other end to close the link, because this end shuts down; launches on their way still count.

        The other end reads nothing after that, so ends of streams are shown on the data connections from now on.
        """
        self.reuses = self.announces_ends = False
        self._is_stopping = True
        self.session.send_goodbye(reason)
        self._flush()

    def close(self, reason: str, *, goodbye: str | None = None) -> None:
        """Close the link; ``goodbye`` is the reason that the other end receives."""
        self._is_stopping = self._is_stopping or goodbye == Goodbye.SHUTDOWN
        try:
            if goodbye is not None:
                self.session.send_goodbye(goodbye)
            self._flush()
        finally:
            self.channel.close(reason)

    def on_closed(self, reason: str) -> None:
        """Close the pool and report the end of the channel."""
        self.reuses = self.announces_ends = self.has_announced_ends = False
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._settle_pong()  # ``answers`` must not wait any longer
        if self.datagram_path is not None:
            self.datagram_path.close()
        if self.is_ingress or not self.sharing.lane_count:
            self.pool.close()
        else:  # visitors in lanes may be about to move to its connections
            self._reactor.call_later(_LATE_MOVE_S, self.pool.close)
        self._events.clear()
        self._owner.on_link_event(self, LinkClosed(reason, is_orderly=self._is_peer_stopping))

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler of the link or its pool."""
        self._owner.on_handler_error(error)
