"""The egress: for every signal it dials the target and starts a relay. Independent of the role (server or client).

If the target does not answer, the ingress is informed at once, and the egress probes the target with growing delays
until it answers. So the tunnel's state is true even while no visitor comes. Visitors' dials are made all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from tunnel.engine.tunnel_end import EndParts, TunnelEnd
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.token_bucket import TokenBucket
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frames import Launch, StreamsEnded
from tunnel.runtime import backoff, sockets
from tunnel.runtime.connect_race import ConnectRace, describe_failures
from tunnel.runtime.resolver import DialTarget

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Sequence

    from tunnel.engine.link import EventTable, Link
    from tunnel.engine.pool import DataConnection
    from tunnel.model.address import Address
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.connect_race import Failure
    from tunnel.runtime.sockets import SockAddr


DIAL_TIMEOUT_S: Final = 10.0
"""Time after which a target that does not answer counts as unreachable."""
_MISSING_PER_S: Final = 50.0
_MISSING_AT_ONCE: Final = 8192
"""Signals for connections that are gone: all that a router forgets at once. More cost this end time for nothing."""
_PUBLISH_INTERVAL_S: Final = 0.5  # between two changes of the target's status: it may fail every other visitor


class TargetDial(ConnectRace):
    """One attempt to connect to the target: for a visitor, or as a probe (without link and data connection)."""

    __slots__ = ("_egress", "data", "deadline", "end_offset", "link")

    def __init__(self, owner: Egress, link: Link | None, data: DataConnection | None, deadline: float) -> None:
        super().__init__(owner.reactor)
        self.link = link
        self.data = data
        self.end_offset: int | None = None
        """bytes after which the visitor has already ended, if it has"""
        self.deadline = deadline
        self._egress = owner

    def on_connected(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Hand the connection to the egress."""
        self._egress.on_dial_succeeded(self, sock, sockaddr, events)

    def on_all_failed(self, failures: Sequence[Failure]) -> None:
        """Report the failure to the egress."""
        self._egress.on_dial_failed(self, describe_failures(failures))

    def on_handler_error(self, error: Exception) -> None:
        """Fail this attempt alone, after a defect in it."""
        self._egress.on_dial_failed(self, f"internal error ({type(error).__name__}: {error})")


