"""Keeps a client's pool filled: dials data connections, several at a time, in the turn in which they are taken."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from tunnel.engine.capacity import Demand, dials_to_start, wanted_idle
from tunnel.engine.pool import DataConnection
from tunnel.protocol.frames import data_tls_proof, encode_preface
from tunnel.runtime import backoff, sockets, tls
from tunnel.runtime.reactor import ENDING, FAILED, READ, WRITE

if TYPE_CHECKING:
    import socket
    import ssl

    from tunnel.engine.link import Link
    from tunnel.model.events import Journal
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.sockets import SockAddr

_AT_ONCE: Final = 128  # dials under way: fewer than a server grants to unproven connections from one address
_IN_A_TURN: Final = 16  # dials started before visitors have their turn again
_LIMIT: Final = 10.0  # seconds for one dial, until the server has confirmed it
_AFTERMATH: Final = 1.0  # seconds in which a confirmation may yet follow the end of a connection (a quick visitor's)
_ROUTE_PATIENCE: Final = 0.25  # seconds in which the announced port has to answer, or four round trips if they are more
_SWEEP: Final = 0.1


class DataDial:
    """A data connection on its way: connecting, perhaps TLS, then waiting for the server's word that it is pooled."""

    __slots__ = ("_filler", "_sent", "events", "expires", "ident", "port", "session", "sock", "started")

    def __init__(self, filler: Filler, ident: int, sock: socket.SocketType, port: int, now: float) -> None:
        self.ident = ident
        self.sock = sock
        self.port = port
        self.session: tls.TlsSession | None = None
        self.started = now
        self.expires = now + _LIMIT
        self.events = 0
        """what the reactor has said since the preface was sent"""
        self._sent = False
        self._filler = filler

    def ready(self, events: int) -> None:
        """Handler until the server has confirmed it."""
        if not self._sent:
            error = sockets.connect_error(self.sock) if events & FAILED else None
            if error is not None:
                self._filler.failed(self, error)
            elif events & WRITE:
                self._introduce()
            return
        self.events |= events
        if self.session is not None and events & READ:
            self._secure()
        if events & ENDING:
            self.expires = min(self.expires, asyncio.get_running_loop().time() + _AFTERMATH)

    def _introduce(self) -> None:
        self._sent = True
        filler = self._filler
        try:
            self.sock.send(encode_preface(filler.link.secret, self.ident))
            if filler.tls_context is not None:
                self.session = tls.TlsSession(filler.tls_context, server_side=False)
                self._secure()
        except OSError as error:
            filler.failed(self, error)

    def _secure(self) -> None:
        """Go on with the TLS handshake, and say the proof when it is complete."""
        session, filler = self.session, self._filler
        if session is None or session.ready:
            return
        try:
            session.feed_from(self.sock)
            if session.handshake():
                if session.certificate() != filler.certificate:
                    raise tls.TlsError("the data connection shows another certificate than the control channel")
                session.write(data_tls_proof(filler.link.secret, self.ident))
            self.sock.send(session.take())
        except (tls.TlsError, OSError) as error:
            filler.failed(self, error)

    def crashed(self, error: Exception) -> None:
        """A defect in the handler."""
        self._filler.crashed(error)


