from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tunnel.runtime import connect_race, sockets
from tunnel.runtime.connect_race import ATTEMPT_DELAY_S, connect_to_first, describe_failures
from tunnel.runtime.reactor import Reactor
from tunnel.runtime.resolver import Candidate

GUARD_S = 10.0


@pytest.fixture
async def reactor() -> Iterator[Reactor]:  # type: ignore[misc]  # pytest-asyncio awaits it
    reactor = Reactor()
    yield reactor
    reactor.stop()


def listening(backlog: int = 16) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=backlog)


def candidate(listener: socket.socket) -> Candidate:
    return (socket.AF_INET, listener.getsockname()[:2])


def closed_port() -> Candidate:
    with listening() as listener:
        return candidate(listener)


class Blackhole:
    """A listener whose backlog is full: the kernel drops further SYNs, as a dead host does."""

    def __init__(self) -> None:
        self.listener = listening(backlog=0)
        self.fillers = [socket.socket() for _ in range(3)]
        for filler in self.fillers:
            filler.setblocking(False)
            filler.connect_ex(self.listener.getsockname())

    def close(self) -> None:
        for sock in (self.listener, *self.fillers):
            sock.close()


@pytest.fixture
def blackhole() -> Iterator[Blackhole]:
    blackhole = Blackhole()
    yield blackhole
    blackhole.close()


async def test_the_first_address_that_answers_wins_at_once(reactor: Reactor) -> None:
    with listening() as listener, no_descriptor_leak():
        sock, sockaddr = await connect_to_first(reactor, [candidate(listener), closed_port()])
        assert sockaddr == listener.getsockname()
        reactor.close(sock)


async def test_a_refused_address_is_followed_by_the_next_without_delay(reactor: Reactor) -> None:
    with listening() as listener, no_descriptor_leak():
        started = time.monotonic()
        sock, sockaddr = await connect_to_first(reactor, [closed_port(), closed_port(), candidate(listener)])
        assert sockaddr == listener.getsockname()
        assert time.monotonic() - started < ATTEMPT_DELAY_S
        reactor.close(sock)


async def test_a_silent_address_is_overtaken_by_the_next(
    reactor: Reactor, blackhole: Blackhole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "is_loopback", lambda _: False)  # the silent address of this test is on loopback
    with listening() as listener, no_descriptor_leak():
        async with asyncio.timeout(GUARD_S):
            sock, sockaddr = await connect_to_first(reactor, [candidate(blackhole.listener), candidate(listener)])
        assert sockaddr == listener.getsockname()
        reactor.close(sock)


async def test_a_silent_address_is_not_waited_for_long_when_the_others_have_refused(
    reactor: Reactor, blackhole: Blackhole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "is_loopback", lambda _: False)
    monkeypatch.setattr(connect_race, "SILENT_LIMIT_S", 0.05)
    silent = candidate(blackhole.listener)
    connecting = connect_to_first(reactor, [silent, closed_port(), silent, closed_port()])
    with no_descriptor_leak(), pytest.raises(OSError) as caught:  # noqa: PT011  its text is compared below
        await asyncio.wait_for(connecting, GUARD_S)
    assert str(caught.value).count("it refused the connection") == 2
    assert str(caught.value).count("it did not answer in time") == 2
    assert len(reactor) == 0


async def test_a_cancelled_race_leaves_no_socket(
    reactor: Reactor, blackhole: Blackhole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "is_loopback", lambda _: False)
    with no_descriptor_leak():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2 * ATTEMPT_DELAY_S):
                await connect_to_first(reactor, [candidate(blackhole.listener)] * 3)
        assert len(reactor) == 0


async def test_the_failure_of_every_address_is_told_for_each_of_them(reactor: Reactor) -> None:
    refused = closed_port()
    unreachable: Candidate = (socket.AF_INET, ("255.255.255.255", 9))
    with no_descriptor_leak(), pytest.raises(OSError) as caught:  # noqa: PT011  its text is compared below
        await connect_to_first(reactor, [refused, unreachable])
    text = str(caught.value)
    assert f"{sockets.format_address(refused[1])}: it refused the connection" in text
    assert "255.255.255.255:9: " in text


async def test_a_name_without_addresses_fails_with_a_sentence(reactor: Reactor) -> None:
    with pytest.raises(OSError, match="its name has no address"):
        await connect_to_first(reactor, [])


async def test_a_socket_that_connected_to_itself_counts_as_refused(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        itself = probe.getsockname()

    def start_connect(family: socket.AddressFamily, sockaddr: sockets.SockAddr) -> socket.SocketType:
        sock = socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(sockaddr)  # what the kernel does by chance, once in some thousand attempts
        sock.connect_ex(sockaddr)
        return sock

    monkeypatch.setattr(sockets, "start_connect", start_connect)
    monkeypatch.setattr(sockets, "_ephemeral_ports", lambda: (1, 65535))
    with no_descriptor_leak(), pytest.raises(OSError, match="nothing listens on that port"):
        await connect_to_first(reactor, [(socket.AF_INET, itself)])


def test_equal_failures_are_told_once() -> None:
    error = OSError(errno.ECONNREFUSED, "")
    assert describe_failures([(("192.0.2.1", 80), error), (("192.0.2.2", 80), error)]) == "it refused the connection"
