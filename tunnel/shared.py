"""What all engines of one process share: the reactor, the pipes, the certificate of servers that have none."""

from __future__ import annotations

from tunnel.reactor import Reactor
from tunnel.splice import Pipes
from tunnel.tls import Identity


class Shared:
    """Made inside a running loop before the first engine, closed after the last."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.pipes = Pipes(self.reactor.descriptors.ceiling)
        self.identity = Identity()

    def close(self) -> None:
        """Give everything back."""
        self.pipes.close()
        self.reactor.stop()
