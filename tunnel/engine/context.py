"""What all engines of one process share: reactor, front door, tunnel ports, pipes, certificate, activity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.handshake_slots import HandshakeSlots
from tunnel.engine.tunnel_port import TunnelPorts
from tunnel.runtime.backoff import random_retry_delay
from tunnel.runtime.front_door import DEFAULT_FRONT_DOOR, FrontDoor, FrontDoorLimits
from tunnel.runtime.reactor import Reactor
from tunnel.runtime.splice import PipePool
from tunnel.runtime.tls import SelfSignedCertificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.model.publishing import PublishRequest
    from tunnel.model.visitor_end import VisitorRecord


@dataclass(frozen=True, slots=True)
class Timing:
    """Time limits of all engines, in seconds. Tests shorten or extend them."""

    handshake_timeout_s: float = 10.0
    """for connecting, TLS and the proof together, at a client"""
    liveness_timeout_s: float = 0.3
    """for the present client to answer a ping when another client wants its tunnel, or four round trips if longer"""
    max_liveness_timeout_s: float = 2.0
    queue_timeout_s: float = 5.0
    """for a visitor to get a data connection; also how long visitors are still accepted without a link"""
    stable_after_s: float = 10.0
    """a link that has lasted so long has worked: after its loss, retries start with the shortest delay again"""
    goodbye_grace_s: float = 1.0
    """for the ingress to answer a goodbye, so that no launch on its way is lost"""
    retry_delay: Callable[[int, float], float] = random_retry_delay
    """how long an engine waits after a failed attempt: from the number of failures in a row and the longest delay"""


DEFAULT_TIMING: Final = Timing()


class ServicePublisher(Protocol):
    """Starts the engines of published services."""

    async def publish(self, server: str, request: PublishRequest) -> str | None:
        """Have a tunnel wait for the client of a request, which has authenticated at the tunnel ``server``.

        Returns why there is none, as a sentence for both ends; None once there is one.
        """


class EngineContext:
    """Created inside a running event loop before the first engine, closed after the last one."""

    def __init__(self, timing: Timing = DEFAULT_TIMING, front_door: FrontDoorLimits = DEFAULT_FRONT_DOOR) -> None:
        self.timing = timing
        self.reactor = Reactor()
        self.front_door = FrontDoor(self.reactor.fd_budget, front_door)
        self.tunnel_ports = TunnelPorts(self.reactor, self.front_door)
        self.pipes = PipePool(self.reactor.fd_budget.visitor_ceiling)
        self.identity = SelfSignedCertificate()
        self.handshake_slots: Final = HandshakeSlots()
        self.visitor_log: Callable[[str, VisitorRecord], None] | None = None
        """receives the tunnel's name and each visitor that has left; set before the first engine is created"""
        self.publisher: ServicePublisher | None = None
        """set before the first client publishes; None: no server of this process lets clients publish"""
        self._activity_subscribers: list[Callable[[str], None]] = []

    def subscribe_activity(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with a tunnel's name when a visitor arrives at a tunnel that has none."""
        self._activity_subscribers.append(callback)

    def notify_activity(self, name: str) -> None:
        """Notify the subscribers that tunnel ``name`` gets its first visitor: its numbers change from now on."""
        for callback in self._activity_subscribers:
            callback(name)

    def close(self) -> None:
        """Close the pipes, stop the reactor and the timers of the front door."""
        self.front_door.close()
        self.pipes.close()
        self.reactor.stop()
