"""Parts of an engine for unit tests: reactor and pipes, event sinks, certificates, TLS sessions, leak checks."""

from __future__ import annotations

import gc
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path

from tests.support.waiting import wait_until_async
from tunnel.engine.context import DEFAULT_TIMING, EngineContext, Timing
from tunnel.model.events import Event, EventLog
from tunnel.runtime.certificate import make_certificate
from tunnel.runtime.front_door import DEFAULT_FRONT_DOOR, FrontDoorLimits
from tunnel.runtime.tls import TlsSession, pinned_context


def open_descriptors() -> dict[str, str]:
    """Return the open descriptors of this process with the files or sockets behind them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names are all that is wanted
        try:
            found[name] = str(Path("/proc/self/fd", name).readlink())
        except FileNotFoundError:  # the descriptor that lists the directory
            continue
    return found


@contextmanager
def no_descriptor_leak() -> Iterator[None]:
    """Assert that the block closes every descriptor that it opens."""
    before = open_descriptors()
    yield
    after = open_descriptors()
    if len(after) != len(before):
        gc.collect()  # an exception's traceback may still hold a socket, which is no leak
        after = open_descriptors()
    assert len(after) == len(before), set(after.items()) ^ set(before.items())


@asynccontextmanager
async def shared_parts(
    timing: Timing = DEFAULT_TIMING, front_door: FrontDoorLimits = DEFAULT_FRONT_DOOR
) -> AsyncIterator[EngineContext]:
    """Provide reactor and pipes for one test; assert that no socket stays registered and no pipe stays lent."""
    shared = EngineContext(timing, front_door)
    try:
        yield shared
        await wait_until_async(lambda: len(shared.reactor) == 0, "no socket is registered with the reactor")
        assert shared.pipes.in_use == 0
    finally:
        shared.close()


class Events(list[Event]):
    """An event sink that records the events."""

    def event_log(self, name: str = "test") -> EventLog:
        return EventLog(name, self.append)

    def said(self, part: str) -> bool:
        """Whether the text of an event contains ``part``."""
        return any(part in event.text for event in self)


@cache
def pem() -> bytes:
    """Return a self-signed certificate and its key."""
    return make_certificate()


@cache
def other_pem() -> bytes:
    """Return another self-signed certificate and its key."""
    return make_certificate()


@cache
def server_context(make: Callable[[], bytes] = pem) -> ssl.SSLContext:
    """Return a TLS 1.3 server context with a certificate from ``make``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    with tempfile.NamedTemporaryFile() as file:
        file.write(make())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def tls_pair() -> tuple[TlsSession, TlsSession]:
    """Return a client and a server session that have completed their handshake."""
    client = TlsSession(pinned_context(), server_side=False)
    server = TlsSession(server_context(), server_side=True)
    for _ in range(4):
        client.do_handshake()
        server.receive_data(client.data_to_send())
        server.do_handshake()
        client.receive_data(server.data_to_send())
    assert client.is_established
    assert server.is_established
    return client, server
