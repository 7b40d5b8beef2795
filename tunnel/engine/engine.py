"""A running tunnel, from start to drain; ``server_engine.py`` and ``client_engine.py`` are its two roles."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from tunnel.engine.drain import drain_visitors
from tunnel.engine.egress import Egress
from tunnel.engine.ingress import Ingress
from tunnel.engine.key_ring import KeyRing
from tunnel.engine.link_events import DialStatusChanged, LinkClosed, PoolAvailable
from tunnel.engine.link_set import LinkSet
from tunnel.engine.stats import Stats
from tunnel.engine.tunnel_end import create_end_parts
from tunnel.engine.tunnel_test import NO_LINK, explain_missing_link
from tunnel.engine.visitor_list import kick_visitors, list_visitors
from tunnel.model.events import OTHER_SERVICE, SUPPRESSED, EventKind, EventLog
from tunnel.model.limits import default_limits
from tunnel.model.snapshot_builder import SnapshotBuilder, SnapshotInput
from tunnel.model.spec import LogLevel, Role
from tunnel.model.state import STATES, State, StateRecord
from tunnel.model.wording import plural
from tunnel.protocol.frames import Goodbye, ShareChanged, TargetStatus
from tunnel.protocol.session import LimitsChanged
from tunnel.runtime import listeners
from tunnel.runtime.tasks import cancel_and_wait

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from tunnel.engine.context import EngineContext
    from tunnel.engine.cooldown import Cooldown
    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable, LinkEvent
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.engine.tunnel_end import TunnelEnd
    from tunnel.engine.visitor_acceptor import ListenerAcceptor
    from tunnel.model.address import Address
    from tunnel.model.events import Event, EventSink
    from tunnel.model.snapshot import Snapshot, TrafficReading
    from tunnel.model.snapshot_builder import ServerFacts
    from tunnel.model.spec import Direction, TunnelSpec
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView


class Engine(ABC):
    """A running tunnel. Owns its listeners, its end (ingress or egress), its link and its tasks."""

    def __init__(self, name: str, spec: TunnelSpec, *, context: EngineContext, sink: EventSink) -> None:
        self.name = name
        self.spec = spec
        self._context = context
        self._sink = sink
        self._event_log = EventLog(name, self._emit, spec.log, context.reactor.call_later)
        self._last_error: Event | None = None
        self._stats = Stats(partial(context.notify_activity, name))
        self._record = StateRecord()
        self._loop = asyncio.get_running_loop()
        self._direction: Direction | None = None
        self._bound: dict[str, socket.SocketType] = {}  # listeners that nothing accepts on yet, by purpose
        self._end: TunnelEnd | None = None
        self._retry_target: Callable[[], None] | None = None  # if this end dials the target
        self._links = LinkSet()
        self._stop_requested = asyncio.Event()
        self._cut_requested = asyncio.Event()
        self._drain_timeout_s = 0.0
        self._refusal: str | None = None  # why new visitors are refused
        self._defect: Exception | None = None
        self._snapshots = SnapshotBuilder(name)

    # --- called by the owner --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until drained, closed or failed. Raises only on a defect. Safe to cancel; all is closed afterwards."""
        serving = asyncio.create_task(self._serve(), name=f"tunnel {self.name}")
        stopping = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            elif self._defect is None:
                await cancel_and_wait(serving)
                await self._drain()
            if self._defect is not None:
                raise self._defect
        finally:
            try:
                await cancel_and_wait(serving)
                await cancel_and_wait(stopping)
            finally:  # also when the task that runs this engine is cancelled a second time
                self._close_all()
                self._event_log.close()
                if self._record.state is not State.FAILED:
                    self._set_state(State.STOPPED)

    async def prepare(self, predecessor: Engine) -> None:
        """Before ``run``: bind the listeners while the predecessor, which this engine replaces, still serves.

        Listeners on the same addresses are taken over. Raises NetError, and then the predecessor is as it was.
        Otherwise it no longer accepts on them, and has to be drained.
        """
        await KeyRing(self.spec).load()  # now, because the listeners accept nothing between here and ``run``
        await self._bind_new_addresses(predecessor)
        self._bound |= await listeners.bind(self.spec, *self._inherited_listeners(predecessor))

    def _inherited_listeners(self, predecessor: Engine) -> tuple[dict[str, Address], dict[str, ListenerAcceptor]]:
        """The addresses whose listeners the predecessor hands over, and those listeners."""
        addresses = listeners.visitor_addresses(self.spec, self._direction or predecessor._direction)
        present = predecessor._end.visitor_acceptors if predecessor._end is not None else {}
        reused = {name: one for name, one in present.items() if listeners.can_take_over(one, addresses.get(name))}
        return {name: addresses[name] for name in reused}, reused

    async def _bind_new_addresses(self, predecessor: Engine) -> None:
        """Bind what the predecessor does not hand over. Raises NetError, and then nothing is bound."""
        inherited, _ = self._inherited_listeners(predecessor)
        addresses = listeners.visitor_addresses(self.spec, self._direction or predecessor._direction)
        new = {purpose: address for purpose, address in addresses.items() if purpose not in inherited}
        self._bound = await listeners.bind(self.spec, new)

    def drain(self, timeout: float | None = None) -> None:
        """Accept no new visitors and let the present ones finish within ``timeout`` seconds; then ``run`` returns.

        None: SHUTDOWN_TIMEOUT.
        """
        self._drain_timeout_s = self.spec.settings.shutdown_timeout if timeout is None else timeout
        self._stop_requested.set()

    def close(self) -> None:
        """Close everything now, also during a drain; then ``run`` returns."""
        self._drain_timeout_s = 0.0
        self._cut_requested.set()
        self._stop_requested.set()

    def retry(self) -> None:
        """End a cooldown, or the pause after failed data connections: make the next attempt now."""
        for link in self._links:
            link.retry_dials()
        if self._retry_target is not None:
            self._retry_target()

    def set_target_drained(self, address: str, *, is_drained: bool) -> None:
        """Give one of several targets no new visitors, or new ones again; nothing happens if it is gone."""
        if self._end is not None:
            self._end.set_target_drained(address, is_drained=is_drained)

    def set_link_drained(self, ident: str, *, is_drained: bool) -> None:
        """Give one of several links no new visitors, or new ones again; nothing happens if it is gone."""
        self._links.set_drained(ident, is_drained=is_drained)
        if self._end is not None:
            self._end.on_links_changed()

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Use settings and log level of a changed spec; no connection is closed."""
        self.spec = spec
        self._event_log.level = spec.log
        self._links.apply_settings(spec)
        if self._end is not None:
            self._end.apply_settings(spec, self._max_visitors)

    def set_refusal(self, reason: str | None) -> None:
        """Refuse new visitors for this reason from now on, a part of a sentence; None: serve them."""
        self._refusal = reason
        if self._end is not None:
            self._end.set_refusal(reason)

    def visitors(self) -> AsyncIterator[list[VisitorView]]:
        """Yield the present visitors in slices, so that others are served meanwhile."""
        return list_visitors(self._end)

    async def kick(self, selector: VisitorSelector) -> list[VisitorView]:
        """Disconnect the selected visitors at once; return what was disconnected."""
        return await kick_visitors(self._end, selector)

    async def test(self) -> list[LegResult]:
        """Time the legs of a visitor's way that this end can time. Safe to cancel."""
        legs = [NO_LINK] if self._end is None else await self._end.test()
        return explain_missing_link(legs, self._record, self._last_error)

    # --- what the role does ---------------------------------------------------------------------------------------

    @abstractmethod
    async def _serve(self) -> None:
        """Serve until cancelled; return after a failure that another attempt cannot mend."""

    @abstractmethod
    def _on_link_closed(self, link: Link, reason: str, level: LogLevel) -> None:
        """React to the end of the link, after the common part, with a sentence and the level of its event."""

    @property
    def _tunnel_address(self) -> str | None:
        """Where this engine accepts control channels."""
        return None

    @property
    @abstractmethod
    def _cooldown(self) -> Cooldown:
        """The wait for the next attempt, if there is one."""

    @property
    def _server_facts(self) -> tuple[ServerFacts, ...]:
        """The servers of a client that has several."""
        return ()

    @property
    @abstractmethod
    def _data_address(self) -> str | None:
        """Where data connections go."""

    def _close_listeners(self) -> None:
        """Close the listeners of a server's ports, and those that nothing accepts on."""
        listeners.close(self._bound)

    # --- attempts -------------------------------------------------------------------------------------------------

    async def _open_end(self, direction: Direction) -> None:
        """Create the ingress or egress unless it exists. Raises NetError."""
        if self._end is not None:
            return
        addresses = listeners.visitor_addresses(self.spec, direction)
        missing = {purpose: address for purpose, address in addresses.items() if purpose not in self._bound}
        self._bound |= await listeners.bind(self.spec, missing)
        spec, is_ingress = self.spec, bool(addresses)
        parts = create_end_parts(
            self.name, spec, self._context, self._stats, self._event_log, self._update_state, self.on_handler_error,
            is_ingress=is_ingress,
        )  # fmt: skip
        if is_ingress:
            self._end = ingress = Ingress(parts, spec.settings, self._context.timing.queue_timeout_s)
            ingress.open({purpose: self._bound.pop(purpose) for purpose in addresses}, spec.target)
            self._event_log.log_info(EventKind.LISTEN, f"visitors are accepted on {ingress.address}")
        else:
            egress = Egress(parts, spec)
            self._retry_target = egress.retry_target
            self._end = egress
        self._end.apply_settings(spec, self._max_visitors)
        self._end.set_refusal(self._refusal)

    # --- the link -------------------------------------------------------------------------------------------------

    def start_link(self, link: Link, filler: PoolFiller | None = None) -> None:
        """Use a link whose handshake is complete; ``filler``: at a client, the part that fills its pool."""
        if (end := self._end) is None:
            link.close("this end is closing")
            return
        self._links.add(link)
        if self._last_error is not None and OTHER_SERVICE in self._last_error.data:
            self._last_error = None
        self._update_state()
        link.start(self, end, filler)
        if not link.is_lost:  # it may have been closed before it was started
            end.attach(link)
            self._stats.count_link()
            self._event_log.log_paced(LogLevel.INFO, EventKind.LINK, "link", link.description, link=link.ident)

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of the events that concern the tunnel as a whole."""
        table.add(LimitsChanged, self.on_link_event)
        table.add(TargetStatus, self.on_link_event)

    def on_link_event(self, link: Link, event: LinkEvent) -> None:
        """Adapt limits and state to an event of a present link."""
        if link not in self._links:
            return
        match event:
            case LinkClosed(reason, is_orderly):
                self._links.remove(link)
                if self._end is not None:
                    self._end.detach(link)
                text = f"the link with {link.channel.peer} was {'closed' if is_orderly else 'lost'}: {reason}"
                self._on_link_closed(link, text, LogLevel.INFO if is_orderly else LogLevel.WARN)
            case LimitsChanged():
                if self._end is not None:
                    self._end.apply_settings(self.spec, self._max_visitors)
                self._update_state()
            case ShareChanged():
                if self._end is not None:
                    self._end.on_links_changed()
            case TargetStatus() | PoolAvailable() | DialStatusChanged():
                self._update_state()

    def on_handler_error(self, error: Exception) -> None:
        """End this engine because of a defect; ``run`` raises it."""
        if self._defect is None:
            self._defect = error
        self._cut_requested.set()
        self._stop_requested.set()

    # --- state ----------------------------------------------------------------------------------------------------

    def _update_state(self) -> None:
        """Derive the state from link, pool and target. Does nothing without a link, or while stopping."""
        links, end = self._links, self._end
        if self._stop_requested.is_set() or not links:
            return
        target_error = end.target_error if end is not None else None
        if target_error is not None:
            self._set_state(State.COOLDOWN, target_error)
        elif links.note_usable():
            self._set_state(State.UP, end.remark if end is not None else None)
        else:
            self._set_state(State.CONNECTING, links.dial_error)

    def _set_state(self, state: State, reason: str | None = None) -> None:
        before, self._record = self._record, self._record.transition_to(state, reason)
        if before.state is not state:
            text = f"{before.state} → {state}" + (f": {reason}" if reason else "")
            # Attempts in a row are noise, but every operator wants to see that a tunnel is not up any more.
            is_important = before.state is State.UP or state in {State.UP, State.DRAINING, State.STOPPED}
            level = LogLevel.INFO if is_important else LogLevel.DEBUG
            data = {"state": state.value, "reason": reason}
            if STATES[state].is_ended or state is State.DRAINING:
                self._event_log.log(level, EventKind.STATE, text, **data)
            else:
                self._event_log.log_paced(level, EventKind.STATE, "state", text, **data)

    def _fail(self, reason: str) -> None:
        self._event_log.log_error(EventKind.STATE, reason)
        self._set_state(State.FAILED, reason)

    def _emit(self, event: Event) -> None:
        is_foreign = OTHER_SERVICE in event.data and bool(self._links)  # the tunnel's own client is there
        if event.level >= LogLevel.WARN and SUPPRESSED not in event.data and not is_foreign:
            self._last_error = event
        self._sink(event)

    # --- end ------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Stop accepting, then wait until the visitors have left, the time is over, or ``close`` was called."""
        timeout_s, end = self._drain_timeout_s, self._end
        active = end.relays.active if end is not None else 0
        text = (
            f"{plural(active, 'visitor')} may finish, for {timeout_s:g} s at most" if active else "no visitor is left"
        )
        self._set_state(State.DRAINING, text)
        grace_s = min(self._context.timing.goodbye_grace_s, timeout_s)
        await drain_visitors(end, self._links, self._close_listeners, self._cut_requested, timeout_s, grace_s)

    def _close_all(self) -> None:
        self._stop_requested.set()
        with contextlib.ExitStack() as closing:  # last in, first out; a defect in one leaves no other open
            closing.callback(self._close_end)
            closing.callback(self._close_listeners)
            for link in self._links:
                closing.callback(link.close, "this end stopped", goodbye=Goodbye.SHUTDOWN)

    def _close_end(self) -> None:
        end, self._end, self._retry_target = self._end, None, None
        if cut := end.close() if end is not None else 0:
            text = f"{plural(cut, 'visitor')} {'was' if cut == 1 else 'were'} disconnected: {self._describe_cut()}"
            self._event_log.log_warn(EventKind.VISITOR, text)

    def _describe_cut(self) -> str:
        """Return why present visitors are disconnected."""
        if self._defect is not None:
            return "an internal error ended the tunnel"
        if not self._stop_requested.is_set():
            return "visitors are accepted at another address now"
        if self._cut_requested.is_set() or not self._drain_timeout_s:
            return "the tunnel was stopped at once"
        return f"the drain of {self._drain_timeout_s:g} s was over"

    # --- what observers see ---------------------------------------------------------------------------------------

    @property
    def _max_visitors(self) -> int:
        return self._links.max_visitors(self.spec.settings.semaphore_limit)

    @property
    def _link(self) -> Link | None:
        """The first of the present links."""
        return self._links.first

    def snapshot(self) -> Snapshot:
        """The tunnel at this moment: the same object as long as nothing differs."""
        return self._snapshots.build(self._snapshot_input())

    def read_traffic(self) -> TrafficReading:
        """The bytes relayed so far, and the visitors present: what costs much less to read than a snapshot."""
        return self._stats.read_traffic(self._end.relays.active if self._end is not None else 0)

    def _snapshot_input(self) -> SnapshotInput:
        """The values of a snapshot: cheap to gather and to compare, because observers read it often."""
        spec, stats, link, end = self.spec, self._stats, self._link, self._end
        remaining_s, attempt = self._next_attempt()
        return SnapshotInput(
            spec=spec,
            record=self._record,
            direction=self._direction,
            tunnel_addr=self._tunnel_address,
            target_addr=end.listening_address if end is not None else None,
            targets=end.targets if end is not None else (),
            data_addr=self._data_address,
            peer=link.channel.peer if link is not None else None,
            link=link.ident if link is not None else None,
            key_name=link.key_name if link is not None else None,
            carrier=link.carrier if link is not None else None,
            limits=link.session.limits if link is not None else default_limits(spec.settings),
            idle=self._links.idle,
            capacity=self._links.capacity,
            links=self._links.facts(end),
            servers=self._server_facts,
            dialing=None if spec.role is Role.SERVER else self._links.dialing,
            queued=end.queued if end is not None else 0,
            rtt=link.session.heartbeat.round_trip_s if link is not None else None,
            signals=stats.signals,
            active=end.relays.active if end is not None else 0,
            total=stats.total,
            failed=stats.failed,
            from_visitors=stats.from_visitors.total,
            to_visitors=stats.to_visitors.total,
            refused_handshakes=stats.refused_handshakes,
            refused_prefaces=stats.refused_prefaces,
            silent=stats.silent,
            refused_visitors=stats.current_refused(),
            counters=stats.current_counters(),
            rate_limits=end.rate_limits if end is not None else None,
            attempt=attempt,
            remaining=remaining_s,
            error=self._last_error,
        )

    def _next_attempt(self) -> tuple[float, int]:
        """Seconds until the next attempt, and its number."""
        state = self._record.state
        if state is not State.COOLDOWN:
            return 0.0, 0 if state is State.UP else self._cooldown.attempt
        due, attempt = self._cooldown.next_attempt_at, self._cooldown.attempt
        if self._link is not None and self._end is not None and self._end.next_target_attempt is not None:
            due, attempt = self._end.next_target_attempt
        return max(0.0, due - self._loop.time()), attempt
