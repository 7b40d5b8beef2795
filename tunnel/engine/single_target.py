"""The one target of a tunnel: dialled for every visitor, and probed while it does not answer.

If the target does not answer, the ingress is informed at once, and the target is probed with growing delays until it
answers. So the tunnel's state is true even while no visitor comes. Visitors' dials are made all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tunnel.engine.dialler import DatagramDial, Dialler, TargetDial
from tunnel.model.events import EventKind
from tunnel.model.snapshot import TargetView
from tunnel.model.spec import LogLevel, Proto
from tunnel.model.targets import TargetState
from tunnel.runtime import backoff
from tunnel.runtime.resolver import DialTarget

if TYPE_CHECKING:
    import asyncio
    import socket

    from tunnel.engine.dialler import DialOwner
    from tunnel.engine.link import Link
    from tunnel.forwarding.base import UsedConnection
    from tunnel.model.address import Address
    from tunnel.model.events import EventLog
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.sockets import SockAddr

_DIALS: Final[Mapping[Proto, type[TargetDial]]] = {Proto.TCP: TargetDial, Proto.UDP: DatagramDial}


class SingleTarget(Dialler[TargetDial]):
    """Dials the one target of a tunnel for every visitor."""

    def __init__(self, owner: DialOwner, event_log: EventLog, spec: TunnelSpec) -> None:
        super().__init__(owner, event_log)
        self._target = DialTarget(spec.target)
        # TCP if the tunnel has that: a dial of UDP only shows that there is a route.
        self._probe_class = _DIALS[spec.proto.parts[0]]
        self._remark = describe_wildcard(spec.target, self._target)
        if self._remark is not None:
            event_log.log_warn(EventKind.TARGET, self._remark)
        self._dial_timeout_s = spec.dial_timeout
        self._max_retry_delay_s = spec.cooldown  # between two probes of a target that does not answer
        self._probe_timer: asyncio.TimerHandle | None = None
        self._error: str | None = None
        self._attempt = 0  # failed attempts in a row
        self._next_attempt_at = 0.0  # when the target is probed next, on the loop's clock
        self._views: tuple[TargetView, ...] = ()

    @property
    def error(self) -> str | None:
        """Why the target cannot be reached, as a sentence; None while it can."""
        return self._error

    @property
    def next_attempt(self) -> tuple[float, int] | None:
        """When the target is probed next, and the number of failed attempts, while it cannot be reached."""
        return (self._next_attempt_at, self._attempt) if self._error is not None else None

    @property
    def targets(self) -> tuple[TargetView, ...]:
        """The target as observers see it; the same object while nothing changes."""
        visitors, error = self._relays.active, self._error
        if not self._views or self._views[0].visitors != visitors or self._views[0].reason != error:
            state = TargetState.UP if error is None else TargetState.DOWN
            address = str(self._target.address)
            self._views = (TargetView(address=address, state=state, reason=error, visitors=visitors),)
        return self._views

    @property
    def remark(self) -> str | None:
        """That the target is a wildcard address: a visitor cannot be forwarded to every interface."""
        return self._remark

    def apply_settings(self, spec: TunnelSpec) -> None:
        """Use the longest delay between two probes, and the time limit of a dial, from a spec."""
        self._max_retry_delay_s = spec.cooldown
        if spec.dial_timeout < self._dial_timeout_s:
            self._bound_deadlines(spec.dial_timeout)
        self._dial_timeout_s = spec.dial_timeout

    def dial(self, link: Link, data: UsedConnection, now: float) -> None:
        """Dial the target for the visitor of a data connection."""
        dial = _DIALS[data.proto](self, link, data, now + self._dial_timeout_s)
        self._by_data[link, data.ident] = dial
        self._start(dial, self._target)

    def on_dial_succeeded(self, dial: TargetDial, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Relay the visitor to the connected target; a probe only shows that the target answers."""
        self._forget(dial)
        self._target.prefer(sockaddr)
        if self._error is not None and type(dial) is self._probe_class:
            self._on_recovered()
        if dial.data is None or dial.link is None:
            self.reactor.close(sock)
            return
        relay = self._relays.start(sock, dial.data, dial.link, near_events=events)
        if dial.end_offset is not None:
            relay.set_end_offset(dial.end_offset)

    def on_dial_failed(self, dial: TargetDial, cause: str) -> None:
        """Disconnect the visitor, here and through FAILED at the ingress; start to probe the target."""
        if dial not in self._dials:
            return
        self._forget(dial)
        dial.cancel()
        self._target.invalidate()
        reason = f"the target {self._target.address} cannot be reached: {cause}"
        if dial.link is not None and dial.data is not None:
            self._owner.on_visitor_unserved(dial.link, dial.data, reason)
        self._on_failed(reason, probe=dial.data is None)

    # --- the target's health --------------------------------------------------------------------------------------

    def _on_failed(self, reason: str, *, probe: bool) -> None:
        self._event_log.warn_throttled(EventKind.TARGET, reason, reason)
        first = self._error is None
        self._error = reason
        if probe or first:
            self._cancel_probe()
            self._attempt += 1
            delay = backoff.random_retry_delay(self._attempt, self._max_retry_delay_s)
            self._next_attempt_at = self._loop.time() + delay
            self._probe_timer = self.reactor.call_later(delay, self.retry)
            self._owner.on_target_error_changed()

    def _on_recovered(self) -> None:
        text = f"the target {self._target.address} answers again"
        self._event_log.log_paced(LogLevel.INFO, EventKind.TARGET, "recovered", text)
        self._error = None
        self._attempt = 0
        self._cancel_probe()
        self._owner.on_target_error_changed()

    def retry(self) -> None:
        """Probe an unreachable target now, without waiting for its delay."""
        if self._error is not None:
            self._cancel_probe()
            self._start(self._probe_class(self, None, None, self._loop.time() + self._dial_timeout_s), self._target)

    def _cancel_probe(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    def close(self) -> int:
        """Stop everything; return how many visitors were disconnected."""
        self._cancel_probe()
        return super().close()


def describe_wildcard(written: Address, target: DialTarget) -> str | None:
    """Return a sentence for a target that is written as a wildcard address; None for any other."""
    if not written.is_wildcard:
        return None
    return (
        f"the target {written} is dialled, so it means this host: write {target.address}, or change mode= at both ends"
    )
