"""What the tests of a tunnel's inner parts share: waiting on conditions, pairs of sockets, certificates, balances."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path

from tests.scale import GUARD
from tunnel.engine.context import Shared
from tunnel.model.events import Journal
from tunnel.model.state import Event
from tunnel.runtime.certificate import make_certificate
from tunnel.runtime.tls import TlsSession, pinned_context

DEADLINE = GUARD
"""Seconds after which a condition that has not come true is a failure."""


async def until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Wait until a condition holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        assert loop.time() < end, f"in {deadline:g} s it did not come true that {what}"
        await asyncio.sleep(0.002)


async def turns(count: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


def tcp_pair(*, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of a loopback connection, non-blocking; ``small`` ones take few bytes before they push back."""
    with socket.socket() as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.socket()
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return ours, theirs


def reset(sock: socket.SocketType) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def descriptors() -> dict[str, str]:
    """The open descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names are all that is wanted
        try:
            found[name] = str(Path("/proc/self/fd", name).readlink())
        except FileNotFoundError:  # the one that listed them
            continue
    return found


@contextmanager
def balanced() -> Iterator[None]:
    """Whatever is opened inside is closed when it is over."""
    before = descriptors()
    yield
    after = descriptors()
    if len(after) != len(before):
        gc.collect()  # what an exception's traceback holds is not lost
        after = descriptors()
    assert len(after) == len(before), set(after.items()) ^ set(before.items())


@asynccontextmanager
async def shared_parts() -> AsyncIterator[Shared]:
    """Reactor and pipes for one test; afterwards nothing is watched any more and no pipe is lent."""
    shared = Shared()
    try:
        yield shared
        await until(lambda: len(shared.reactor) == 0, "the reactor watches nothing any more")
        assert shared.pipes._lent == 0
    finally:
        shared.close()


class Events(list[Event]):
    """A sink that keeps what it was told."""

    def journal(self, name: str = "test") -> Journal:
        return Journal(name, self.append)

    def said(self, part: str) -> bool:
        """Whether one of the sentences contains ``part``."""
        return any(part in event.text for event in self)


@cache
def pem() -> bytes:
    """Key and certificate, self-signed."""
    return make_certificate()


@cache
def other_pem() -> bytes:
    """Another key and certificate."""
    return make_certificate()


@cache
def server_context(make: Callable[[], bytes] = pem) -> ssl.SSLContext:
    """A server's context for such a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    with tempfile.NamedTemporaryFile() as file:
        file.write(make())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def tls_pair() -> tuple[TlsSession, TlsSession]:
    """Client and server sessions whose handshake is complete."""
    client = TlsSession(pinned_context(), server_side=False)
    server = TlsSession(server_context(), server_side=True)
    for _ in range(4):
        client.handshake()
        server.feed(client.take())
        server.handshake()
        client.feed(server.take())
    assert client.ready
    assert server.ready
    return client, server
