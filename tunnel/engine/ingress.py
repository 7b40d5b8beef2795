"""The ingress: accepts visitors, gives each an idle data connection or a place in the queue, signals, and relays.

Independent of the role (server or client): the engine attaches a link here.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from tunnel.engine.admission import Admission, AdmissionRules
from tunnel.engine.proxy_reader import ProxyHeaderReader
from tunnel.engine.tunnel_end import EndParts, TunnelEnd
from tunnel.engine.tunnel_test import IngressTests
from tunnel.engine.visitor_acceptor import create_acceptor, list_acceptors
from tunnel.engine.visitor_queue import VisitorQueue, describe_queued
from tunnel.engine.visitor_room import VisitorRoom
from tunnel.engine.visitor_source import VisitorSource
from tunnel.forwarding.lanes import Lane
from tunnel.model.events import VISITOR, EventKind
from tunnel.model.networks import NO_NETWORKS
from tunnel.model.refusals import VisitorRefusal
from tunnel.model.spec import End, LogLevel, Proto, proto_of
from tunnel.model.visitor_end import VisitorEnd
from tunnel.model.visitors import VisitorView
from tunnel.protocol.frames import ConnectionsFreed, Goodbye, StreamsEnded, TargetStatus, VisitorFailed
from tunnel.protocol.visitor_address import host_of, pack_address, pack_host
from tunnel.runtime import sockets

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Mapping

    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable
    from tunnel.engine.pool import DataConnection
    from tunnel.engine.shared_connection import SharedConnection
    from tunnel.engine.visitor_acceptor import ListenerAcceptor, VisitorAcceptor
    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.model.address import Address
    from tunnel.model.networks import NetworkSet
    from tunnel.model.settings import Settings
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.visitors import VisitorSelector


class Ingress(TunnelEnd):
    """The end that accepts visitors. Owns the listener, the queue and the relays."""

    def __init__(self, parts: EndParts, settings: Settings, queue_timeout_s: float) -> None:
        super().__init__(parts, IngressTests(parts.reactor))
        self._queue_timeout_s = queue_timeout_s
        self.acceptor: VisitorAcceptor | None = None
        self._linkless_since = self._loop.time()
        self._source = VisitorSource(self.relays.count_of, self._add_shared)
        self._queue = VisitorQueue()
        self._queue_timer: asyncio.TimerHandle | None = None
        self.room = VisitorRoom(self, self._queue, self._event_log, settings, parts.on_state_input_changed)
        """how many visitors may be present"""
        self._rules: tuple[AdmissionRules, NetworkSet] | None = None
        self.admission: Admission | None = None
        """what decides about visitors, in a tunnel with rules"""
        self._reader: ProxyHeaderReader | None = None  # since balancers were known for the first time
        self._on_accept: Callable[[socket.SocketType, object], None] = self._on_visitor
        self.stats.start_counting_refused()
        self._refusal: str | None = None
        self.address: str | None = None
        """where visitors are accepted, once they are"""

    @property
    def is_ingress(self) -> bool:
        """True: visitors are accepted here."""
        return True

    @property
    def queued(self) -> int:
        """Number of visitors that wait for a data connection."""
        return len(self._queue)

    @property
    def reserved(self) -> int:
        """Descriptors needed yet: a data connection for each visitor in the queue."""
        return len(self._queue)

    @property
    def held(self) -> int:
        """Descriptors of the present visitors and of their data connections, also of those to come."""
        return 2 * (self.relays.active + len(self._queue) + self._awaited) - self.lane_count

    @property
    def is_busy(self) -> bool:
        """Whether a drain has visitors to wait for."""
        return bool(self.relays.active or self._queue or self._awaited or self._has_ending_shared)

    @property
    def _awaited(self) -> int:
        """Number of connections of balancers whose PROXY header is awaited."""
        return 0 if self._reader is None else len(self._reader)

    def open(self, listeners: Mapping[str, socket.SocketType], requested_address: Address) -> None:
        """Start to accept visitors on listeners, by purpose, which this ingress owns now; the address is the spec's."""
        has_room = self.room.has_room if self._reader is None else self.room.has_room_beside_awaited
        self.acceptor = create_acceptor(self, listeners, self._event_log, self._on_accept, has_room, requested_address)
        self.address = self.acceptor.address

    @property
    def remark(self) -> str | None:
        """Why new visitors are refused, or wait."""
        return self._refusal or self.room.remark or super().remark

    def set_refusal(self, reason: str | None) -> None:
        """Refuse new visitors for this reason; None: serve them. Present visitors, also queued ones, may finish."""
        if reason != self._refusal:
            self._refusal = reason
            self._choose_callback(self._rules[1] if self._rules is not None else NO_NETWORKS)
            self._on_state_input_changed()

    @property
    def visitor_acceptors(self) -> dict[str, ListenerAcceptor]:
        """What accepts visitors on each listener, by its purpose, until it is closed."""
        return list_acceptors(self.acceptor)

    @property
    def listening_address(self) -> str | None:
        """Where visitors are accepted; also after the listener was closed."""
        return self.address

    @property
    def target_error(self) -> str | None:
        """Why the target cannot be reached, as the egress has reported; None while one of several links can serve."""
        errors = [link.session.target_error for link in self._links]
        return None if None in errors else next(iter(errors), None)

    async def wait_queue_empty(self) -> None:
        """Return as soon as no visitor waits for a data connection, or for its PROXY header. Safe to cancel."""
        while self._queue or self._awaited:
            await self._wait_for_change()

    async def wait_links_unneeded(self, grace_s: float) -> None:
        """Return when no visitor is in the queue, and the other ends have closed the links, or after ``grace_s``.

        What they have announced meanwhile still counts, as the ends of streams.
        """
        await self.wait_queue_empty()
        for link in list(self._links):
            link.send_goodbye(Goodbye.SHUTDOWN)
        await self.wait_links_closed(grace_s)

    def start_drain(self, goodbye: str) -> None:
        """Accept the visitors that are already in the backlog, then close the listener."""
        if self.acceptor is not None:
            self.acceptor.accept_backlog()
        self.stop_accepting()

    def stop_accepting(self) -> None:
        """Close the listener. Present visitors stay connected."""
        if self.acceptor is not None:
            self.acceptor.close()
            self.acceptor = None

    def apply_settings(self, spec: TunnelSpec, max_visitors: int) -> None:
        """Use limits and rules of admission for the visitors that come from now on; no present one is disconnected."""
        self.room.set_limits(visitors=max_visitors, queued=spec.settings.signal_queue_limit)
        self.relays.apply_limits(spec, End.INGRESS)
        self._check_options(spec, End.INGRESS)
        self._apply_rules(AdmissionRules.of(spec), spec.proxy_from)
        self._source.configure(spec.balance, spec.slowstart)
        self._on_room_freed()

    def attach(self, link: Link) -> None:
        """Serve visitors over this link, too, first those in the queue."""
        super().attach(link)
        link.subscribe_pool_growth(self._serve_queue)
        self.room.set_limits(visitors=max(one.session.limits.visitors for one in self._links))
        self._source.set_links(self._links)
        if self._queue:
            self._send_queue_length()

    def detach(self, link: Link) -> None:
        """Handle the loss of a link. Relays continue; visitors that are untouched or queued go to another link."""
        untouched = [] if not self._source.is_group or link.keeps_visitors else self.relays.take_untouched(link)
        super().detach(link)
        if self._links:
            self.room.set_limits(visitors=max(one.session.limits.visitors for one in self._links))
        else:
            self._linkless_since = self._loop.time()
        self._source.set_links(self._links)
        self._launch_again(untouched)

    # --- visitors -------------------------------------------------------------------------------------------------

    def _on_visitor(self, visitor: socket.SocketType, peer: object) -> None:
        if not self._queue and (found := self._source.acquire(visitor, peer)) is not None:
            self._launch(found[0], visitor, peer, found[1])
        else:
            self._enqueue(visitor, peer)

    def on_shared_lost(self, shared: SharedConnection) -> None:
        """Serve the visitors again of which nothing was forwarded."""
        if shared.link in self._links and self.acceptor is not None:
            for lane in list(shared.lanes.values()):
                self._launch_again(self.relays.take_untouched(shared.link, lane.ident))

    def move_visitor(self, link: Link, lane: Lane) -> None:
        """Let a visitor continue on a data connection of its own, if there is one."""
        self._source.move(link, lane)

    def _enqueue(self, visitor: socket.SocketType, peer: object) -> None:
        deadline = self._loop.time() + self._queue_timeout_s
        if not self._links:
            deadline = self._linkless_since + self._queue_timeout_s
            if deadline <= self._loop.time():
                self._reject(visitor, peer, "there is no link")
                return
        self._queue.append((visitor, peer, deadline))
        if self._queue_timer is None:
            self.stats.notify_activity()
            self._queue_timer = self.reactor.call_later(deadline - self._loop.time(), self._on_queue_timeout)
        self._send_queue_length()

    def _send_queue_length(self) -> None:
        """Report the visitors that wait to the ends that dial data connections, to each its part."""
        part = -(-len(self._queue) // max(1, len(self._links)))
        for link in self._links:
            link.send_queue_length(part)

    def _launch(self, link: Link, visitor: socket.SocketType, peer: object, data: DataConnection | Lane) -> None:
        address = data.visitor_address = pack_address(peer)
        if isinstance(data, Lane):
            data.open()
        else:
            proto = data.proto = sockets.PROTOS[visitor.type]
            link.send_launch(data.ident, address, proto)
        stats = self.stats
        stats.signals += 1
        stats.total += 1
        self.relays.start(visitor, data, link, near_events=None)

    def waiting_visitors(self) -> list[VisitorView]:
        """The visitors in the queue."""
        return self._queue.views()

    def kick_waiting(self, selector: VisitorSelector) -> list[VisitorView]:
        """Reset visitors in the queue."""
        kicked = []
        for visitor, peer in self._queue.take_selected(selector):
            self._count_left(pack_address(peer))
            kicked.append(seen := describe_queued(visitor, peer))
            self._log_unserved(seen, VisitorEnd.KICKED)
            sockets.reset_on_close(visitor)
            self.reactor.close(visitor)
        if kicked:
            self._send_queue_length()
            self._on_room_freed()
        return kicked

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of visitors that failed at the egress, and of streams that are complete."""
        table.add(VisitorFailed, self._close_failed)
        table.add(StreamsEnded, self._end_streams)
        self.tests.register_handlers(table)
        table.add(ConnectionsFreed, self._on_freed)
        table.add(TargetStatus, self._on_target_status)

    def on_links_changed(self) -> None:
        """Choose among the links that get visitors now, also for those in the queue."""
        self._source.set_links(self._links)
        self._serve_queue()

    def _on_target_status(self, link: Link, status: TargetStatus) -> None:
        """Give visitors to links whose target is in order, if there are several."""
        if self._source.is_group and link in self._links:
            self._source.note_target(link, status, self._event_log)
            self._serve_queue()

    def _on_freed(self, link: Link, freed: ConnectionsFreed) -> None:
        for ident in freed.idents:
            if (relay := self.relays.find(link, ident)) is not None:
                relay.note_freed()
            else:
                link.free(ident)

    def _end_streams(self, link: Link, ended: StreamsEnded) -> None:
        for ident, total in ended.ends:
            if (relay := self.relays.find(link, ident)) is not None:
                relay.set_end_offset(total)

    def _serve_queue(self) -> None:
        """Give idle data connections to the visitors that wait, the longest wait first."""
        if not self._links or not self._queue:
            return
        while self._queue and (found := self._source.acquire(*self._queue[0][:2])) is not None:
            visitor, peer, _ = self._queue.popleft()
            if self._queue.was_launched(visitor, peer):
                self.stats.total -= 1  # it was counted before
            self._launch(found[0], visitor, peer, found[1])
        self._send_queue_length()
        self._on_room_freed()

    def _launch_again(self, visitors: list[tuple[socket.SocketType, object]]) -> None:
        """Serve visitors of which nothing was forwarded over other links, each up to three times."""
        for visitor, peer in visitors:
            if self._queue.count_launch(visitor, peer):
                self.stats.count_redispatched(1)
                self._enqueue(visitor, peer)
            else:
                self._reject(visitor, peer, "no link could serve it")
        if visitors:  # not now: the status of the target may follow in the same batch of frames
            self.reactor.defer(self._serve_queue)

    def on_lane_failed(self, link: Link, lane: Lane, reason: str) -> None:
        """Disconnect a visitor in a lane, as one on a data connection."""
        relay = lane.relay
        lane.leave()
        if relay is not None:
            self._close_failed(link, VisitorFailed(relay.ident, reason))

    def _close_failed(self, link: Link, failed: VisitorFailed) -> None:
        """Disconnect a visitor at once: the egress could not reach the target for it."""
        relay, reason = self.relays.find(link, failed.ident), failed.reason
        ident = {} if relay is None else {"id": relay.id}
        self._event_log.warn_throttled(EventKind.TARGET, "failed", f"a visitor could not be served: {reason}", **ident)
        if self._source.is_group and (untouched := self.relays.take_untouched(link, failed.ident)):
            self._launch_again(untouched)
        else:  # the end of the data connection may have come first; the egress counts such a visitor as well
            self.stats.failed += 1
            if (proto_of(link.features) if relay is None else relay.proto) is Proto.UDP:
                self.udp_failures.note_failed(reason)
            if relay is not None:
                relay.fail(reason)

    def _on_room_freed(self, _relay: ForwardedVisitor | None = None) -> None:
        """Accept again: a visitor has left, or the queue is shorter."""
        acceptor = self.acceptor
        if acceptor is not None and acceptor.is_waiting_for_room:
            acceptor.resume()
        if self._observers:
            self._notify_observers()

    def _reject(self, visitor: socket.SocketType, peer: object, reason: str) -> None:
        self.stats.failed += 1
        self._count_left(pack_address(peer))
        self.reactor.close(visitor)
        self._log_unserved(describe_queued(visitor, peer), VisitorEnd.FAILED, reason)
        self._event_log.warn_throttled(EventKind.VISITOR, "rejected", f"a visitor was disconnected: {reason}")

    # --- admission ------------------------------------------------------------------------------------------------

    def _apply_rules(self, rules: AdmissionRules, balancers: NetworkSet) -> None:
        """Choose what happens to new and to leaving visitors: nothing more in a tunnel without rules."""
        if (rules, balancers) == self._rules:
            return
        self._rules = rules, balancers
        present = [relay.visitor_address for relay in self.relays.running()]
        present += (pack_address(peer) for _, peer, _ in self._queue)
        self.admission = Admission(rules, monotonic(), map(host_of, present)) if rules else None
        self._choose_callback(balancers)
        is_counting = self.admission is not None and self.admission.counts_visitors
        self.relays.set_close_callback(self._on_counted_left if is_counting else self._on_room_freed)

    def _choose_callback(self, balancers: NetworkSet) -> None:
        """Choose where new visitors go: a check that a tunnel does not need is not made."""
        serve = self._on_visitor if self.admission is None else self._admit
        if self._refusal is not None:
            serve = self._refuse_all
        if self._reader is not None:
            self._reader.update(balancers, serve)
        elif balancers:
            self._reader = ProxyHeaderReader(self.reactor, self, balancers, serve)
            self.room.set_awaited(self._reader)
        is_read = balancers and self._refusal is None
        self._on_accept = self._reader.accept if self._reader is not None and is_read else serve
        if self.acceptor is not None:
            has_room = self.room.has_room if self._reader is None else self.room.has_room_beside_awaited
            self.acceptor.set_callbacks(self._on_accept, has_room)

    def _admit(self, visitor: socket.SocketType, peer: object) -> None:
        """Serve a visitor if the rules admit it."""
        admission = self.admission
        host = pack_host(peer[0]) if isinstance(peer, tuple) else b""
        if admission is None or (refusal := admission.admit(host, monotonic())) is None:
            self._on_visitor(visitor, peer)
        else:
            self._refuse(visitor, peer, refusal, lambda: admission.describe(refusal, host))

    def _refuse_all(self, visitor: socket.SocketType, peer: object) -> None:
        """Refuse a visitor of a tunnel whose quota is used up."""
        self._refuse(visitor, peer, VisitorRefusal.QUOTA, lambda: self._refusal or "")

    def on_header_refused(self, sock: socket.SocketType, peer: object, reason: str) -> None:
        """Close a connection of a balancer without a valid PROXY header; ``reason`` is the end of a sentence."""
        self._refuse(sock, peer, VisitorRefusal.PROXY, lambda: reason)

    def on_header_gone(self) -> None:
        """React to fewer connections whose header is awaited."""
        self._on_room_freed()

    def _refuse(
        self, visitor: socket.SocketType, peer: object, refusal: VisitorRefusal, describe: Callable[[], str]
    ) -> None:
        self.stats.count_refused(refusal)
        sockets.reset_on_close(visitor)
        self.reactor.close(visitor)
        if self._visitor_log is not None:
            self._log_unserved(describe_queued(visitor, peer), VisitorEnd.REFUSED, describe())
        if not self._event_log.suppresses(topic := f"refused {refusal.value}"):
            data = {"reason": refusal.value, VISITOR: sockets.format_address(peer)}
            text = f"a visitor was refused: {describe()}"
            self._event_log.log_throttled(LogLevel.INFO, EventKind.REFUSED, topic, text, **data)

    def _on_counted_left(self, relay: ForwardedVisitor) -> None:
        self._count_left(relay.visitor_address)
        self._on_room_freed()

    def _count_left(self, address: bytes) -> None:
        if self.admission is not None:
            self.admission.leave(host_of(address))

    def _on_queue_timeout(self) -> None:
        self._queue_timer = None
        now = self._loop.time()
        missing = "no data connection" if self._links else "no link"
        while self._queue and self._queue[0][2] <= now:
            visitor, peer, _ = self._queue.popleft()
            self._reject(visitor, peer, f"there was {missing} for it in {self._queue_timeout_s:g} s")
        if self._queue:
            self._queue_timer = self.reactor.call_later(self._queue[0][2] - now, self._on_queue_timeout)
        self._send_queue_length()  # or connections are kept for visitors that are gone
        self._on_room_freed()

    def close(self) -> int:
        """Close everything; return how many visitors were disconnected."""
        self.stop_accepting()
        self.room.close()
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        queued = len(self._queue) + (0 if self._reader is None else self._reader.close())
        while self._queue:
            visitor, peer, _ = self._queue.popleft()
            self.reactor.close(visitor)
            self._log_unserved(describe_queued(visitor, peer), VisitorEnd.TUNNEL_CLOSED)
        return queued + self._close_relays()
