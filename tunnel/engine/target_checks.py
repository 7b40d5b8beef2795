"""Checks the health of one target at intervals: over TCP, or with one HTTP request. Without tasks, on the reactor."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.model.spec import Proto
from tunnel.model.targets import CheckKind
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.http_check import encode_request, is_good_status, read_status
from tunnel.protocol.proxy_header import encode_check_header
from tunnel.runtime import sockets
from tunnel.runtime.connect_race import ConnectRace, describe_failures
from tunnel.runtime.datagram_sockets import DatagramConnect
from tunnel.runtime.reactor import READABLE

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Sequence

    from tunnel.model.spec import TunnelSpec
    from tunnel.model.targets import TargetCheck
    from tunnel.runtime.connect_race import Failure
    from tunnel.runtime.reactor import Reactor
    from tunnel.runtime.resolver import DialTarget
    from tunnel.runtime.sockets import SockAddr

_JITTER: Final = 0.1  # of the interval, up and down, so that checks of many tunnels spread over time
_MAX_FIRST_DELAY_S: Final = 1.0
_READ_BYTES: Final = 4096


class CheckOwner(Protocol):
    """The target of a group, as its checks see it."""

    target: DialTarget

    def on_check_passed(self) -> None:
        """The target is in order."""

    def on_check_failed(self, cause: str) -> None:
        """The target is not in order; ``cause`` is the end of a sentence."""

    def on_handler_error(self, error: Exception) -> None:
        """A defect in a check."""


class TargetChecks:
    """Owns the check in progress, and the timer of the next one."""

    def __init__(self, owner: CheckOwner, reactor: Reactor, loop: asyncio.AbstractEventLoop, spec: TunnelSpec) -> None:
        self.check: TargetCheck = spec.effective_check
        self.next_at = 0.0
        """when the next check starts, on the loop's clock"""
        self._proxy = spec.proxy
        self._is_udp_alone = spec.proto is Proto.UDP
        self._owner = owner
        self._reactor = reactor
        self._loop = loop
        self._interval_s = spec.inter
        self._timeout_s = spec.check_timeout
        self._present: _PresentCheck | None = None
        self._resolving: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Check soon, and then at intervals."""
        self._schedule(random.uniform(0.0, min(self._interval_s, _MAX_FIRST_DELAY_S)))  # noqa: S311  no secret

    def update_spec(self, spec: TunnelSpec) -> None:
        """Use the kind of check, interval and time limit of a spec from the next check on."""
        is_sooner = spec.inter < self._interval_s
        self.check, self._proxy = spec.effective_check, spec.proxy
        self._interval_s, self._timeout_s = spec.inter, spec.check_timeout
        if is_sooner and self._timer is not None:
            self.start()

    @property
    def is_running(self) -> bool:
        """Whether checks are made."""
        return self._timer is not None or self._deadline is not None

    def check_now(self) -> None:
        """Make the next check now, without waiting for the interval."""
        if self._timer is not None:
            self._schedule(0.0)

    def stop(self) -> None:
        """Make no more checks, and drop the one in progress."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- one check ------------------------------------------------------------------------------------------------

    def _schedule(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.next_at = self._loop.time() + delay_s
        self._timer = self._reactor.call_later(delay_s, self._start_check)

    def _start_check(self) -> None:
        self._timer = None
        self._deadline = self._reactor.call_later(self._timeout_s, self._on_timeout)
        candidates = self._owner.target.cached()
        if candidates is None:
            self._resolving = self._loop.create_task(self._resolve())
        else:
            self._connect(candidates)

    async def _resolve(self) -> None:
        try:
            candidates = await self._owner.target.resolve()
        except OSError as error:
            self._resolving = None  # this task, which is not to be cancelled here
            self.on_failed(sockets.describe_connect_error(error))
        else:
            self._resolving = None
            self._connect(candidates)

    def _connect(self, candidates: Sequence[tuple[socket.AddressFamily, SockAddr]]) -> None:
        kind = self.check.kind
        check_class = _HttpCheck if kind is CheckKind.HTTP else _PresentCheck
        if kind is CheckKind.OFF and self._is_udp_alone:
            check_class = _RouteCheck
        self._present = check_class(self, self._reactor)
        self._present.start(candidates)

    def on_passed(self) -> None:
        """Handle a check that the target has passed."""
        self._finish()
        self._owner.on_check_passed()

    def on_failed(self, cause: str) -> None:
        """Handle a failed check; ``cause`` is the end of a sentence."""
        self._owner.target.invalidate()
        self._finish()
        self._owner.on_check_failed(cause)

    def on_local_fault(self) -> None:
        """Handle a check that this host could not make, which proves nothing about the target."""
        self._finish()

    def _on_timeout(self) -> None:
        self._deadline = None
        self.on_failed(f"it did not answer a check within {self._timeout_s:g} s")

    def _finish(self) -> None:
        self._drop()
        self._schedule(self._interval_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311  no secret

    def _drop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._present is not None:
            self._present.cancel()
            self._present = None
        if self._resolving is not None:
            self._resolving.cancel()
            self._resolving = None

    def encode_request(self) -> bytes:
        """Return the request of an HTTP check, after the PROXY header that the target expects if visitors have one."""
        return encode_check_header(self._proxy) + encode_request(str(self._owner.target.address), self.check.path)

    def prefer(self, sockaddr: SockAddr) -> None:
        """Note which of the target's addresses has answered."""
        self._owner.target.prefer(sockaddr)

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a check."""
        self._owner.on_handler_error(error)


class _PresentCheck(ConnectRace):
    """A check over TCP: passed when the target accepts."""

    __slots__ = ("_checks",)

    def __init__(self, checks: TargetChecks, reactor: Reactor) -> None:
        super().__init__(reactor)
        self._checks = checks

    def on_connected(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        self._checks.prefer(sockaddr)
        sockets.reset_on_close(sock)  # as HAProxy: neither end keeps anything of this connection
        self._reactor.close(sock)
        self._checks.on_passed()

    def on_all_failed(self, failures: Sequence[Failure]) -> None:
        if sockets.are_local_faults(failures):
            self._checks.on_local_fault()
        else:
            self._checks.on_failed(describe_failures(failures))

    def on_handler_error(self, error: Exception) -> None:
        self._checks.on_handler_error(error)


class _RouteCheck(DatagramConnect, _PresentCheck):
    """Whether a UDP target that was down has an address and a route: more shows with visitors' datagrams alone."""

    __slots__ = ()


class _HttpCheck(_PresentCheck):
    """A check with a request: passed when the status of the answer is 2xx or 3xx."""

    __slots__ = ("_answer", "_stream")

    def __init__(self, checks: TargetChecks, reactor: Reactor) -> None:
        super().__init__(checks, reactor)
        self._stream: socket.SocketType | None = None
        self._answer = b""

    def on_connected(self, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        self._checks.prefer(sockaddr)
        self._stream = sock
        self._reactor.set_handler(sock, self.read)
        try:
            sock.send(self._checks.encode_request())  # some hundred bytes fit into the buffer of a new connection
        except OSError as error:
            self._checks.on_failed(sockets.describe_error(error))
            return
        if events & READABLE:
            self.read(events)

    def read(self, events: int) -> None:
        """Read the answer as far as it has arrived; its status ends the check."""
        if not events & READABLE or self._stream is None:
            return
        try:
            while (status := read_status(self._answer)) is None:
                data = self._stream.recv(_READ_BYTES)
                if not data:
                    self._checks.on_failed("it ended the connection without an answer")
                    return
                self._answer += data  # bounded: see MAX_HEAD_BYTES
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._checks.on_failed(str(error))
            return
        except OSError as error:
            self._checks.on_failed(sockets.describe_error(error))
            return
        if is_good_status(status):
            self._checks.on_passed()
        else:
            self._checks.on_failed(f"it answered {self._checks.check.path} with the status {status}")

    def cancel(self) -> None:
        super().cancel()
        if self._stream is not None:
            self._reactor.close(self._stream)
            self._stream = None
