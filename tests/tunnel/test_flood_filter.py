"""The filter that lets the kernel drop datagrams of strangers: its program, run by an interpreter, and real sockets."""

from __future__ import annotations

import operator
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunnel.model.networks import NO_NETWORKS, NetworkSet, parse_network
from tunnel.runtime.flood_filter import (
    MAX_FLOWS,
    MAX_INSTRUCTIONS,
    MAX_NETWORKS,
    SourceHash,
    attach_filter,
    build_program,
    count_drops,
    detach_filter,
    find_max_instructions,
)

WORD = 0xFFFF_FFFF
RANDOM = -0x1000 + 56 & WORD
NETWORK_HEADER = -0x10_0000 & WORD
HASH = SourceHash((0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D, 0x27D4_EB2F, 0x1656_67B1))

COMPARISONS = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge}

addresses4 = st.ip_addresses(v=4).map(str)
addresses6 = st.ip_addresses(v=6).map(str).filter(lambda host: not host.startswith("::ffff:"))
sources = st.tuples(st.one_of(addresses4, addresses6), st.integers(0, 0xFFFF))


def headers(host: str) -> bytes:
    """The IP header of a packet of this source."""
    if ":" in host:
        return b"\x60" + bytes(7) + socket.inet_pton(socket.AF_INET6, host) + bytes(16)
    return b"\x45" + bytes(11) + socket.inet_aton(host) + bytes(4)


def run(program: bytes, host: str, port: int, random: int = 0) -> tuple[bool, int]:
    """Run a program for a datagram; return whether it is accepted, and the number of instructions that were run."""
    code = list(struct.iter_unpack("=HBBI", program))
    datagram, packet = struct.pack("!H", port) + bytes(6), headers(host)
    a = x = at = steps = 0

    def load(offset: int, size: int) -> int:
        if offset == RANDOM:
            return random
        data = packet[offset - NETWORK_HEADER :] if offset >= NETWORK_HEADER else datagram[offset:]
        assert len(data) >= size
        return int.from_bytes(data[:size])

    while True:
        operation, if_true, if_false, k = code[at]
        at, steps = at + 1, steps + 1
        match operation:
            case 0x20 | 0x28 | 0x30:
                a = load(k, {0x20: 4, 0x28: 2, 0x30: 1}[operation])
            case 0x05:
                at += k
            case 0x15 | 0x25 | 0x35:
                at += if_true if COMPARISONS[operation](a, k) else if_false
            case 0x0C:
                a = a + x & WORD
            case 0x24:
                a = a * k & WORD
            case 0x54:
                a &= k
            case 0x74:
                a >>= k
            case 0x07:
                x = a
            case 0x06:
                assert k in {0, WORD}
                return k == WORD, steps
            case _:
                raise AssertionError(f"an instruction that no program has: {operation:#x}")


def numbers_of(peers: Sequence[tuple[str, int]]) -> list[int]:
    return [HASH.number_of(peer) for peer in peers]


@given(st.lists(sources, max_size=80), st.lists(sources, max_size=10), st.integers(0, WORD), st.floats(0, 0.99))
@settings(max_examples=50)
def test_present_flows_are_accepted_and_strangers_by_lot(
    present: list[tuple[str, int]], strangers: list[tuple[str, int]], random: int, share: float
) -> None:
    numbers = numbers_of(present)
    program = build_program(HASH, numbers, share)
    for peer in present:
        assert run(program, *peer, WORD)[0]
    for peer in strangers:
        if HASH.number_of(peer) not in numbers:
            assert run(program, *peer, random)[0] == (random < round(share * (1 << 32)))


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_the_share_of_strangers_is_exact_at_its_ends(share: float) -> None:
    program = build_program(HASH, [], share)
    bound = round(share * (1 << 32))
    for random in {0, max(0, bound - 1), min(WORD, bound), WORD}:
        assert run(program, "192.0.2.1", 5, random)[0] == (random < bound)


