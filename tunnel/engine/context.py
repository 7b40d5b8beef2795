"""What all engines of one process share: the reactor, the pipes, the certificate of servers that have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.runtime.reactor import Reactor
from tunnel.runtime.splice import Pipes
from tunnel.runtime.tls import Identity

if TYPE_CHECKING:
    from collections.abc import Callable


class Shared:
    """Made inside a running loop before the first engine, closed after the last."""

    def __init__(self, on_stir: Callable[[str], None] = lambda _: None) -> None:
        """``on_stir`` is told the name of a tunnel that visitors come to where none were."""
        self.on_stir = on_stir
        self.reactor = Reactor()
        self.pipes = Pipes(self.reactor.descriptors.ceiling)
        self.identity = Identity()

    def close(self) -> None:
        """Give everything back."""
        self.pipes.close()
        self.reactor.stop()
