"""Keeps a client's pool filled: dials a data connection for each that a visitor uses, at once if few are left."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.engine.capacity import Demand, dials_to_start, wanted_idle
from tunnel.engine.data_dial import DataDial
from tunnel.engine.pool import DataConnection
from tunnel.model.events import EventKind
from tunnel.model.token_bucket import TokenBucket
from tunnel.protocol.frames import ConnectionsPooled, ConnectionsRetired, Launch, QueueLength, UdpLaunch
from tunnel.protocol.preface import encode_preface
from tunnel.protocol.session import LimitsChanged
from tunnel.runtime import backoff, sockets
from tunnel.runtime.reactor import HANGUP

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable
    from tunnel.model.events import EventLog
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

_MAX_DIALS: Final = 128  # at the same time: fewer than a server grants to pending connections from one address
_MAX_DIALS_PER_TURN: Final = 16  # then visitors have their turn
_PAUSE_S: Final = 0.005  # a visitor that few others follow is served before its connection is replaced
_AMPLE_SHARE: Final = 0.75  # of the wanted idle connections: below it they are replaced at once
_PORT_TIMEOUT_S: Final = 0.25  # for the announced port to answer, or four round trips if they take longer
_SWEEP_INTERVAL_S: Final = 0.1
_MAX_RETRY_DELAY_S: Final = 5.0  # while either end lacks descriptors or ports
_LONG_PAUSE_S: Final = 2.0  # which the reason names
_UNUSED_PER_S: Final = 50.0
_UNUSED_AT_ONCE: Final = 2048
"""Idle connections that may be closed unused without a pause: a router that forgets everything closes a whole pool."""
_FAILURES_BEFORE_SWITCH: Final = 3  # on a port that has worked for this link
_SLOW_DIAL_S: Final = 3.5  # on a port that has worked: SYN was repeated twice; or four round trips if they take longer


@dataclass(frozen=True, slots=True)
class ServerEndpoint:
    """What a client knows of its server when the handshake is complete."""

    sockaddr: SockAddr
    """address of the control channel, with the tunnel port"""
    data_port: int | None
    """announced port for data connections"""
    round_trip_s: float
    """duration of the TCP handshake: the only estimate before the first ping"""


class PoolFiller:
    """Fills the pool of one link at the client. Owns the dials in progress."""

    def __init__(self, link: Link, reactor: Reactor, event_log: EventLog, server: ServerEndpoint) -> None:
        self.link = link
        self.dial_error: str | None = None
        """why the latest dials failed; None since a dial succeeded"""
        self._reactor = reactor
        self._event_log = event_log
        self._loop = asyncio.get_running_loop()
        self._server = server.sockaddr
        self._family = sockets.family_of(server.sockaddr)
        tunnel_port, data_port = server.sockaddr[1], server.data_port
        self._ports = [tunnel_port] if data_port in {None, tunnel_port} else [data_port or tunnel_port, tunnel_port]
        self._port_confirmed = len(self._ports) == 1
        self._port_timeout_s = max(_PORT_TIMEOUT_S, 4 * server.round_trip_s)
        self._slow_dial_s = max(_SLOW_DIAL_S, 4 * server.round_trip_s)
        self._port_deadline = 0.0
        self._demand = Demand(since=self._loop.time())
        self._queue_length = 0
        self._used = 0
        self._ample = 0.0  # with so many idle connections, replacing one can wait
        self._unused = 0  # connections of the pool that were closed unused, as of the last check
        self._unused_bucket = TokenBucket(_UNUSED_PER_S, _UNUSED_AT_ONCE, self._loop.time())
        self._next_ident = 1
        self._dialing: dict[int, DataDial] = {}
        self._failures = 0  # they keep counting until none has occurred for STABLE_AFTER_S
        self._failed_at = 0.0
        self._latest_pause_s = 0.0
        self._port_failures = 0  # in a row
        self._dial_window = _MAX_DIALS  # dials at the same time: one after a failure, then twice as many each time
        self._retry_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._pause_timer: asyncio.TimerHandle | None = None
        self._refill_due = False
        self._closed = False
        self._update_dial_address()

    def start(self) -> None:
        """Start the first dials."""
        self._port_deadline = self._loop.time() + self._port_timeout_s
        self._refill()

    def retry(self) -> None:
        """End the pause after failed dials: dial now."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry()

    def close(self) -> None:
        """Close the dials in progress: the link is closed."""
        self._closed = True
        for timer in (self._retry_timer, self._sweep_timer, self._pause_timer):
            if timer is not None:
                timer.cancel()
        for dial in self._dialing.values():
            self._reactor.close(dial.sock)
        self._dialing.clear()

    # --- demand ---------------------------------------------------------------------------------------------------

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of the events that change the demand for connections or their number."""
        table.add(Launch, self._on_launch)
        table.add(UdpLaunch, self._on_launch)
        table.add(ConnectionsPooled, lambda _link, pooled: self.confirm(pooled.idents))
        table.add(QueueLength, lambda _link, queue: self.set_queue_length(queue.count))
        table.add(ConnectionsRetired, lambda _link, _retired: self.refill_later())
        table.add(LimitsChanged, lambda _link, _limits: self.refill_later())

    def _on_launch(self, _link: Link, launch: Launch) -> None:
        self.note_used(len(launch.launches))

    def note_used(self, count: int) -> None:
        """Visitors have used ``count`` idle connections: replace them, after a pause if there are ample others.

        A dial takes a fifth of the time in which a visitor is served, at both ends together.
        """
        self._used += count
        if self._refill_due:
            return
        if self._queue_length or len(self.link.pool.idle) < self._ample:
            self.refill_later()
            return
        self._count_used(self._loop.time())
        if self._pause_timer is None and not self._closed:
            self._pause_timer = self._reactor.call_later(_PAUSE_S, self._end_pause)

    def _end_pause(self) -> None:
        self._pause_timer = None
        self.refill_later()

    def _count_used(self, now: float) -> None:
        self._demand = self._demand.visitors(self._used, now)
        self._used = 0

    def refill_later(self) -> None:
        """Start as many dials as needed at the end of the turn."""
        if not self._refill_due and not self._closed:
            self._refill_due = True
            self._reactor.defer(self._refill)

    def set_queue_length(self, count: int) -> None:
        """Dial for the ``count`` visitors that wait at the ingress."""
        self._queue_length = count
        self.refill_later()

    def confirm(self, idents: Iterable[int]) -> None:
        """Move dials into the pool that the server has confirmed, or uses: then it has them, too."""
        pool = self.link.pool
        before = len(pool)
        latest: DataDial | None = None
        for ident in idents:
            dial = self._dialing.pop(ident, None)
            if dial is None:
                continue  # closed in the meantime: the server will see its end
            if not dial.is_introduced:  # no confirmation of ours
                self._reactor.close(dial.sock)
                continue
            connection = DataConnection(ident, dial.sock, self.link.flow_source, pool, dial.events)
            pool.add(connection, is_registered=True)
            if dial.events & HANGUP:
                pool.on_idle_event(connection)
            latest = dial
        if latest is None:
            return
        self._demand = self._demand.dialed(self._loop.time() - latest.started_at)
        self._confirm_port(latest.port)
        self.link.note_pool_grown(before)
        self._port_failures = 0
        self._widen()
        if self.dial_error is not None:
            self.dial_error = None
            self.link.note_dial_status()

    def _widen(self) -> None:
        """Dial more at once after a success: a firewall may have refused a burst."""
        if self._dial_window < _MAX_DIALS:
            self._dial_window = min(_MAX_DIALS, 2 * self._dial_window)
            self.refill_later()

    # --- dialling -------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        self._refill_due = False
        if self._closed:
            return
        now = self._loop.time()
        self._count_used(now)
        if self.link.pool.unused != self._unused:
            self._limit_unused(now)
        wanted = wanted_idle(self._demand, self.link.session.limits)
        self._ample = _AMPLE_SHARE * wanted
        if self._retry_timer is None:
            count = dials_to_start(
                wanted=wanted,
                idle=len(self.link.pool.idle),
                dialing=len(self._dialing),
                queued=self._queue_length,
                max_dials=self._dial_window,
                pool_max=self.link.session.limits.pool_max,
            )
            for _ in range(min(count, _MAX_DIALS_PER_TURN)):
                if not self._start_dial(now):
                    break
            else:
                if count > _MAX_DIALS_PER_TURN:
                    self._reactor.call_again(self._continue_refill)
        self.link.session.send_capacity(wanted, len(self._dialing))

    def _continue_refill(self, _events: int) -> None:
        self.refill_later()

    def _limit_unused(self, now: float) -> None:
        """Pause when idle connections are closed again and again before visitors use them: new ones would be, too."""
        count, self._unused = self.link.pool.unused - self._unused, self.link.pool.unused
        if not all(self._unused_bucket.take_token(now) for _ in range(count)):
            self._back_off(sockets.NetError("they are closed before a visitor uses them"))

    def _start_dial(self, now: float) -> bool:
        ident = self._next_ident
        self._next_ident += 1
        try:
            sock = sockets.start_connect(self._family, self._sockaddr, speaks_first=True)
        except OSError as error:
            self._back_off(error)
            return False
        if sock.fileno() >= self._reactor.fd_budget.ample_below and not self._may_keep(sock):
            return False
        dial = DataDial(self, ident, sock, self._ports[0], now)
        self._dialing[ident] = dial
        self._reactor.register(sock, dial.on_events)
        if self._sweep_timer is None:
            self._sweep_timer = self._reactor.call_later(_SWEEP_INTERVAL_S, self._sweep)
        return True

    def _may_keep(self, sock: socket.SocketType) -> bool:
        """Whether another data connection may have this descriptor; else its socket is closed."""
        if self._is_ample(sock.fileno()):
            sock.close()
            return False
        if self._must_yield_descriptor(sock.fileno()):
            sock.close()
            self._back_off(sockets.NetError(str(self._reactor.fd_budget)))
            return False
        return True

    def _is_ample(self, fd: int) -> bool:
        """Whether there are enough idle connections, given the descriptors that other tunnels need.

        Even if the other end reports visitors that wait: they would have used the idle connections.
        """
        link = self.link
        return not self._reactor.fd_budget.allows_idle(fd, idle=link.pool.open_connections, wanted=link.own_pool_min)

    def _must_yield_descriptor(self, fd: int) -> bool:
        """Whether other sockets need this descriptor more than another data connection does.

        Visitors that wait at this end are promised a connection. A connection for stock will need one more descriptor
        later, for its visitor or its target. An egress reserves those of its targets separately.
        """
        descriptors, is_ingress = self._reactor.fd_budget, self.link.is_ingress
        if fd >= descriptors.visitor_ceiling:
            return True
        if is_ingress and len(self._dialing) < self._queue_length:
            return False
        return descriptors.is_short(fd + len(self.link.pool) + len(self._dialing) if is_ingress else fd)

    def encode_preface(self, ident: int) -> bytes:
        """The first bytes of a data connection of this link."""
        return encode_preface(self.link.wire_id, self.link.secret, ident)

    def on_dial_failed(self, dial: DataDial, error: Exception) -> None:
        """Close a failed dial, then try the other port or wait before the next dial."""
        if self._dialing.pop(dial.ident, None) is None:
            return
        self._reactor.close(dial.sock)
        if not self._port_confirmed and dial.port == self._ports[0]:
            self._fall_back(sockets.describe_connect_error(error))
        else:
            blocked_s = self._loop.time() - dial.started_at if not dial.is_introduced else None
            self._back_off(error, blocked_s=blocked_s)

    def _back_off(self, error: Exception, *, blocked_s: float | None = None) -> None:
        """Wait before the next dial. ``blocked_s``: no TCP connection was made within so many seconds."""
        self._dial_window = 1
        reason = sockets.describe_connect_error(error)
        if self._retry_timer is None:  # dials that fail together are one failure
            pause = self._count_failure(blocked_s)
            if pause >= _LONG_PAUSE_S:
                reason += f"; next attempt in {pause:.0f} s"
            self._retry_timer = self._reactor.call_later(pause, self._retry)
            self.dial_error = f"data connections to {self.address} fail: {reason}"
        self._event_log.warn_throttled(EventKind.POOL, "dial", self.dial_error or reason)
        self.link.note_dial_status()

    def _count_failure(self, blocked_s: float | None) -> float:
        """Count a failed dial; return the seconds until the next one."""
        now = self._loop.time()
        if now - self._failed_at >= backoff.STABLE_AFTER_S + self._latest_pause_s:
            self._failures = 0
        self._failures, self._failed_at, self._port_failures = self._failures + 1, now, self._port_failures + 1
        if blocked_s is None:
            self._latest_pause_s = backoff.random_retry_delay(self._failures, _MAX_RETRY_DELAY_S)
        else:
            self._latest_pause_s = backoff.blocked_delay(self._failures, blocked_s, random.uniform)
        return self._latest_pause_s

    def _retry(self) -> None:
        self._retry_timer = None
        if len(self._ports) > 1 and self._port_failures >= _FAILURES_BEFORE_SWITCH:
            self._switch_port()  # the port that worked for this link fails now: the other one may work
        self._refill()

    def _sweep(self) -> None:
        self._sweep_timer = None
        now = self._loop.time()
        if self._dialing and self._is_port_silent(now):
            self._fall_back("it does not answer")
        for dial in [d for d in self._dialing.values() if d.expires_at <= now]:
            self.on_dial_failed(dial, TimeoutError())
        if self._dialing and self._sweep_timer is None:
            self._sweep_timer = self._reactor.call_later(_SWEEP_INTERVAL_S, self._sweep)
        self.refill_later()

    # --- which port -----------------------------------------------------------------------------------------------

    def _is_port_silent(self, now: float) -> bool:
        """Whether the other port is to be tried now: the present one does not answer, and nothing else has failed."""
        if not self._port_confirmed:
            return now >= self._port_deadline
        oldest = next(iter(self._dialing.values()))
        is_slow = not oldest.is_introduced and now - oldest.started_at >= self._slow_dial_s
        return is_slow and len(self._ports) > 1 and not self._port_failures

    def _fall_back(self, reason: str) -> None:
        """Use the other port from now on: the present one does not answer, or no longer (a firewall was changed)."""
        port, other = (("tunnel" if port == self._server[1] else "data") + f" port {port}" for port in self._ports)
        self._event_log.log_info(EventKind.POOL, f"{port}: {reason}; using the {other}")
        if self._port_confirmed:
            self._port_failures, self._dial_window = _FAILURES_BEFORE_SWITCH, 1
        self._port_confirmed = True
        self._switch_port()
        for dial in self._dialing.values():
            self._reactor.close(dial.sock)
        self._dialing.clear()
        self.refill_later()

    def _confirm_port(self, port: int) -> None:
        self._port_confirmed = True
        if port != self._ports[0]:
            self._switch_port()

    def _switch_port(self) -> None:
        self._ports.reverse()
        self._update_dial_address()

    def _update_dial_address(self) -> None:
        host, _, *rest = self._server
        self._sockaddr: SockAddr = (host, self._ports[0], *rest)  # type: ignore[assignment]  # same shape as the server's

    @property
    def address(self) -> str:
        """Where data connections go, as text."""
        return sockets.format_address((self._server[0], self._ports[0]))

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a handler."""
        self.link.on_handler_error(error)