@pytest.mark.parametrize("count", [1, 16, 17, 255, 1_024, 3_000, 4_096, MAX_FLOWS])
def test_a_program_for_many_flows_fits_and_knows_each(count: int) -> None:
    peers = [(f"10.{n >> 8 & 255}.{n & 255}.{n % 7}", 1_000 + n) for n in range(count)]
    deny = NetworkSet.of(parse_network(f"2001:db8:{n:x}::1") for n in range(MAX_NETWORKS))
    numbers = numbers_of(peers)
    program = build_program(HASH, numbers, 0.0, deny=deny)
    assert len(program) // 8 <= MAX_INSTRUCTIONS
    for peer in (*peers[:: max(1, count // 200)], peers[-1]):
        is_accepted, steps = run(program, *peer, WORD)
        assert is_accepted
        assert steps < 100
    strangers = [(f"172.16.{n & 255}.9", n) for n in range(500)]
    passed = sum(run(program, *peer, WORD)[0] for peer in strangers if HASH.number_of(peer) not in numbers)
    assert passed == 0 if count <= 1_024 else passed < 400


@pytest.mark.parametrize("memory", ["20480", "131072", "none", None])
def test_a_program_is_no_longer_than_the_memory_for_options(
    memory: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "optmem_max"
    if memory is not None:
        path.write_text(memory + "\n")
    monkeypatch.setattr("tunnel.runtime.flood_filter._OPTION_MEMORY", path)
    longest = find_max_instructions()
    assert longest == (MAX_INSTRUCTIONS if memory == "131072" else 2_432)
    for count in (1_024, MAX_FLOWS):
        numbers = numbers_of([(f"10.0.{n >> 8}.{n & 255}", 99) for n in range(count)])
        program = build_program(HASH, numbers, 0.0, max_instructions=longest)
        assert len(program) // 8 <= longest
        assert run(program, "10.0.3.255", 99, WORD)[0]


def test_a_mapped_address_is_the_one_of_ipv4_and_a_zone_means_nothing() -> None:
    assert HASH.number_of(("::ffff:192.0.2.7", 9, 0, 0)) == HASH.number_of(("192.0.2.7", 9))
    assert HASH.number_of(("fe80::1%lo", 9, 0, 1)) == HASH.number_of(("fe80::1", 9, 0, 1))


@given(st.integers(0, 2**31 - 1), st.integers(0, 65_535))
def test_addresses_that_differ_in_the_first_bit_alone_have_different_numbers(address: int, port: int) -> None:
    peers = [(socket.inet_ntoa(each.to_bytes(4)), port) for each in (address, address | 1 << 31)]
    assert HASH.number_of(peers[0]) != HASH.number_of(peers[1])


def test_each_process_has_a_hash_of_its_own() -> None:
    multipliers = SourceHash().multipliers
    assert all(one % 2 and one <= WORD for one in multipliers)
    assert multipliers != SourceHash().multipliers


networks = st.one_of(
    st.tuples(st.integers(0, WORD), st.integers(0, 32)).map(
        lambda one: ((one[0] >> (32 - one[1]) << (32 - one[1])).to_bytes(4), one[1])
    ),
    st.tuples(st.integers(0, (1 << 128) - 1), st.integers(0, 128)).map(
        lambda one: ((one[0] >> (128 - one[1]) << (128 - one[1])).to_bytes(16), one[1])
    ),
).map(lambda one: NetworkSet.of([one]).networks[0])
sets = st.lists(networks, max_size=6).map(NetworkSet.of)


@given(sets, sets, st.lists(sources, max_size=5), st.integers(0, WORD))
@example(NO_NETWORKS, NetworkSet.of([parse_network("0.0.0.0/0")]), [("192.0.2.1", 1), ("2001:db8::1", 1)], 0)
@settings(max_examples=100)
def test_strangers_of_refused_networks_are_dropped(
    allow: NetworkSet, deny: NetworkSet, strangers: list[tuple[str, int]], random: int
) -> None:
    program = build_program(HASH, [], 0.5, allow, deny)
    ends = [
        (socket.inet_ntop(socket.AF_INET if len(one) == 4 else socket.AF_INET6, one), 7)
        for one, _ in (*allow.networks, *deny.networks)
    ]
    for host, port in [*strangers, *ends]:
        if host.startswith("::ffff:"):
            continue
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        is_admitted = packed not in deny and (not allow or packed in allow)
        assert run(program, host, port, random)[0] == (is_admitted and random < 1 << 31)


def test_lists_that_are_too_long_are_left_to_the_process() -> None:
    deny = NetworkSet.of(parse_network(f"192.0.{n}.0/24") for n in range(MAX_NETWORKS + 1))
    assert run(build_program(HASH, [], 1.0, deny=deny), "192.0.2.1", 1)[0]


# --- in the kernel ----------------------------------------------------------------------------------------------------


@contextmanager
def bound_sockets(*hosts: str) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        found = []
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            if host == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, 0))
            sock.setblocking(False)
            found.append(sock)
        yield found


def received(sock: socket.socket) -> list[bytes]:
    """What has arrived: on loopback a datagram is in the queue, or dropped, once it is sent."""
    found = []
    try:
        while True:
            found.append(sock.recv(99))
    except BlockingIOError:
        return found


@pytest.mark.parametrize(("server", "visitor"), [("127.0.0.1", "127.0.0.2"), ("::1", "::1"), ("::", "127.0.0.3")])
def test_the_kernel_drops_and_counts_strangers_until_the_filter_is_detached(server: str, visitor: str) -> None:
    with bound_sockets(server, visitor, visitor) as (sock, known, stranger):
        place = (visitor if server == "::" else server, sock.getsockname()[1])
        known.sendto(b"first", place)
        _, peer = sock.recvfrom(99)
        for deny in (NO_NETWORKS, NetworkSet.of([parse_network(visitor)])):
            before = count_drops(sock)
            attach_filter(sock, build_program(HASH, [HASH.number_of(peer)], 0.0, deny=deny))
            for _ in range(3):
                known.sendto(b"known", place)
                stranger.sendto(b"stranger", place)
            assert received(sock) == [b"known"] * 3
            assert count_drops(sock) - before == 3
        detach_filter(sock)
        stranger.sendto(b"stranger", place)
        assert received(sock) == [b"stranger"]


def test_the_kernel_takes_the_longest_program_and_lets_a_share_through() -> None:
    with bound_sockets("127.0.0.1", "127.0.0.1") as (sock, stranger):
        numbers = numbers_of([("10.0.0.1", port) for port in range(4_096)])
        program = build_program(HASH, numbers, 0.5)
        assert len(program) // 8 > MAX_INSTRUCTIONS * 0.9
        attach_filter(sock, program)
        attach_filter(sock, build_program(HASH, [], 0.5))
        for _ in range(400):
            stranger.sendto(b"x", sock.getsockname())
        assert 100 < len(received(sock)) < 300


def test_a_socket_without_a_filter_has_none_to_detach() -> None:
    with bound_sockets("127.0.0.1") as (sock,), pytest.raises(FileNotFoundError):
        detach_filter(sock)
