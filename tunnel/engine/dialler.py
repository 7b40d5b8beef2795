"""Dials of targets in progress: for visitors, and probes. What is dialled, and what follows, is decided by a subclass.

An egress has one dialler: ``single_target.py`` for one target, ``target_group.py`` for several.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tunnel.engine.visitor_list import format_packed
from tunnel.model.visitors import DIALING, VisitorView, visitor_id
from tunnel.runtime import sockets
from tunnel.runtime.connect_race import ConnectRace, describe_failures
from tunnel.runtime.datagram_sockets import DatagramConnect

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Sequence

    from tunnel.engine.link import Link
    from tunnel.engine.relays import RelaySet
    from tunnel.forwarding.base import UsedConnection
    from tunnel.model.events import EventLog
    from tunnel.model.snapshot import TargetView
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.visitors import VisitorSelector
    from tunnel.runtime.connect_race import Failure
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.resolver import DialTarget
    from tunnel.runtime.sockets import SockAddr


class DialOwner(Protocol):
    """The egress, as its dialler sees it."""

    reactor: Reactor
    relays: RelaySet

    def on_visitor_unserved(self, link: Link, data: UsedConnection, reason: str) -> None:
        """Disconnect a visitor that no target serves; ``reason`` is a sentence."""

    def on_target_error_changed(self) -> None:
        """Publish that the tunnel's visitors can, or cannot, be served; also for another reason than before."""

    def on_targets_changed(self) -> None:
        """Show that a target of several has changed; publish it if that concerns the tunnel's visitors."""

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect outside any dial."""


class TargetDial(ConnectRace):
    """One attempt to connect to a target: for a visitor, or as a probe (without link and data connection)."""

    __slots__ = ("_dialler", "data", "deadline", "end_offset", "link")

    def __init__(self, dialler: Dialler[Any], link: Link | None, data: UsedConnection | None, deadline: float) -> None:
        super().__init__(dialler.reactor)
        self.link = link
        self.data = data
        self.end_offset: int | None = None
        """bytes after which the visitor has already ended, if it has"""
        self.deadline = deadline
        self._dialler = dialler

    def on_connected(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Hand the connection to the dialler."""
        self._dialler.on_dial_succeeded(self, sock, sockaddr, events)

    def on_all_failed(self, failures: Sequence[Failure]) -> None:
        """Report the failure to the dialler."""
        self._dialler.on_dial_failed(self, describe_failures(failures))

    def describe(self) -> VisitorView:
        """The visitor that it is for, as users see the visitor."""
        link, data = self.link, self.data
        if link is None or data is None:
            return VisitorView(None, None, None, 0, 0, None, None, DIALING, self.proto)
        return describe_dialing(link, data)

    def on_handler_error(self, error: Exception) -> None:
        """Fail this attempt alone, after a defect in it."""
        self._dialler.on_dial_failed(self, f"internal error ({type(error).__name__}: {error})")


class DatagramDial(DatagramConnect, TargetDial):
    """One attempt to connect a UDP socket to a target: that fails without a route alone."""

    __slots__ = ()


DialT = TypeVar("DialT", bound=TargetDial)


def describe_dialing(link: Link, data: UsedConnection) -> VisitorView:
    """The visitor of a data connection whose target is not connected, as users see the visitor."""
    ident = visitor_id(link.ident, data.ident, data.use)
    return VisitorView(ident, format_packed(data.visitor_address), None, 0, 0, None, link.ident, DIALING, data.proto)


