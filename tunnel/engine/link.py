"""The life of one control channel after its handshake: signals in batches, pings with a deadline, the pool.

A link knows which end it serves (``Ingress`` or ``Egress``) and which role made it only through two small interfaces;
it has the frames, they have the meaning.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.capacity import surplus
from tunnel.engine.pool import Pool
from tunnel.model.limits import ConfiguredLimits, Limits, negotiate_limits
from tunnel.protocol import frames
from tunnel.protocol.frames import Kind, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.engine.channel import ControlChannel
    from tunnel.model.spec import Direction
    from tunnel.protocol.frames import Frame
    from tunnel.runtime.reactor import Reactor

_SILENT_INTERVALS: Final = 3  # without a word from the other end: the link is dead, whatever the kernel says
_BEATS: Final = 20  # moments in an interval: links ping together, which is cheap, but not hundreds of them
_SAME: Final = 0.1  # of a round trip: what differs by less is no news, and costs those who look on
_BRIEF: Final = 2e-3  # seconds: of a shorter one, differences count as if it were as long as that
_ROUND_TRIPS: Final = 5  # of the last ones the middle counts: one that met a busy moment says nothing of the way


def until_ping(now: float, interval: float, share: float = 1.0) -> float:
    """Seconds until the next ping: this share of the interval, but at one of the moments that all links keep to."""
    beat = interval / _BEATS
    return round((now + share * interval) / beat) * beat - now


def settled(told: float | None, last: Sequence[float]) -> float:
    """The round trip to tell: the median of the last ones, or what was told before where that is nearly the same."""
    middle = sorted(last)[(len(last) - 1) // 2]
    return told if told is not None and abs(middle - told) <= _SAME * max(told, _BRIEF) else middle


class LinkEnd(Protocol):
    """Entrance or exit, as its link sees it."""

    def launch(self, idents: tuple[int, ...]) -> None:
        """Signals: these data connections have visitors. Only an exit gets them."""

    def failed(self, ident: int, reason: str) -> None:
        """The exit could not serve the visitor of this data connection. Only an entrance gets it."""

    def ended(self, ident: int, total: int) -> None:
        """This data connection brings so many bytes in all. Only a server's end gets it."""

    def pooled(self) -> None:
        """There are more idle connections than before."""


class LinkMaker(Protocol):
    """Server or client, as its link sees it."""

    dials: bool
    """whether it is the one that dials data connections"""

    def pooled(self, idents: tuple[int, ...]) -> None:
        """The server has these in its pool. Only a client gets it."""

    def queued(self, count: int) -> None:
        """So many visitors wait at the entrance. Only a client gets it."""

    def taken(self, count: int) -> None:
        """Visitors took so many idle connections, or they were given up: more may be needed."""


class LinkWatcher(Protocol):
    """The engine, as its link sees it."""

    def link_changed(self, link: Link) -> None:
        """The pool got its first connection, the target's state changed, or limits were agreed anew."""

    def link_lost(self, link: Link, reason: str) -> None:
        """The link is over; its idle connections are closed, its relays go on."""

    def on_handler_error(self, error: Exception) -> None:
        """A defect."""


