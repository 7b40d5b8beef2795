"""What all engines of one process share: reactor, pipes, self-signed certificate, activity subscribers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.runtime.reactor import Reactor
from tunnel.runtime.splice import PipePool
from tunnel.runtime.tls import SelfSignedCertificate

if TYPE_CHECKING:
    from collections.abc import Callable


class EngineContext:
    """Created inside a running event loop before the first engine, closed after the last one."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.pipes = PipePool(self.reactor.fd_budget.visitor_ceiling)
        self.identity = SelfSignedCertificate()
        self._activity_subscribers: list[Callable[[str], None]] = []

    def subscribe_activity(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with a tunnel's name when a visitor arrives at a tunnel that has none."""
        self._activity_subscribers.append(callback)

    def notify_activity(self, name: str) -> None:
        """Tell the subscribers that tunnel ``name`` gets its first visitor: its numbers change from now on."""
        for callback in self._activity_subscribers:
            callback(name)

    def close(self) -> None:
        """Close the pipes and stop the reactor."""
        self.pipes.close()
        self.reactor.stop()