class Dialler(ABC, Generic[DialT]):
    """Owns the dials in progress, and the data connections of their visitors until these are served or fail."""

    def __init__(self, owner: DialOwner, event_log: EventLog) -> None:
        self.reactor = owner.reactor
        self._owner = owner
        self._relays = owner.relays
        self._event_log = event_log
        self._loop = asyncio.get_running_loop()
        self._dials: dict[DialT, None] = {}  # ordered by deadline
        self._by_data: dict[tuple[Link, int], DialT] = {}  # dials for visitors, by link and id of the data connection
        self._resolving: dict[asyncio.Task[None], DialT] = {}
        self._deadline_timer: asyncio.TimerHandle | None = None

    # --- what a subclass decides ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def error(self) -> str | None:
        """Why visitors cannot be served, as a sentence; None while they can."""

    @property
    @abstractmethod
    def next_attempt(self) -> tuple[float, int] | None:
        """When an unreachable target is tried next (loop clock), and the failed attempts; None while there is none."""

    @property
    @abstractmethod
    def remark(self) -> str | None:
        """What the user probably did not mean although it works, as a sentence."""

    @property
    @abstractmethod
    def targets(self) -> tuple[TargetView, ...]:
        """The targets as observers see them; the same object while nothing changes."""

    @abstractmethod
    def dial(self, link: Link, data: UsedConnection, now: float) -> None:
        """Serve the visitor of a data connection, which the dialler owns now; ``now`` is on the loop's clock."""

    @abstractmethod
    def retry(self) -> None:
        """Try unreachable targets now, without waiting for their delay."""

    @abstractmethod
    def apply_settings(self, spec: TunnelSpec) -> None:
        """Use the settings of a spec; dials in progress continue."""

    @abstractmethod
    def on_dial_succeeded(self, dial: DialT, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Use, or close, the connected socket; ``events`` are those seen so far."""

    @abstractmethod
    def on_dial_failed(self, dial: DialT, cause: str) -> None:
        """Handle a failed dial; ``cause`` is the end of a sentence. Does nothing for a dial that has ended already."""

    # --- dials in progress ----------------------------------------------------------------------------------------

    @property
    def resolving(self) -> int:
        """Number of dials that wait for the addresses of a name: they have no socket yet."""
        return len(self._resolving)

    @property
    def has_visitors(self) -> bool:
        """Whether a visitor waits for its target."""
        return any(dial.data is not None for dial in self._dials)

    def visitors(self) -> list[VisitorView]:
        """The visitors that wait for their target."""
        return [dial.describe() for dial in self._dials if dial.data is not None]

    def kick(self, selector: VisitorSelector) -> list[VisitorView]:
        """Reset the selected visitors that wait for their target; return what was disconnected."""
        kicked: list[VisitorView] = []
        for dial in list(self._dials):
            if (data := dial.data) is not None and selector.selects((seen := dial.describe()).id, data.visitor_address):
                kicked.append(seen)
                data.reset()
                self._drop([dial])
        return kicked

    def find(self, link: Link, ident: int) -> DialT | None:
        """Return the dial for the visitor of a data connection."""
        return self._by_data.get((link, ident))

    def drop(self, link: Link, ident: int) -> None:
        """Stop the dial for the visitor of a data connection or lane: the visitor has left."""
        if (dial := self.find(link, ident)) is not None:
            self._drop([dial])

    def _start(self, dial: DialT, target: DialTarget) -> None:
        """Start a dial, whose deadline is not before those of the dials in progress."""
        self._dials[dial] = None
        if self._deadline_timer is None:
            self._deadline_timer = self._schedule_deadline(dial.deadline)
        candidates = target.cached()
        if candidates is not None:
            dial.start(candidates)
            return
        task = self._loop.create_task(self._resolve(dial, target))
        self._resolving[task] = dial
        task.add_done_callback(lambda done: self._resolving.pop(done, None))

    def _schedule_deadline(self, due: float) -> asyncio.TimerHandle:
        """Call ``_on_deadline`` when the first dial in progress is due."""
        return self.reactor.call_later(due - self._loop.time(), self._on_deadline)

    async def _resolve(self, dial: DialT, target: DialTarget) -> None:
        try:
            candidates = await target.resolve()
        except OSError as error:
            self.on_dial_failed(dial, sockets.describe_connect_error(error))
        else:
            if dial in self._dials:
                dial.start(candidates)

    def _forget(self, dial: DialT) -> None:
        self._dials.pop(dial, None)
        if dial.data is not None and dial.link is not None:
            self._by_data.pop((dial.link, dial.data.ident), None)

    def _on_deadline(self) -> None:
        self._deadline_timer = None
        now = self._loop.time()
        for dial in list(self._dials):
            if dial.deadline > now:
                self._deadline_timer = self._schedule_deadline(dial.deadline)
                return
            self.on_dial_failed(dial, sockets.describe_connect_error(TimeoutError()))

    def _bound_deadlines(self, timeout_s: float) -> None:
        """Let no dial in progress last longer than ``timeout_s`` from now; deadlines stay in the order of starts."""
        latest = self._loop.time() + timeout_s
        for dial in self._dials:
            dial.deadline = min(dial.deadline, latest)
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._on_deadline()

    def disconnect(self, links: Collection[Link]) -> int:
        """Disconnect the visitors of these links, whose targets are dialled; return how many there were."""
        return self._drop([dial for dial in self._dials if dial.link in links])

    def release_visitors(self) -> list[DialT]:
        """Stop all dials; return those for visitors, whose data connections the caller owns from now on."""
        dials = list(self._dials)
        for dial in dials:
            self._forget(dial)
            dial.cancel()
        return [dial for dial in dials if dial.data is not None]

    def close(self) -> int:
        """Stop everything; return how many visitors were disconnected."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        for task in self._resolving:
            task.cancel()
        return self._drop(list(self._dials))

    def _drop(self, dials: Collection[DialT]) -> int:
        visitors = 0
        for dial in dials:
            self._forget(dial)
            dial.cancel()
            if dial.data is not None:
                visitors += 1
                dial.data.close()
        return visitors

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect outside any dial to the engine."""
        self._owner.on_handler_error(error)
