"""PROXY headers: what is sent can be read, and whatever arrives is a header, the start of one, or refused."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.spec import ProxyVersion
from tunnel.protocol.proxy_header import (
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    crc32c,
    encode_header,
    parse_header,
)
from tunnel.protocol.visitor_address import pack_address

IPV4 = ("192.0.2.7", 4711)
IPV6 = ("2001:db8::7", 4711)
BLOCK4 = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 4711, 80)
LINE = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n"


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(rest: bytes, command: int = 0x21, transport: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, transport)) + struct.pack("!H", len(rest)) + rest


def with_checksum(rest: bytes, change: int = 0, **head: int) -> bytes:
    """Return a header whose last TLV is its checksum, plus ``change``."""
    header = v2(rest + tlv(3, bytes(4)), **head)
    return header[:-4] + (crc32c(header) ^ change).to_bytes(4)


# --- out ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "line"),
    [
        (IPV4, ("10.0.0.1", 80), b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n"),
        (IPV6, ("fd00::1", 80), b"PROXY TCP6 2001:db8::7 fd00::1 4711 80\r\n"),
        (IPV4, ("::1", 80), b"PROXY TCP4 192.0.2.7 0.0.0.0 4711 80\r\n"),
        (IPV6, ("10.0.0.1", 80), b"PROXY TCP6 2001:db8::7 :: 4711 80\r\n"),
        (IPV6, ("fe80::1%eth0", 80), b"PROXY TCP6 2001:db8::7 fe80::1 4711 80\r\n"),
        (None, ("10.0.0.1", 80), b"PROXY UNKNOWN\r\n"),
    ],
)
def test_a_line_of_version_1(source: object, target: tuple[str, int], line: bytes) -> None:
    assert encode_header(ProxyVersion.V1, pack_address(source), target, b"id") == line


def test_a_header_of_version_2_has_the_unique_id() -> None:
    header = encode_header(ProxyVersion.V2, pack_address(IPV4), ("10.0.0.1", 80), b"0123456789abcdef-7.1")
    assert header == v2(BLOCK4 + tlv(5, b"0123456789abcdef-7.1"))


def test_a_header_for_a_datagram_says_so_and_is_read_as_one_without_a_connection() -> None:
    header = encode_header(ProxyVersion.V2, pack_address(IPV4), ("10.0.0.1", 80), b"", is_datagram=True)
    assert header == v2(BLOCK4 + tlv(5, b""), transport=0x12)
    assert parse_header(header) == ProxyHeader(len(header), None)


def test_an_unknown_visitor_is_local_without_addresses() -> None:
    assert encode_header(ProxyVersion.V2, b"", ("10.0.0.1", 80), b"id") == v2(b"", 0x20, 0)


@given(
    st.sampled_from([ProxyVersion.V1, ProxyVersion.V2]),
    st.tuples(
        st.ip_addresses().filter(lambda ip: ip.version == 4 or not ip.ipv4_mapped).map(str), st.integers(0, 65535)
    ),
    st.tuples(st.ip_addresses().map(str), st.integers(0, 65535)),
    st.binary(max_size=40),
    st.data(),
)
def test_what_is_sent_is_read_again_in_whatever_pieces(
    version: ProxyVersion, source: tuple[str, int], target: tuple[str, int], rest: bytes, data: st.DataObject
) -> None:
    header = encode_header(version, pack_address(source), target, b"an-id")
    end = data.draw(st.integers(0, len(header) - 1))
    assert parse_header(header[:end]) is None
    parsed = parse_header(header + rest)
    assert parsed == ProxyHeader(len(header), source, b"an-id" if version is ProxyVersion.V2 else b"")


# --- in: version 1 ------------------------------------------------------------------------------------------------


def test_the_longest_line_is_read_and_a_longer_one_refused() -> None:
    longest = b"PROXY UNKNOWN " + b"f" * (MAX_V1_BYTES - 16) + b"\r\n"
    assert len(longest) == MAX_V1_BYTES
    assert parse_header(longest) == ProxyHeader(MAX_V1_BYTES, None)
    with pytest.raises(ProxyHeaderError, match="longer than 107 bytes"):
        parse_header(b"PROXY UNKNOWN " + b"f" * (MAX_V1_BYTES - 15) + b"\r\n")
    with pytest.raises(ProxyHeaderError, match="longer than 107 bytes"):
        parse_header(b"PROXY " + b"x" * 200)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\n",
        b"PROXY \n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80 \r\n",
        b"PROXY TCP4  192.0.2.7 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.07 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 ::1 10.0.0.1 4711 80\r\n",
        b"PROXY TCP6 192.0.2.7 10.0.0.1 4711 80\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 04711 80\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 80\r\n",
        b"PROXY TCP4 192.0.2.\0 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.\xff 10.0.0.1 4711 80\r\n",
        b"PROXY TCP5 192.0.2.7 10.0.0.1 4711 80\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"proxy TCP4 192.0.2.7 10.0.0.1 4711 80\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
        b"PROXYX",
    ],
)
def test_a_line_that_does_not_match_the_protocol_exactly_is_refused(line: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse_header(line)


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:: what ever\r\n"])
def test_unknown_means_the_address_of_the_connection(line: bytes) -> None:
    assert parse_header(line + b"rest") == ProxyHeader(len(line), None)


# --- in: version 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "command", "transport", "source"),
    [
        (BLOCK4, 0x21, 0x11, IPV4),
        (BLOCK4, 0x20, 0x11, None),
        (BLOCK4 + b"\xff", 0x20, 0xFF, None),
        (b"", 0x20, 0, None),
        (b"", 0x21, 0, None),
        (bytes(7), 0x21, 0, None),
        (BLOCK4, 0x21, 0x12, None),
        (BLOCK4, 0x21, 0x10, None),
        (bytes(216), 0x21, 0x31, None),
        (BLOCK4 + tlv(4, b"") + tlv(0x20, bytes(300)), 0x21, 0x11, IPV4),
        (socket.inet_pton(socket.AF_INET6, IPV6[0]) + bytes(16) + BLOCK4[8:], 0x21, 0x21, IPV6),
    ],
)
def test_a_valid_header_has_the_visitors_address_or_none(
    rest: bytes, command: int, transport: int, source: tuple[str, int] | None
) -> None:
    header = v2(rest, command, transport)
    assert parse_header(header + b"more") == ProxyHeader(len(header), source)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (v2(BLOCK4, 0x11), "unknown version or command"),
        (v2(BLOCK4, 0x22), "unknown version or command"),
        (v2(BLOCK4, 0x21, 0x41), "unknown family"),
        (v2(BLOCK4, 0x21, 0x13), "unknown family"),
        (v2(BLOCK4[:-1]), "too short"),
        (v2(BLOCK4, 0x21, 0x21), "too short"),
        (v2(BLOCK4 + b"\1"), "malformed TLV"),
        (v2(BLOCK4 + b"\1\0\2x"), "malformed TLV"),
        (v2(BLOCK4 + tlv(3, b"123")), "malformed TLV"),
        (v2(bytes(MAX_V2_BYTES))[:16], "bytes, more than 4096"),
        (with_checksum(BLOCK4, 1), "wrong checksum"),
        (with_checksum(b"", 1, command=0x20, transport=0), "wrong checksum"),
        (SIGNATURE[:-1] + b"X", "does not start with"),
    ],
)
def test_an_invalid_header_is_refused(header: bytes, words: str) -> None:
    with pytest.raises(ProxyHeaderError, match=words):
        parse_header(header)


def test_a_right_checksum_and_a_unique_id_are_read() -> None:
    assert crc32c(b"123456789") == 0xE3069283, "the check value of CRC-32C"
    header = with_checksum(BLOCK4 + tlv(5, b"balancer-17"))
    assert parse_header(header) == ProxyHeader(len(header), IPV4, b"balancer-17")
    local = with_checksum(b"", command=0x20, transport=0)
    assert parse_header(local) == ProxyHeader(len(local), None)


@given(st.binary(max_size=300), st.integers(0, 15))
def test_any_bytes_are_a_header_a_start_of_one_or_refused(rest: bytes, keep: int) -> None:
    for data in (rest, LINE[:keep] + rest, v2(rest)[: 12 + keep] + rest, v2(BLOCK4 + rest)):
        try:
            parsed = parse_header(data)
        except ProxyHeaderError:
            continue
        if parsed is not None:
            assert parse_header(data[: parsed.size]) == parsed
            assert parse_header(data[: parsed.size - 1]) is None
        else:
            assert len(data) < MAX_V2_BYTES
