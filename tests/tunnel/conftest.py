"""The event loop of the unit tests is the program's own; tests of what depends on the loop run on both kinds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest

from tunnel.engine import pool_filler
from tunnel.engine.link import Link
from tunnel.engine.link_sharing import LinkSharing
from tunnel.engine.visitor_source import VisitorSource
from tunnel.runtime.event_loop import SharedEpollLoop

if TYPE_CHECKING:
    from tunnel.engine.pool import DataConnection
    from tunnel.forwarding.lanes import Lane

_ON_BOTH_LOOPS = {"test_reactor", "test_relays"}  # an embedded engine may run on asyncio's own loop


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the loops on which a test runs."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"shared": SharedEpollLoop}
    if item.path.stem in _ON_BOTH_LOOPS:
        factories["nested"] = asyncio.SelectorEventLoop
    return factories


@pytest.fixture
def no_refill_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let neither a timer nor a ping fill a pool: only what uses its connections."""
    for name in ("_PAUSE_S", "_SWEEP_INTERVAL_S"):
        monkeypatch.setattr(pool_filler, name, 3600.0)
    monkeypatch.setattr(Link, "_refill", lambda _link: None)


@pytest.fixture(params=["data connections", "lanes"])
def carriage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What carries the visitors of TCP, from the first one on, whatever the round trip is."""
    carriage: str = request.param
    is_shared = carriage == "lanes"
    take = VisitorSource._take_from

    def take_lane(source: VisitorSource, link: Link, visitor: socket.SocketType) -> DataConnection | Lane | None:
        if link.sharing.current is None and visitor.type == socket.SOCK_STREAM:
            source._share(link)
            for shared in link.sharing._connections.values():
                shared.promised = 64  # as the egress will say, too
        return take(source, link, visitor)

    monkeypatch.setattr(LinkSharing, "is_wanted", is_shared)
    if is_shared:
        monkeypatch.setattr(VisitorSource, "_take_from", take_lane)
    return carriage
