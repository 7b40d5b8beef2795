"""What ingress and egress have in common: their links, their relays, and the wait until no visitor is left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from tunnel.engine.relays import RelaySet
from tunnel.engine.shared_connection import SharedConnection
from tunnel.engine.udp_failures import UdpFailures
from tunnel.forwarding import create_forwarder
from tunnel.model.events import EventKind
from tunnel.model.options import describe_misplaced, misplaced_options
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord
from tunnel.model.wording import plural
from tunnel.protocol.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tunnel.engine.context import EngineContext
    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable
    from tunnel.engine.pool import DataConnection
    from tunnel.engine.stats import Stats
    from tunnel.engine.visitor_acceptor import ListenerAcceptor
    from tunnel.forwarding import Forwarder, VisitorLog
    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.forwarding.lanes import Lane
    from tunnel.model.events import EventLog
    from tunnel.model.snapshot import RateLimitsView, TargetView
    from tunnel.model.spec import End, TunnelSpec
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView
    from tunnel.runtime.reactor import Reactor


@dataclass(frozen=True, slots=True)
class EndParts:
    """What an end receives from its engine."""

    reactor: Reactor
    forwarder: Forwarder
    stats: Stats
    event_log: EventLog
    on_state_input_changed: Callable[[], None]
    """called when the tunnel may have another state because of this end"""
    on_crash: Callable[[Exception], None]
    visitor_log: VisitorLog | None = None
    """receives each visitor that has left"""


def create_end_parts(
    name: str,
    spec: TunnelSpec,
    context: EngineContext,
    stats: Stats,
    event_log: EventLog,
    on_state_input_changed: Callable[[], None],
    on_crash: Callable[[Exception], None],
    *,
    is_ingress: bool,
) -> EndParts:
    """Return what an end of the tunnel ``name`` receives."""
    log = None if context.visitor_log is None else partial(context.visitor_log, name)
    make = partial(create_forwarder, counters=stats.near_counters(is_ingress=is_ingress), is_ingress=is_ingress)
    forwarder = make(spec, context.reactor, context.pipes, visitor_log=log)
    return EndParts(context.reactor, forwarder, stats, event_log, on_state_input_changed, on_crash, log)


class EndTests(Protocol):
    """How an end tests the way of a visitor."""

    async def run(self, links: Sequence[Link]) -> list[LegResult]:
        """Time the legs that this end can time, over these links. Safe to cancel."""

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of what the other end sends for a test."""

    def on_link_lost(self, link: Link) -> None:
        """End what waits for an answer over a link that is lost."""