class Link:
    """One end of a link. Owns its channel and its pool."""

    def __init__(
        self,
        *,
        ident: str,
        secret: bytes,
        direction: Direction,
        channel: ControlChannel,
        reactor: Reactor,
        is_ingress: bool,
        data_tls: bool,
    ) -> None:
        self.ident = ident
        self.secret = secret
        self.direction = direction
        self.channel = channel
        self.data_tls = data_tls
        self.data_addr: str | None = None
        """where data connections go, as far as this end knows"""
        self.is_ingress = is_ingress
        self.pool = Pool(
            reactor, is_ingress=is_ingress, on_connection_lost=self._dropped, on_crash=self.on_handler_error
        )
        self.rtt: float | None = None
        """round-trip time of the control channel in seconds, the median of the last ones"""
        self.capacity = 0
        """idle connections wanted just now"""
        self.dialing = 0
        self.target_error: str | None = None
        """what is wrong with the target, as the exit says"""
        self.limits: Limits
        self._ours = ConfiguredLimits()
        self._theirs = ConfiguredLimits()
        self._defaults: Limits
        self._reactor = reactor
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._interval = 0.0
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._timer: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[None] | None = None
        self._launches: list[int] = []
        self._ends: list[tuple[int, int]] = []
        self._pooled: list[int] = []
        self._retired: list[int] = []
        self._queued: int | None = None
        self._flush_due = False
        self._end: LinkEnd
        self._maker: LinkMaker
        self._watcher: LinkWatcher

    def negotiate_limits(self, ours: ConfiguredLimits, theirs: ConfiguredLimits, defaults: Limits) -> None:
        """Set the limits from what both ends were told."""
        self._ours, self._theirs, self._defaults = ours, theirs, defaults
        self.limits = negotiate_limits(ours, theirs, defaults)

    def change_bounds(self, ours: ConfiguredLimits, defaults: Limits) -> None:
        """This end was told otherwise: agree anew, no connection is touched."""
        self.negotiate_limits(ours, self._theirs, defaults)
        self.channel.send(frames.encode_bounds((ours.pool_min, ours.pool_max, ours.visitors)))
        self._maker.taken(0)

    def begin(self, end: LinkEnd, maker: LinkMaker, watcher: LinkWatcher, interval: float) -> None:
        """Go to work: frames are heard from now on, pings leave every ``interval`` seconds."""
        self._end, self._maker, self._watcher = end, maker, watcher
        self._interval = interval
        self._heard_at = self._loop.time()
        self._ping(random.random())  # noqa: S311  links that began together shall not all ping together
        self.channel.set_receiver(self)

    def set_interval(self, seconds: float) -> None:
        """Ping at another pace from now on."""
        self._interval = seconds
        if self._timer is not None:
            self._ping(random.random())  # noqa: S311  as above

    # --- what this end says ---------------------------------------------------------------------------------------

    def send_launch(self, ident: int) -> None:
        """Ask the exit to launch this data connection. All signals of a turn leave in one write."""
        self._launches.append(ident)
        self._flush_soon()
        self._maker.taken(1)

    def send_pooled(self, ident: int) -> None:
        """Tell the client that the server has it in its pool."""
        self._pooled.append(ident)
        self._flush_soon()

    def send_queue_length(self, count: int) -> None:
        """Tell the client how many visitors wait."""
        if self._maker.dials:
            self._maker.queued(count)
        else:
            self._queued = count
            self._flush_soon()

    def send_capacity(self, wanted: int, dialing: int) -> None:
        """Tell the server how many idle connections are wanted, and how many are on their way."""
        if (wanted, dialing) != (self.capacity, self.dialing):
            changed = wanted != self.capacity
            self.capacity, self.dialing = wanted, dialing
            if changed:
                self.channel.send(frames.encode_capacity(wanted, dialing))

    @property
    def is_client(self) -> bool:
        """Whether this is the client's end."""
        return self._maker.dials

    def send_stream_ended(self, ident: int, total: int) -> bool:
        """Tell the server that a data connection brings so many bytes in all; whether that was done.

        Not done by a server, which shows the end on the connection, nor when the link is over.
        """
        if not self._maker.dials or self.channel.closed_reason is not None:
            return False
        self._ends.append((ident, total))
        self._flush_soon()
        return True

    def send_visitor_failed(self, ident: int, reason: str) -> None:
        """Tell the entrance that a visitor cannot be served."""
        self.channel.send(frames.encode_failed(ident, reason))

    def send_target_status(self, trouble: str | None) -> None:
        """Tell the entrance how the target is."""
        self.target_error = trouble
        self.channel.send(frames.encode_target(trouble))

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._reactor.defer(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        send = self.channel.send
        if self._pooled:  # before the signals, which may name them
            send(frames.encode_ids(Kind.POOLED, self._pooled))
            self._pooled.clear()
        if self._launches:
            send(frames.encode_ids(Kind.LAUNCH, self._launches))
            self._launches.clear()
        if self._ends:
            send(frames.encode_ended(self._ends))
            self._ends.clear()
        if self._retired:
            send(frames.encode_ids(Kind.RETIRED, self._retired))
            self._retired.clear()
        if self._queued is not None:
            send(frames.encode_queued(self._queued))
            self._queued = None

    # --- what the other end says ----------------------------------------------------------------------------------

    def on_frames(self, received: list[Frame]) -> None:
        """Frames from the channel."""
        self._heard_at = self._loop.time()
        for kind, payload in received:
            if kind is Kind.LAUNCH and not self.is_ingress:
                idents = frames.decode_ids(payload)
                self._end.launch(idents)
                self._maker.taken(len(idents))
            elif kind is Kind.POOLED:
                self._maker.pooled(frames.decode_ids(payload))
            elif kind is Kind.ENDED and not self._maker.dials:
                for ident, total in frames.decode_ended(payload):
                    self._end.ended(ident, total)
            elif kind is Kind.FAILED and self.is_ingress:
                self._end.failed(*frames.decode_failed(payload))
            elif kind is Kind.QUEUED:
                self._maker.queued(frames.decode_queued(payload))
            else:
                self._heard_seldom(kind, payload)

    def _heard_seldom(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.PING:
            self.channel.send(frames.encode_stamp(Kind.PONG, frames.decode_stamp(payload)))
        elif kind is Kind.PONG:
            self._answered(frames.decode_stamp(payload))
        elif kind is Kind.RETIRED and not self.is_ingress:
            idents = frames.decode_ids(payload)
            for ident in idents:
                self.pool.discard(ident)
            self._maker.taken(0)
        elif kind is Kind.CAPACITY:
            self.capacity, self.dialing = frames.decode_capacity(payload)
        elif kind is Kind.TARGET and self.is_ingress:
            self.target_error = frames.decode_target(payload)
            self._watcher.link_changed(self)
        elif kind is Kind.BOUNDS:
            self.negotiate_limits(self._ours, ConfiguredLimits(*frames.decode_bounds(payload)), self._defaults)
            self._maker.taken(0)
            self._watcher.link_changed(self)
        elif kind is Kind.BYE:
            self._flush()  # signals that were given to nobody yet are still honoured
            self.channel.close(f"the other end says: {frames.decode_text(payload)}")
        else:
            raise ProtocolError(f"a {kind.name} frame where none belongs")

    def note_trouble(self) -> None:
        """Dialling data connections fails, or works again."""
        self._watcher.link_changed(self)

    def note_pooled(self, before: int) -> None:
        """The pool has grown from ``before`` connections: whoever waits for one may go on."""
        self._end.pooled()
        if not before:
            self._watcher.link_changed(self)

    def _dropped(self, ident: int) -> None:
        if self.is_ingress:
            self._retired.append(ident)
            self._flush_soon()
        self._maker.taken(0)

    # --- health ---------------------------------------------------------------------------------------------------

    def _ping(self, share: float = 1.0) -> None:
        """Once now, then again after this share of the interval, at a beat that other links have too."""
        if self.channel.closed_reason is not None:
            return
        if self._timer is not None:
            self._timer.cancel()  # one pace at a time, also when it is changed between two pings
        silence = self._loop.time() - self._heard_at
        if silence >= _SILENT_INTERVALS * self._interval:
            self.channel.close(f"the other end has been silent for {silence:.1f} s")
            return
        self.channel.send(frames.encode_stamp(Kind.PING, time.monotonic_ns()))
        pause = until_ping(self._loop.time(), self._interval, share)
        self._timer = self._reactor.call_later(pause, self._tick)

    def _tick(self) -> None:
        self.pool.run_maintenance()
        if self.is_ingress:
            wanted = max(self.capacity, self.limits.pool_min)
            self._retired += self.pool.close_surplus(surplus(wanted=wanted, idle=len(self.pool)))
            if self._retired:
                self._flush_soon()
        self._maker.taken(0)
        # A process that was stopped or starved finds the answers of the meantime unread: look before judging.
        self._reactor.defer(self._ping)

    def _answered(self, stamp: int) -> None:
        self._round_trips.append(max(0, time.monotonic_ns() - stamp) / 1e9)
        self.rtt = settled(self.rtt, self._round_trips)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    async def answers(self, within: float) -> bool:
        """Whether the other end answers a ping sent now within so many seconds."""
        if self.channel.closed_reason is not None:
            return False
        if self._answer is None or self._answer.done():
            self._answer = self._loop.create_future()
        self.channel.send(frames.encode_stamp(Kind.PING, time.monotonic_ns()))
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(self._answer)
        except TimeoutError:
            await self._look()
        return self._answer.done() and self.channel.closed_reason is None

    async def _look(self) -> None:
        """Let everything be heard that is here already: a process that was stopped finds the answers unread."""
        looked = asyncio.Event()
        self._reactor.defer(looked.set)
        await looked.wait()

    # --- the end --------------------------------------------------------------------------------------------------

    def send_goodbye(self, text: str) -> None:
        """Ask the other end to end the link, for this one is going away; signals under way still arrive."""
        self._flush()
        self.channel.send(frames.encode_text(Kind.BYE, text))

    def close(self, reason: str, *, farewell: str | None = None) -> None:
        """End the link; ``farewell`` tells the other end why."""
        try:
            if farewell is not None:
                self.send_goodbye(farewell)
        finally:
            self.channel.close(reason)

    def on_closed(self, reason: str) -> None:
        """The channel is over, and so is the link."""
        if self._timer is not None:
            self._timer.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)  # whoever waits for it learns that there will be none
        self.pool.close()
        self._watcher.link_lost(self, reason)

    def on_handler_error(self, error: Exception) -> None:
        """A defect while frames were handled."""
        self._watcher.on_handler_error(error)
