"""Targets out: for every signal dial the target and relay. Knows nothing of server or client.

When the target does not answer, the entrance is told at once, and the exit tries it by itself, with growing pauses,
until it does: so the tunnel shows the truth although no visitor comes. Visitors are tried all the same.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from tunnel.engine.relays import Relays
from tunnel.runtime import backoff, sockets
from tunnel.runtime.reactor import FAILED

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tunnel.engine.link import Link
    from tunnel.engine.pool import DataConnection
    from tunnel.engine.stats import Stats
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr
    from tunnel.runtime.splice import Pipes

    Candidate = tuple[socket.AddressFamily, SockAddr]

DIAL_LIMIT: Final = 10.0
"""Seconds until a target that does not answer counts as unreachable."""


class Dial:
    """One attempt to reach the target: for a visitor, or (without link and data connection) to see whether it answers.

    Owns its sockets until it hands them over or fails.
    """

    __slots__ = ("_exit", "_sock", "_sockaddr", "_untried", "data", "deadline", "ends_after", "link")

    def __init__(self, owner: Exit, link: Link | None, data: DataConnection | None, deadline: float) -> None:
        self.link = link
        self.data = data
        self.ends_after: int | None = None
        """bytes after which the visitor has ended already, if so"""
        self.deadline = deadline
        self._exit = owner
        self._untried: Iterator[Candidate] = iter(())
        self._sock: socket.SocketType | None = None
        self._sockaddr: SockAddr | None = None

    def begin(self, candidates: list[Candidate]) -> None:
        """Try these in turn."""
        self._untried = iter(candidates)
        self._next(OSError("it has no address"))

    def _next(self, error: OSError) -> None:
        for family, sockaddr in self._untried:
            try:
                sock = sockets.begin_connect(family, sockaddr)
            except OSError as problem:
                error = problem
                continue
            self._sock, self._sockaddr = sock, sockaddr
            self._exit.reactor.register(sock, self.ready)
            return
        self._exit.dial_failed(self, error)

    def ready(self, events: int) -> None:
        """The connection attempt is over."""
        sock, sockaddr = self._sock, self._sockaddr
        if sock is None or sockaddr is None:
            return
        error = sockets.connect_error(sock) if events & FAILED else None
        self._sock = None
        if error is None:
            self._exit.dialled(self, sock, sockaddr, events)
        else:
            self._exit.reactor.close(sock)
            self._next(error)

    def release(self) -> None:
        """Close the socket that is connecting."""
        self._untried = iter(())
        if self._sock is not None:
            self._exit.reactor.close(self._sock)
            self._sock = None

    def crashed(self, error: Exception) -> None:
        """A defect: this attempt's alone."""
        self._exit.dial_failed(self, OSError(f"a defect in this program ({type(error).__name__}: {error})"))