class TunnelEnd(ABC):
    """One end of a tunnel, where visitors are accepted or targets dialled. Independent of the role.

    It works over a set of links, of which there is one unless a server has several clients, or a client several
    servers. Relays continue when their link is lost.
    """

    def __init__(self, parts: EndParts, tests: EndTests) -> None:
        reactor, stats = parts.reactor, parts.stats
        self.stats = stats
        """counters of this tunnel's visitors; only its one end changes them"""
        self.relays = RelaySet(
            reactor,
            parts.forwarder,
            parts.event_log,
            on_first_relay=stats.notify_activity,
            on_relay_closed=self._on_room_freed,
            on_aborted=stats.count_aborted,
        )
        self.reactor = reactor
        self.tests = tests
        """what a user's test of this end does"""
        self._event_log = parts.event_log
        self._on_crash = parts.on_crash
        self._visitor_log = parts.visitor_log
        self._on_state_input_changed = parts.on_state_input_changed
        self._loop = asyncio.get_running_loop()
        self._links: dict[Link, None] = {}  # ordered by their start
        self._misplaced: str | None = None  # that an option is set which acts at the other end
        on_changed = parts.on_state_input_changed
        self.udp_failures = UdpFailures(reactor, self.relays, on_changed, is_ingress=self.is_ingress)
        """why the latest flows of UDP failed"""
        self.relays.set_unreachable_callback(self.udp_failures.note_failed)
        self._shared: set[SharedConnection] = set()
        self._observers = 0
        self._changed = asyncio.Event()
        reactor.fd_budget.reservations.add(self)

    @property
    @abstractmethod
    def is_ingress(self) -> bool:
        """Whether visitors are accepted here."""

    @property
    @abstractmethod
    def reserved(self) -> int:
        """Descriptors that present visitors will need yet."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether there are visitors that a drain waits for."""

    @property
    @abstractmethod
    def target_error(self) -> str | None:
        """Why the target cannot be reached, as far as this end knows; None while it can."""

    @property
    def remark(self) -> str | None:
        """What the user probably did not mean although it works, or what does not work for some, as a sentence."""
        return self.udp_failures.reason or self._misplaced

    @property
    def targets(self) -> tuple[TargetView, ...]:
        """The targets that this end dials, as observers see them; the same object while nothing changes."""
        return ()

    @property
    def rate_limits(self) -> RateLimitsView | None:
        """The limits of the rates at this end; None without one."""
        return self.relays.rates.view(is_ingress=self.is_ingress)

    def set_target_drained(self, address: str, *, is_drained: bool) -> bool:
        """Give one of several targets no new visitors, or new ones again; return whether this end dials it."""
        del address, is_drained
        return False

    def on_links_changed(self) -> None:
        """React to a link that was drained, or gets visitors again. An egress need not."""
        return

    @property
    def next_target_attempt(self) -> tuple[float, int] | None:
        """When this end tries an unreachable target next (loop clock), and the number of failed attempts."""
        return None

    @property
    def visitor_acceptors(self) -> dict[str, ListenerAcceptor]:
        """What accepts visitors on each listener, by its purpose; nothing at an egress."""
        return {}

    @property
    def listening_address(self) -> str | None:
        """Where visitors are accepted, if this end accepts them."""
        return None

    @property
    def queued(self) -> int:
        """Number of visitors that wait for a data connection."""
        return 0

    @abstractmethod
    def waiting_visitors(self) -> list[VisitorView]:
        """The visitors that are not forwarded yet."""

    @abstractmethod
    def kick_waiting(self, selector: VisitorSelector) -> list[VisitorView]:
        """Reset those of them that are selected; return what was disconnected."""

    async def test(self) -> list[LegResult]:
        """Time the legs of a visitor's way that this end can time. Safe to cancel."""
        return await self.tests.run(list(self._links))

    @abstractmethod
    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of the events of a link that concern this end."""

    @abstractmethod
    def apply_settings(self, spec: TunnelSpec, max_visitors: int) -> None:
        """Use the settings of a spec, and the negotiated number of visitors; no visitor is disconnected."""

    @abstractmethod
    def set_refusal(self, reason: str | None) -> None:
        """Refuse new visitors for this reason; None: serve them. At an egress this has no effect."""

    @abstractmethod
    def start_drain(self, goodbye: str) -> None:
        """Stop accepting visitors, here or (with ``goodbye`` as the reason) at the other end."""

    @abstractmethod
    async def wait_links_unneeded(self, grace_s: float) -> None:
        """Return when no visitor needs a link any more, or after ``grace_s``. Safe to cancel."""

    @abstractmethod
    def close(self) -> int:
        """Close everything; return how many visitors were disconnected."""

    def _check_options(self, spec: TunnelSpec, end: End) -> None:
        """Warn about options that act at the other end: in ``auto`` the ends are known only now."""
        texts = [describe_misplaced(option, spec.role) for option in misplaced_options(spec, end)]
        misplaced = "; ".join(texts) or None
        if misplaced != self._misplaced:
            self._misplaced = misplaced
            if misplaced is not None:
                self._event_log.log_warn(EventKind.START, misplaced)

    def attach(self, link: Link) -> None:
        """Serve visitors over this link, too."""
        self._links[link] = None
        self.relays.add_link(link)

    def detach(self, link: Link) -> None:
        """Handle the loss of a link: its relays continue without it."""
        self._links.pop(link, None)
        link.sharing.end()
        self.relays.remove_link(link)
        self.tests.on_link_lost(link)
        self._notify_observers()

    # --- shared connections ---------------------------------------------------------------------------------------

    def _add_shared(self, link: Link, data: DataConnection) -> SharedConnection:
        shared = SharedConnection(self.reactor, data, link, self)
        link.sharing.add(shared)
        self._shared.add(shared)
        return shared

    @property
    def lane_count(self) -> int:
        """Number of visitors that share a data connection."""
        return sum(map(len, self._shared))

    @property
    def promised_lanes(self) -> int:
        """Visitors that other ends may send yet, in lanes that are not open."""
        return sum(shared.promised for shared in self._shared)

    def on_lane_failed(self, link: Link, lane: Lane, reason: str) -> None:
        """Disconnect a visitor that the egress cannot serve. Only an ingress is called."""
        raise NotImplementedError

    def on_lane_reset(self, link: Link, lane: Lane) -> None:
        """Do nothing more: the visitor is disconnected. An egress stops to dial the target."""
        del link, lane

    def on_shared_lost(self, shared: SharedConnection) -> None:
        """Do nothing more for the visitors of a shared connection that is lost; an ingress serves some again."""
        del shared

    def on_shared_closed(self, shared: SharedConnection, violation: str | None, lost: int) -> None:
        """Forget a shared connection, which is closed, and with which so many visitors were lost."""
        self._shared.discard(shared)
        shared.link.sharing.remove(shared)
        if violation is not None:
            text = f"{plural(lost, 'visitor')} disconnected: the data connection that they shared carried {violation}"
            self._event_log.warn_throttled(EventKind.VISITOR, "record", text)
        elif lost:
            text = f"{plural(lost, 'visitor')} disconnected: the data connection that they shared was lost"
            self._event_log.warn_throttled(EventKind.VISITOR, "shared", text)
        self._notify_observers()

    def serve_lane(self, link: Link, lane: Lane) -> None:
        """Serve a visitor that has arrived at the other end. Raises ProtocolError where visitors are accepted."""
        del link, lane
        raise ProtocolError("a lane that may not be opened")

    @abstractmethod
    def move_visitor(self, link: Link, lane: Lane) -> None:
        """Let a visitor continue on a data connection of its own, if there is one."""

    @property
    def _has_ending_shared(self) -> bool:
        """Whether a shared connection has to be waited for: its last bytes may be under way."""
        return any(not shared.may_grow or shared.link not in self._links for shared in self._shared)

    def disconnect(self, links: Collection[Link]) -> int:
        """Disconnect the visitors of these links, also of lost ones; return how many there were."""
        count = self.relays.close_of(links)
        for shared in [one for one in self._shared if one.link in links]:
            shared.close()
        return count

    async def wait_queue_empty(self) -> None:
        """Return as soon as no visitor waits for a data connection. Safe to cancel."""
        while self.queued:
            await self._wait_for_change()

    async def wait_idle(self) -> None:
        """Return as soon as no visitor is left that a drain waits for. Safe to cancel."""
        while self.is_busy:
            await self._wait_for_change()

    async def wait_links_closed(self, grace_s: float) -> None:
        """Return when the other ends have closed the links in answer to a goodbye, or after ``grace_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._links:
                    await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._observers += 1
        try:
            await self._changed.wait()
        finally:
            self._observers -= 1

    def _log_unserved(self, seen: VisitorView, end: VisitorEnd, reason: str | None = None) -> None:
        """Log a visitor that was not forwarded."""
        if self._visitor_log is not None:
            record = VisitorRecord(
                seen.id, seen.address, seen.proto, None, seen.link, 0, 0, None, end, reason, time.time()
            )
            self._visitor_log(record)

    def _on_room_freed(self, _relay: ForwardedVisitor | None = None) -> None:
        """React to the end of a relay: there is room for another visitor."""
        if self._observers:
            self._notify_observers()

    def _notify_observers(self) -> None:
        self._changed.set()  # an event without waiters keeps nothing
        self._changed.clear()

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect outside any relay to the engine."""
        self._on_crash(error)

    def _close_relays(self) -> int:
        """Close all relays, and release what is reserved; return how many relays there were."""
        self.reactor.fd_budget.reservations.discard(self)
        self.udp_failures.close()
        count = self.relays.close_all()
        for shared in list(self._shared):
            shared.finish()
            shared.link.pool.close()
        self._notify_observers()
        return count
