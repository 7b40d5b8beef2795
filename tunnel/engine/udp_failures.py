"""What an operator sees while the target of a tunnel refuses its flows of UDP: the reason, although it is ``up``.

A closed port shows only with a visitor's datagrams, so the state stays ``up``: nothing could show that the target is
back but the next visitor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.model.spec import Proto

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tunnel.engine.relays import RelaySet
    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.runtime.reactor import Reactor

_CHECK_INTERVAL_S: Final = 0.5


class UdpFailures:
    """Why the latest flows failed, until a new or present one is answered. Has a timer only while there is a reason."""

    def __init__(self, reactor: Reactor, relays: RelaySet, on_changed: Callable[[], None], *, is_ingress: bool) -> None:
        """``on_changed`` is called when there is a reason, or none any more."""
        self.reason: str | None = None
        """a sentence, as the end that dials the target has it"""
        self._reactor = reactor
        self._relays = relays
        self._on_changed = on_changed
        self._answers_at = int(is_ingress)  # their place in ``passed``: what came from the target, or went to a visitor
        self._answered: dict[ForwardedVisitor, int] = {}  # bytes of answers of the present flows, at the last check
        self._timer: asyncio.TimerHandle | None = None

    def note_failed(self, reason: str) -> None:
        """Note that the target has refused a flow."""
        if self._timer is None:
            self._answered = self._read_answered()
            self._timer = self._reactor.call_later(_CHECK_INTERVAL_S, self._check)
        if self.reason is None:  # the first one: those of several targets would change all the time
            self.reason = reason
            self._on_changed()

    def _read_answered(self) -> dict[ForwardedVisitor, int]:
        flows = (relay for relay in self._relays.running() if relay.proto is Proto.UDP)
        return {flow: flow.passed()[self._answers_at] for flow in flows}

    def _check(self) -> None:
        """End the reason if a flow was answered since the last check."""
        before, self._answered = self._answered, self._read_answered()
        if any(answered > before.get(flow, 0) for flow, answered in self._answered.items()):
            self._timer, self.reason, self._answered = None, None, {}
            self._on_changed()
        else:
            self._timer = self._reactor.call_later(_CHECK_INTERVAL_S, self._check)

    def close(self) -> None:
        """Stop the timer. Calling it twice is allowed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._answered.clear()