class Filler:
    """The client's side of a link's pool. Owns the dials under way."""

    dials = True

    def __init__(
        self,
        link: Link,
        reactor: Reactor,
        journal: Journal,
        server: SockAddr,
        round_trip: float,
        data_port: int | None,
        certificate: bytes,
    ) -> None:
        """``round_trip``: the seconds that one takes to the server, as far as is known before the first ping."""
        self.link = link
        self.certificate = certificate
        self.tls_context: ssl.SSLContext | None = tls.pinned_context() if link.data_tls else None
        self.trouble: str | None = None
        """why the last dials failed, or None since one worked"""
        self._reactor = reactor
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._server = server
        tunnel_port = server[1]
        self._ports = [tunnel_port] if data_port in {None, tunnel_port} else [data_port or tunnel_port, tunnel_port]
        self._sure = len(self._ports) == 1
        self._route_patience = max(_ROUTE_PATIENCE, 4 * round_trip)
        self._patience_ends = 0.0
        self._demand = Demand(since=self._loop.time())
        self._queued = 0
        self._taken = 0
        self._next_ident = 1
        self._dialing: dict[int, DataDial] = {}
        self._failures = 0
        self._resting: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._refill_due = False
        self._closed = False
        self._family = sockets.family_of(server)
        self._aim()

    def begin(self) -> None:
        """Dial the first ones."""
        self._patience_ends = self._loop.time() + self._route_patience
        self._refill()

    def close(self) -> None:
        """The link is over: give up what is under way."""
        self._closed = True
        for timer in (self._resting, self._sweeping):
            if timer is not None:
                timer.cancel()
        for dial in self._dialing.values():
            self._reactor.close(dial.sock)
        self._dialing.clear()

    # --- what the link tells --------------------------------------------------------------------------------------

    def taken(self, count: int) -> None:
        """Idle connections were taken, or given up."""
        self._taken += count
        if not self._refill_due and not self._closed:
            self._refill_due = True
            self._reactor.defer(self._refill)

    def queued(self, count: int) -> None:
        """So many visitors wait at the entrance."""
        self._queued = count
        self.taken(0)

    def pooled(self, idents: tuple[int, ...]) -> None:
        """The server has confirmed these."""
        pool = self.link.pool
        before = len(pool)
        latest: DataDial | None = None
        for ident in idents:
            dial = self._dialing.pop(ident, None)
            if dial is None:
                continue  # given up in the meantime: the server will see it closed
            connection = DataConnection(ident, dial.sock, dial.session, pool)
            connection.events = dial.events
            pool.add(connection, watched=True)
            if dial.events & ENDING:
                pool.stirred(connection)
            latest = dial
        if latest is not None:
            self._demand = self._demand.dialed(self._loop.time() - latest.started)
            self._keep_to(latest.port)
            self.link.note_pooled(before)
        if self._failures:
            self._failures = 0
            self.trouble = None
            self.link.note_trouble()

    # --- dialling -------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        self._refill_due = False
        if self._closed:
            return
        now = self._loop.time()
        self._demand = self._demand.visitors(self._taken, now)
        self._taken = 0
        wanted = wanted_idle(self._demand, self.link.limits)
        if self._resting is None:
            count = dials_to_start(
                wanted=wanted,
                idle=len(self.link.pool),
                dialing=len(self._dialing),
                queued=self._queued,
                at_once=1 if self._failures else _AT_ONCE,
                most=self.link.limits.pool_max,
            )
            for _ in range(min(count, _IN_A_TURN)):
                if not self._dial(now):
                    break
            if count > _IN_A_TURN:
                self._reactor.again(self._go_on)
        self.link.say_capacity(wanted, len(self._dialing))

    def _go_on(self, _events: int) -> None:
        self.taken(0)

    def _dial(self, now: float) -> bool:
        ident = self._next_ident
        self._next_ident += 1
        try:
            sock = sockets.begin_connect(self._family, self._sockaddr, speaks_first=True)
        except OSError as error:
            self._failed(error)
            return False
        if self._is_one_too_many(sock.fileno()):
            sock.close()
            self._failed(sockets.NetError(str(self._reactor.descriptors)))
            return False
        dial = DataDial(self, ident, sock, self._ports[0], now)
        self._dialing[ident] = dial
        self._reactor.register(sock, dial.ready)
        if self._sweeping is None:
            self._sweeping = self._reactor.later(_SWEEP, self._sweep)
        return True

    def _is_one_too_many(self, fd: int) -> bool:
        """Whether this descriptor is needed more by others.

        Visitors who wait at this end were promised a connection. One for stock wants another descriptor some day, for
        its visitor or its target; of the targets an exit knows itself.
        """
        descriptors, at_entrance = self._reactor.descriptors, self.link.at_entrance
        if fd >= descriptors.ceiling:
            return True
        if at_entrance and len(self._dialing) < self._queued:
            return False
        return descriptors.are_scarce(fd + len(self.link.pool) + len(self._dialing) if at_entrance else fd)

    def failed(self, dial: DataDial, error: Exception) -> None:
        """A dial did not work."""
        if self._dialing.pop(dial.ident, None) is None:
            return
        self._reactor.close(dial.sock)
        if not self._sure and dial.port == self._ports[0]:
            self._other_route(sockets.describe(error))
        else:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self.trouble = f"data connections to {self._address()} fail: {sockets.describe(error)}"
        self._journal.complain("pool", "dial", self.trouble)
        self.link.note_trouble()
        if self._resting is None:
            pause = backoff.delay(self._failures, 5.0, random.uniform)
            self._resting = self._reactor.later(pause, self._rested)

    def _rested(self) -> None:
        self._resting = None
        if len(self._ports) > 1 and self._failures >= 3:
            self._turn()  # what worked for this link works no more: perhaps the other does
        self._refill()

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._loop.time()
        if not self._sure and self._dialing and now >= self._patience_ends:
            self._other_route("it does not answer")
        for dial in [d for d in self._dialing.values() if d.expires <= now]:
            self.failed(dial, TimeoutError())
        if self._dialing and self._sweeping is None:
            self._sweeping = self._reactor.later(_SWEEP, self._sweep)
        self.taken(0)

    def _other_route(self, why: str) -> None:
        """The announced port did not answer: from now on the tunnel port beside it."""
        self._journal.info("pool", f"data port {self._ports[0]}: {why}; using the tunnel port {self._ports[1]}")
        self._sure = True
        self._turn()
        for dial in self._dialing.values():
            self._reactor.close(dial.sock)
        self._dialing.clear()
        self.taken(0)

    def _keep_to(self, port: int) -> None:
        self._sure = True
        if port != self._ports[0]:
            self._turn()

    def _turn(self) -> None:
        """Dial the other port from now on."""
        self._ports.reverse()
        self._aim()

    def _aim(self) -> None:
        host, _, *rest = self._server
        self._sockaddr: SockAddr = (host, self._ports[0], *rest)  # type: ignore[assignment]  # of the server's own shape
        self.link.data_addr = self._address()

    def _address(self) -> str:
        return sockets.show((self._server[0], self._ports[0]))

    def crashed(self, error: Exception) -> None:
        """A defect in a handler."""
        self.link.crashed(error)
