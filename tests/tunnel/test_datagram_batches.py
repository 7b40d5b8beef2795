"""Datagrams that are sent and received together, over real sockets."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.runtime import datagram_batches
from tunnel.runtime.datagram_batches import (
    ANCILLARY_SPACE,
    DatagramSender,
    can_send_pieces,
    count_datagrams,
    receive_pieces,
    split_piece,
)
from tunnel.runtime.datagram_sockets import FLOW_BUFFER_BYTES, enlarge_receive_buffer

_SO_RCVBUFFORCE = 33
_SO_NO_CHECK = 11  # asm-generic/socket.h: without checksums the kernel divides nothing
LONGEST = 65_507
EMPTY_LAST = [bytes(100), bytes(100), b""]

BATCHES = {
    "equal": [bytes([n]) * 1200 for n in range(40)],
    "a shorter last one": [*(bytes([n]) * 300 for n in range(7)), b"short"],
    "a longer last one": [*(bytes([n]) * 300 for n in range(7)), bytes(301)],
    "single bytes": [bytes([n]) for n in range(150)],
    "an empty last one": EMPTY_LAST,
    "empty ones": [b"", b"", b"x"],
    "of all sizes": [bytes([n % 251]) * n for n in (5, 5, 9, 9, 9, 2, 2, 700, 1, 1400, 1400, 3)],
    "more than one piece holds": [bytes([n]) * 1300 for n in range(130)],
    "the longest": [bytes(LONGEST), bytes(LONGEST), b"x"],
    "half as long": [bytes(32_000)] * 3,
}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that is connected to another one, which receives pieces."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receive_pieces(receiver)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        for sock in (sender, receiver):
            sock.setblocking(False)
        yield sender, receiver


def receive(sock: socket.socket, count: int) -> list[bytes]:
    """Return so many datagrams."""
    found: list[bytes] = []
    buffer = memoryview(bytearray(1 << 17))
    while len(found) < count:
        assert select.select([sock], [], [], 5)[0], f"{len(found)} of {count} have arrived"
        got, received, _flags, _peer = sock.recvmsg_into((buffer,), ANCILLARY_SPACE)
        datagrams = split_piece(buffer[:got], received)
        assert count_datagrams(got, received) == len(datagrams)
        found += datagrams
    return found


def send_and_receive(sender: DatagramSender, receiver: socket.socket, datagrams: list[bytes]) -> int:
    """Send all datagrams, of which the receiver gets each; return the number of calls."""
    start = calls = 0
    while start < len(datagrams):
        sent = sender.send(datagrams, start)
        assert receive(receiver, sent) == datagrams[start : start + sent]
        start, calls = start + sent, calls + 1
    return calls


@pytest.mark.parametrize("name", BATCHES)
def test_all_datagrams_of_a_batch_arrive_as_they_are(name: str, pair: tuple[socket.socket, socket.socket]) -> None:
    send_and_receive(DatagramSender(pair[0]), pair[1], BATCHES[name])


@given(st.lists(st.integers(0, 3000).flatmap(lambda size: st.just(bytes(size))), min_size=1, max_size=80))
def test_any_batch_arrives_as_it_is(datagrams: list[bytes]) -> None:
    with contextlib.contextmanager(pair.__wrapped__)() as (sender, receiver):  # type: ignore[attr-defined]
        send_and_receive(DatagramSender(sender), receiver, datagrams)


@pytest.mark.skipif(not can_send_pieces(), reason="the kernel has no UDP_SEGMENT")
def test_equal_datagrams_leave_with_one_call(pair: tuple[socket.socket, socket.socket]) -> None:
    calls = {name: send_and_receive(DatagramSender(pair[0]), pair[1], batch) for name, batch in BATCHES.items()}
    assert calls == {
        "equal": 1,
        "a shorter last one": 1,
        "a longer last one": 2,
        "single bytes": 3,
        "an empty last one": 2,
        "empty ones": 3,
        "of all sizes": 5,
        "more than one piece holds": 3,
        "the longest": 3,
        "half as long": 2,
    }


def test_a_kernel_without_pieces_gets_datagrams_one_by_one(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(datagram_batches, "_UDP_SEGMENT", 9999)  # an option that no kernel has
        can_send_pieces.cache_clear()
        assert not can_send_pieces()
        batch = BATCHES["equal"]
        assert send_and_receive(DatagramSender(pair[0]), pair[1], batch) == len(batch)
    can_send_pieces.cache_clear()


def test_where_the_kernel_refuses_a_piece_its_datagrams_leave_one_by_one_for_some_time(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
    sender, batch = DatagramSender(pair[0]), BATCHES["equal"]
    assert send_and_receive(sender, pair[1], batch) == len(batch)
    assert sender._max_size < len(batch[0])
    pair[0].setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 0)
    assert send_and_receive(sender, pair[1], batch) == len(batch)
    sender._limited_until = 0.0
    if can_send_pieces():
        assert send_and_receive(sender, pair[1], batch) == 1


def test_an_icmp_error_costs_no_datagram_of_a_later_batch(pair: tuple[socket.socket, socket.socket]) -> None:
    address, batch = pair[1].getsockname(), BATCHES["a shorter last one"]
    pair[1].close()
    pair[0].send(b"nothing listens")
    sender = DatagramSender(pair[0])
    with pytest.raises(ConnectionRefusedError):
        sender.send(batch)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        assert sender.send(batch) == len(batch)
        assert [receiver.recv(2000) for _ in batch] == batch


def test_a_datagram_that_no_socket_takes_is_refused_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    sender = DatagramSender(pair[0])
    for _ in range(2):
        with pytest.raises(OSError, match="too long"):
            sender.send([bytes(LONGEST + 1)] * 2)
    assert send_and_receive(sender, pair[1], BATCHES["half as long"]) == 2


class UnprivilegedSocket(socket.socket):
    """A socket of a process without CAP_NET_ADMIN."""

    error = OSError(errno.EPERM, "Operation not permitted")

    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
        if (level, option) == (socket.SOL_SOCKET, _SO_RCVBUFFORCE):
            raise self.error
        super().setsockopt(level, option, value)


class SandboxedSocket(UnprivilegedSocket):
    """A socket in a sandbox that does not know SO_RCVBUFFORCE."""

    error = OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_a_receive_buffer_is_enlarged_as_far_as_the_kernel_allows_it() -> None:
    sizes = []
    for kind in (socket.socket, UnprivilegedSocket, SandboxedSocket):
        with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            enlarge_receive_buffer(sock, FLOW_BUFFER_BYTES)
            sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
            assert sizes[-1] >= before
    assert sizes[0] >= sizes[1] == sizes[2]


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_socket_that_is_not_connected_sends_batches_to_an_address(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock, socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((host, 0))
        batch = BATCHES["a shorter last one"]
        assert DatagramSender(sock).send(batch, 2, (), receiver.getsockname()) == len(batch) - 2
        receive_pieces(receiver)
        assert receive(receiver, len(batch) - 2) == batch[2:]