class Egress(TunnelEnd):
    """The end that dials the target. Owns the dials in progress and the relays."""

    def __init__(self, parts: EndParts, target: Address) -> None:
        super().__init__(parts)
        self._target = DialTarget(target)
        here = f"is dialled, so it means this host: write {self._target.address}, or change mode= at both ends"
        self._remark = f"the target {target} {here}" if target.is_wildcard else None
        if self._remark is not None:
            parts.event_log.log_warn(EventKind.TARGET, self._remark)
        self._dials: dict[TargetDial, None] = {}  # ordered by deadline
        self._by_data_id: dict[int, TargetDial] = {}  # dials for visitors, by the id of their data connection
        self._resolving: dict[asyncio.Task[None], TargetDial] = {}
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._max_retry_delay_s = 5.0  # between two probes of a target that does not answer
        self._target_error: str | None = None
        self._published_error: str | None = None
        self._publish_timer: asyncio.TimerHandle | None = None
        self._missing = TokenBucket(_MISSING_PER_S, _MISSING_AT_ONCE, self._loop.time())
        self._attempt = 0  # failed attempts in a row
        self._next_attempt_at = 0.0  # when the target is probed next, on the loop's clock

    @property
    def address(self) -> str:
        """The target's address, as text."""
        return str(self._target.address)

    @property
    def reserved(self) -> int:
        """Descriptors needed yet: one target socket for each idle connection, and for each dial that is being resolved.

        Data connections that are being dialled have their descriptors at a client; a server checks each on arrival.
        """
        pooled = sum(len(link.pool) + (link.session.dialing if link.is_client else 0) for link in self._links)
        return len(self._resolving) + pooled

    @property
    def is_busy(self) -> bool:
        """Whether a drain has visitors to wait for."""
        return bool(self.relays.active) or any(dial.data is not None for dial in self._dials)

    @property
    def remark(self) -> str | None:
        """That the target is a wildcard address: a visitor cannot be forwarded to every interface."""
        return self._remark

    @property
    def target_error(self) -> str | None:
        """Why the target cannot be reached, as a sentence; None while it can."""
        return self._target_error

    @property
    def next_target_attempt(self) -> tuple[float, int] | None:
        """When the target is probed next, and the number of failed attempts, while it cannot be reached."""
        return (self._next_attempt_at, self._attempt) if self._target_error is not None else None

    def apply_settings(self, spec: TunnelSpec, max_visitors: int) -> None:
        """Use the longest delay between two probes from a spec; the number of visitors concerns the ingress."""
        self._max_retry_delay_s = spec.cooldown

    def start_drain(self, goodbye: str) -> None:
        """Ask the other ends to stop sending visitors; launches on their way are still served."""
        for link in list(self._links):
            link.send_goodbye(goodbye)

    async def wait_links_unneeded(self, grace_s: float) -> None:
        """Return when the other ends have closed the links in answer to the goodbye, or after ``grace_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._links:
                    await self._wait_for_change()

    def attach(self, link: Link) -> None:
        """Serve the signals of this link, too, and report an unreachable target on it."""
        super().attach(link)
        if self._target_error is not None:
            link.session.send_target_status(self._target_error)

    # --- visitors -------------------------------------------------------------------------------------------------

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of new visitors and of streams that are complete."""
        table.add(Launch, self._launch)
        table.add(StreamsEnded, self._end_streams)

    def _end_streams(self, link: Link, ended: StreamsEnded) -> None:
        for ident, total in ended.ends:
            self._end_stream(link, ident, total)

    def _launch(self, link: Link, launch: Launch) -> None:
        launches = launch.launches
        self.stats.signals += len(launches)
        self.stats.total += len(launches)
        deadline = self._loop.time() + DIAL_TIMEOUT_S
        for ident, address in launches:
            data = link.pool.claim(ident)
            if data is None:
                if not self._missing.take_token(self._loop.time()):
                    raise ProtocolError("the other end names too many data connections that do not exist")
                self.stats.failed += 1
                link.session.send_visitor_failed(ident, "its data connection was lost")
            else:
                data.visitor_address = address
                self._start_dial(TargetDial(self, link, data, deadline))

    def _start_dial(self, dial: TargetDial) -> None:
        self._dials[dial] = None
        if dial.data is not None:
            self._by_data_id[dial.data.ident] = dial
        if self._deadline_timer is None:
            self._deadline_timer = self.reactor.call_later(dial.deadline - self._loop.time(), self._on_deadline)
        candidates = self._target.cached()
        if candidates is not None:
            dial.start(candidates)
            return
        task = self._loop.create_task(self._resolve(dial))
        self._resolving[task] = dial
        task.add_done_callback(lambda done: self._resolving.pop(done, None))

    async def _resolve(self, dial: TargetDial) -> None:
        try:
            candidates = await self._target.resolve()
        except OSError as error:
            self.on_dial_failed(dial, sockets.describe_connect_error(error))
        else:
            if dial in self._dials:
                dial.start(candidates)

    def on_dial_succeeded(self, dial: TargetDial, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Relay the visitor to the connected target; a probe only shows that the target answers."""
        self._forget_dial(dial)
        self._target.prefer(sockaddr)
        if self._target_error is not None:
            self._on_target_recovered()
        if dial.data is None or dial.link is None:
            self.reactor.close(sock)
            return
        relay = self.relays.start(sock, dial.data, dial.link, near_events=events)
        if dial.end_offset is not None:
            relay.set_end_offset(dial.end_offset)

    def _end_stream(self, link: Link, ident: int, total: int) -> None:
        """Note that the visitor of a data connection has ended after ``total`` bytes."""
        relay = self.relays.find(link, ident)
        if relay is not None:
            relay.set_end_offset(total)
            return
        dial = self._by_data_id.get(ident)
        if dial is not None and dial.link is link:
            dial.end_offset = total

    def _forget_dial(self, dial: TargetDial) -> None:
        self._dials.pop(dial, None)
        if dial.data is not None and self._by_data_id.get(dial.data.ident) is dial:
            del self._by_data_id[dial.data.ident]

    def on_dial_failed(self, dial: TargetDial, cause: str) -> None:
        """Disconnect the visitor, here and through FAILED at the ingress; start to probe the target."""
        if dial not in self._dials:
            return
        self._forget_dial(dial)
        dial.cancel()
        self._target.invalidate()
        reason = f"the target {self._target.address} cannot be reached: {cause}"
        if dial.data is not None:
            self.stats.failed += 1
            self.reactor.close(dial.data.sock)
            if dial.link is not None:
                dial.link.session.send_visitor_failed(dial.data.ident, reason)
        self._on_target_failed(reason, probe=dial.data is None)
        self._notify_observers()

    def disconnect(self, links: Collection[Link]) -> int:
        """Disconnect the visitors of these links, whose target is dialled or connected; return how many there were."""
        dials = [dial for dial in self._dials if dial.link in links]
        for dial in dials:
            self._forget_dial(dial)
            dial.cancel()
            if dial.data is not None:
                self.reactor.close(dial.data.sock)
        return len(dials) + super().disconnect(links)

    def _on_deadline(self) -> None:
        self._deadline_timer = None
        now = self._loop.time()
        for dial in list(self._dials):
            if dial.deadline > now:
                self._deadline_timer = self.reactor.call_later(dial.deadline - self._loop.time(), self._on_deadline)
                return
            self.on_dial_failed(dial, sockets.describe_connect_error(TimeoutError()))

    # --- the target's health --------------------------------------------------------------------------------------

    def _on_target_failed(self, reason: str, *, probe: bool) -> None:
        self._event_log.warn_throttled(EventKind.TARGET, reason, reason)
        first = self._target_error is None
        self._target_error = reason
        if probe or first:
            self._cancel_probe()
            self._attempt += 1
            delay = backoff.random_retry_delay(self._attempt, self._max_retry_delay_s)
            self._next_attempt_at = self._loop.time() + delay
            self._probe_timer = self.reactor.call_later(delay, self.retry_target)
            self._publish_target_state()

    def _on_target_recovered(self) -> None:
        text = f"the target {self._target.address} answers again"
        self._event_log.log_paced(LogLevel.INFO, EventKind.TARGET, "recovered", text)
        self._target_error = None
        self._attempt = 0
        self._cancel_probe()
        self._publish_target_state()

    def _publish_target_state(self) -> None:
        """Show the target's status at both ends, at most once in ``_PUBLISH_INTERVAL_S``."""
        if self._publish_timer is not None:
            return
        self._publish_timer = self.reactor.call_later(_PUBLISH_INTERVAL_S, self._publish_change)
        self._published_error = self._target_error
        for link in self._links:
            link.session.send_target_status(self._target_error)
        self._on_state_input_changed()

    def _publish_change(self) -> None:
        self._publish_timer = None
        if self._target_error != self._published_error:
            self._publish_target_state()

    def retry_target(self) -> None:
        """Probe an unreachable target now, without waiting for its delay."""
        if self._target_error is not None:
            self._cancel_probe()
            self._start_dial(TargetDial(self, None, None, self._loop.time() + DIAL_TIMEOUT_S))

    def _cancel_probe(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> int:
        """Close everything; return how many visitors were disconnected."""
        self._cancel_probe()
        for timer in (self._deadline_timer, self._publish_timer):
            if timer is not None:
                timer.cancel()
        for task in self._resolving:
            task.cancel()
        dials, visitors = list(self._dials), 0
        self._dials.clear()
        self._by_data_id.clear()
        for dial in dials:
            dial.cancel()
            if dial.data is not None:
                visitors += 1
                self.reactor.close(dial.data.sock)
        return visitors + self._close_relays()