class Exit(Relays):
    """The end that dials targets. Owns the attempts under way and the relays."""

    def __init__(
        self,
        reactor: Reactor,
        pipes: Pipes,
        stats: Stats,
        event_log: EventLog,
        target: Address,
        changed: Callable[[], None],
        *,
        on_crash: Callable[[Exception], None],
    ) -> None:
        super().__init__(reactor, pipes, stats, event_log, on_crash)
        self._loop = asyncio.get_running_loop()
        self._target = sockets.Dialled(target)
        self._changed = changed
        self._link: Link | None = None
        self._dials: dict[Dial, None] = {}  # in the order of their deadlines
        self._waiting: dict[int, Dial] = {}  # those of visitors, by the id of their data connection
        self._resolving: dict[asyncio.Task[None], Dial] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self.pause_cap = 5.0
        """longest pause between two tries of a target that does not answer, in seconds"""
        self.trouble: str | None = None
        """what is wrong with the target, as a sentence"""
        self.attempt = 0
        """failures in a row"""
        self.next_try = 0.0
        """when the target is tried again, on the loop's clock"""

    @property
    def address(self) -> str:
        """The target."""
        return str(self._target.address)

    @property
    def promised(self) -> int:
        """A target for each data connection, and for each whose target's name is being resolved.

        Of those under way a client has the descriptors already; a server judges each when it arrives.
        """
        link = self._link
        if link is None:
            return len(self._resolving)
        return len(self._resolving) + len(link.pool) + (link.dialing if link.is_client else 0)

    @property
    def busy(self) -> bool:
        """Whether there are visitors that a drain waits for."""
        return super().busy or any(dial.data is not None for dial in self._dials)

    def attach(self, link: Link) -> None:
        """Serve this link's signals."""
        self._link = link
        if self.trouble is not None:
            link.send_target_status(self.trouble)

    def detach(self) -> None:
        """The link is gone. Relays and attempts under way go on."""
        self._link = None
        self.link_lost()

    # --- visitors -------------------------------------------------------------------------------------------------

    def launch(self, idents: tuple[int, ...]) -> None:
        """Signals: visitors have come over these data connections."""
        link = self._link
        if link is None:
            return
        self.stats.signals += len(idents)
        self.stats.total += len(idents)
        deadline = self._loop.time() + DIAL_LIMIT
        for ident in idents:
            data = link.pool.claim(ident)
            if data is None:
                self.stats.failed += 1
                link.send_visitor_failed(ident, "its data connection was lost on the way")
            else:
                self._dial(Dial(self, link, data, deadline))

    def _dial(self, dial: Dial) -> None:
        self._dials[dial] = None
        if dial.data is not None:
            self._waiting[dial.data.ident] = dial
        if self._timer is None:
            self._timer = self.reactor.later(dial.deadline - self._loop.time(), self._expire)
        candidates = self._target.ready()
        if candidates is not None:
            dial.begin(candidates)
            return
        task = self._loop.create_task(self._resolve(dial))
        self._resolving[task] = dial
        task.add_done_callback(lambda done: self._resolving.pop(done, None))

    async def _resolve(self, dial: Dial) -> None:
        try:
            candidates = await self._target.refresh()
        except OSError as error:
            self.dial_failed(dial, error)
        else:
            if dial in self._dials:
                dial.begin(candidates)

    def dialled(self, dial: Dial, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """The target has answered."""
        self._done(dial)
        self._target.answered(sockaddr)
        if self.trouble is not None:
            self._recovered()
        if dial.data is None or dial.link is None:
            self.reactor.close(sock)
            return
        stats = self.stats
        relay = self.join(
            sock, dial.data, dial.link, near_events=events, inward=stats.to_visitors, outward=stats.from_visitors
        )
        if dial.ends_after is not None:
            relay.expect_end(dial.ends_after)

    def ended(self, ident: int, total: int) -> None:
        """The entrance's visitor has ended after so many bytes."""
        link = self._link
        if link is None:
            return
        relay = link.relays.get(ident)
        if relay is not None:
            relay.expect_end(total)
            return
        dial = self._waiting.get(ident)
        if dial is not None and dial.link is link:
            dial.ends_after = total

    def _done(self, dial: Dial) -> None:
        self._dials.pop(dial, None)
        if dial.data is not None and self._waiting.get(dial.data.ident) is dial:
            del self._waiting[dial.data.ident]

    def dial_failed(self, dial: Dial, error: OSError) -> None:
        """The target cannot be reached: the visitor is closed here and, through a signal, there."""
        if dial not in self._dials:
            return
        self._done(dial)
        dial.release()
        self._target.forget()
        reason = f"the target {self._target.address} cannot be reached: {sockets.describe(error)}"
        if dial.data is not None:
            self.stats.failed += 1
            self.reactor.close(dial.data.sock)
            if dial.link is not None:
                dial.link.send_visitor_failed(dial.data.ident, reason)
        self._failed(reason, probe=dial.data is None)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for dial in list(self._dials):
            if dial.deadline > now:
                self._timer = self.reactor.later(dial.deadline - self._loop.time(), self._expire)
                return
            self.dial_failed(dial, TimeoutError())

    def pooled(self) -> None:
        """Idle connections need nothing of an exit."""

    def failed(self, ident: int, reason: str) -> None:
        """Failures are an entrance's to hear; the link lets none through."""

    # --- the target's health --------------------------------------------------------------------------------------

    def _failed(self, reason: str, *, probe: bool) -> None:
        self.event_log.warn_throttled("target", reason, reason)
        first = self.trouble is None
        self.trouble = reason
        if probe or first:
            self._cancel_probe()
            self.attempt += 1
            pause = backoff.delay(self.attempt, self.pause_cap, random.uniform)
            self.next_try = self._loop.time() + pause
            self._probe = self.reactor.later(pause, self.try_now)
            self._say()

    def _recovered(self) -> None:
        self.event_log.log_info("target", f"the target {self._target.address} answers again")
        self.trouble = None
        self.attempt = 0
        self._cancel_probe()
        self._say()

    def _say(self) -> None:
        if self._link is not None:
            self._link.send_target_status(self.trouble)
        self._changed()

    def try_now(self) -> None:
        """Try a target that is in trouble without waiting any longer."""
        if self.trouble is not None:
            self._cancel_probe()
            self._dial(Dial(self, None, None, self._loop.time() + DIAL_LIMIT))

    def _cancel_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> int:
        """Close everything; how many visitors were cut off."""
        self._cancel_probe()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._resolving:
            task.cancel()
        dials, visitors = list(self._dials), 0
        self._dials.clear()
        self._waiting.clear()
        for dial in dials:
            dial.release()
            if dial.data is not None:
                visitors += 1
                self.reactor.close(dial.data.sock)
        return visitors + self.cut()
