"""The end that accepts visitors, with a link that has no data connection for them."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, cast

import pytest

from tests.support.engine_parts import Events, no_descriptor_leak, shared_parts
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.engine.ingress import Ingress
from tunnel.engine.link_sharing import LinkSharing
from tunnel.engine.stats import Stats
from tunnel.engine.tunnel_end import EndParts
from tunnel.forwarding.tcp_forwarder import TcpForwarder
from tunnel.model.address import Address
from tunnel.model.limits import Limits
from tunnel.model.settings import Settings
from tunnel.model.spec import Mux
from tunnel.runtime.datagram_sockets import open_datagram_listener
from tunnel.runtime.listeners import UDP_VISITORS, VISITORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.engine.control_channel import ControlChannel
    from tunnel.engine.link import Link


class EmptyPool:
    """A pool without connections."""

    idle: ClassVar[dict[int, object]] = {}

    def acquire(self) -> None:
        return None


class OpenSession:
    """A session that limits nothing."""

    limits = Limits(1, 1024, 1024)
    target_error = None


class StarvedLink:
    """A link whose pool stays empty; it records the queue lengths that the other end is sent."""

    def __init__(self) -> None:
        self.pool = EmptyPool()
        self.session = OpenSession()
        self.queue_lengths: list[int] = []
        self.key_name = None
        self.channel = SimpleNamespace(peer="192.0.2.1:1")
        self.weight, self.is_backup, self.is_drained = 1, False, False
        self.server, self.is_client, self.is_stopping, self.rank = None, False, False, 0
        self.sharing = LinkSharing(Mux.ON, cast("ControlChannel", self.channel))

    def subscribe_pool_growth(self, callback: Callable[[], None]) -> None:
        """Ignore the callback: the pool never grows."""

    def send_queue_length(self, count: int) -> None:
        self.queue_lengths.append(count)


async def test_the_other_end_learns_that_waiting_visitors_were_disconnected() -> None:
    async with shared_parts() as shared:
        stats = Stats()
        forwarder = TcpForwarder(shared.reactor, shared.pipes, stats.from_visitors, stats.to_visitors)
        parts = EndParts(shared.reactor, forwarder, stats, Events().event_log(), lambda: None, lambda _: None)
        ingress = Ingress(parts, Settings(), 0.05)
        link = StarvedLink()
        ingress.attach(cast("Link", link))
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        ingress.open({VISITORS: listener}, Address("127.0.0.1", 0))
        visitors = [await asyncio.open_connection(*listener.getsockname()) for _ in range(3)]
        for reader, writer in visitors:
            async with asyncio.timeout(GUARD_S):
                assert await reader.read() == b""
            writer.close()
        await wait_until_async(lambda: stats.failed == 3, "all are counted")
        assert max(link.queue_lengths) > 0
        assert link.queue_lengths[-1] == 0
        ingress.close()


async def test_an_ingress_that_cannot_accept_on_one_listener_closes_all() -> None:
    with no_descriptor_leak():
        async with shared_parts() as shared:
            stats = Stats()
            forwarder = TcpForwarder(shared.reactor, shared.pipes, stats.from_visitors, stats.to_visitors)
            parts = EndParts(shared.reactor, forwarder, stats, Events().event_log(), lambda: None, lambda _: None)
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setblocking(False)
            unusable = open_datagram_listener(socket.AF_INET, ("127.0.0.1", 0))
            unusable.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                Ingress(parts, Settings(), 0.05).open(
                    {VISITORS: listener, UDP_VISITORS: unusable}, Address("127.0.0.1", 0)
                )
            assert listener.fileno() == -1
