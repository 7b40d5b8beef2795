"""The header of the PROXY protocol, versions 1 and 2: encoded for a target, parsed from a balancer. No I/O.

Source of the rules: doc/proxy-protocol.txt of HAProxy (haproxy.org), revision of 2026-04-27; § means its sections.
"""

from __future__ import annotations

import re
import socket
import struct
from functools import cache
from typing import Final, NamedTuple

from tunnel.model.errors import TunnelError
from tunnel.model.spec import ProxyVersion
from tunnel.protocol.visitor_address import UNKNOWN, unpack_address

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first bytes of version 2 (§2.2)."""
MAX_V1_BYTES: Final = 107
"""The longest line of version 1, with its CRLF (§2.1)."""
MAX_V2_BYTES: Final = 4096
"""A bound of ours: 16 bits would permit 65,551 bytes. A visitor's certificate (§2.2.6) needs some thousand."""
MAX_UNIQUE_ID_BYTES: Final = 128  # §2.2.5

_V1_START: Final = b"PROXY "
_V2_FIXED_BYTES: Final = 16
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_FAMILIES: Final = {0x11: socket.AF_INET, 0x21: socket.AF_INET6}  # TCP over IPv4, over IPv6
_ADDRESS_BYTES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
_BLOCK_BYTES: Final = {1: 12, 2: 36, 3: 216}  # of the addresses, by the upper half of the 14th byte
_MAX_FAMILY, _MAX_TRANSPORT = 3, 2
_CRC32C, _UNIQUE_ID = 0x03, 0x05  # types of TLVs
_TLV_HEAD: Final = struct.Struct("!BH")
_PORTS: Final = struct.Struct("!HH")
_LENGTH: Final = struct.Struct("!H")
_PORT_TEXT: Final = re.compile(r"0|[1-9][0-9]{0,4}")


class ProxyHeaderError(TunnelError):
    """A connection starts with bytes that are no header; the message is the end of a sentence."""


class ProxyHeader(NamedTuple):
    """A header that was parsed."""

    size: int
    """bytes of it; what follows is the visitor's"""
    source: tuple[str, int] | None
    """the visitor's address; None: use that of the connection (LOCAL, UNKNOWN, families other than TCP over IP)"""
    unique_id: bytes = b""
    """the balancer's id of the connection (§2.2.5), empty if it sent none"""


# --- out --------------------------------------------------------------------------------------------------------------


def encode_header(
    version: ProxyVersion, source: bytes, destination: tuple[str, int], unique_id: bytes, *, is_datagram: bool = False
) -> bytes:
    """Return the header for a target; ``is_datagram``: for each datagram of a UDP flow, in version 2 (§2.2).

    ``source`` is the visitor's packed address, empty if it is not known: UNKNOWN, or LOCAL. ``destination`` is where
    the target was dialled. If that is of the other IP version, the unspecified address stands in its place.
    """
    address = unpack_address(source)
    if address is None:
        return b"PROXY UNKNOWN\r\n" if version is ProxyVersion.V1 else SIGNATURE + bytes((_LOCAL, 0, 0, 0))
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    target = destination[0].partition("%")[0]
    if (":" in target) is not (family is socket.AF_INET6):
        target = "::" if family is socket.AF_INET6 else "0.0.0.0"
    if version is ProxyVersion.V1:
        name = "TCP6" if family is socket.AF_INET6 else "TCP4"
        return f"PROXY {name} {host} {target} {port} {destination[1]}\r\n".encode()
    addresses = source[_LENGTH.size :] + socket.inet_pton(family, target) + _PORTS.pack(port, destination[1])
    rest = addresses + _TLV_HEAD.pack(_UNIQUE_ID, len(unique_id)) + unique_id
    transport = (0x21 if family is socket.AF_INET6 else 0x11) + is_datagram
    return SIGNATURE + bytes((_PROXY, transport)) + _LENGTH.pack(len(rest)) + rest


def encode_check_header(version: ProxyVersion) -> bytes:
    """Return the header of a connection that a health check makes, not a visitor: UNKNOWN, or LOCAL (§2.2)."""
    return b"" if version is ProxyVersion.OFF else encode_header(version, UNKNOWN, ("", 0), b"")


# --- in ---------------------------------------------------------------------------------------------------------------


def parse_header(data: bytes) -> ProxyHeader | None:
    """Parse the first bytes of a connection; None if more have to arrive. Raises ProxyHeaderError."""
    if data.startswith(SIGNATURE):
        return _parse_v2(data)
    if data.startswith(_V1_START):
        return _parse_v1(data)
    if SIGNATURE.startswith(data) or _V1_START.startswith(data):
        return None
    raise ProxyHeaderError("it does not start with a PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise ProxyHeaderError(f"its PROXY line is longer than {MAX_V1_BYTES} bytes")
        return None
    if data[end - 1] != ord("\r"):
        raise ProxyHeaderError("its PROXY line does not end with CR LF")
    fields = data[: end - 1].decode("latin-1").split(" ")
    if fields[1] == "UNKNOWN":  # what follows has to be ignored
        return ProxyHeader(end + 1, None)
    if len(fields) != 6 or fields[1] not in {"TCP4", "TCP6"}:
        raise ProxyHeaderError("its PROXY line is malformed")
    family = socket.AF_INET6 if fields[1] == "TCP6" else socket.AF_INET
    try:
        packed = [socket.inet_pton(family, text) for text in fields[2:4]]
    except (OSError, ValueError):
        raise ProxyHeaderError("its PROXY line has an invalid address") from None
    if not all(_PORT_TEXT.fullmatch(text) and int(text) <= 0xFFFF for text in fields[4:]):
        raise ProxyHeaderError("its PROXY line has an invalid port")
    return ProxyHeader(end + 1, (socket.inet_ntop(family, packed[0]), int(fields[4])))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_FIXED_BYTES:
        return None
    command, transport = data[12], data[13]
    if command not in {_LOCAL, _PROXY}:
        raise ProxyHeaderError(f"its PROXY header has an unknown version or command (0x{command:02x})")
    family, protocol = transport >> 4, transport & 15
    if command == _PROXY and (family > _MAX_FAMILY or protocol > _MAX_TRANSPORT):
        raise ProxyHeaderError(f"its PROXY header has an unknown family or transport (0x{transport:02x})")
    size = _V2_FIXED_BYTES + _LENGTH.unpack_from(data, 14)[0]
    if size > MAX_V2_BYTES:
        raise ProxyHeaderError(f"its PROXY header has {size} bytes, more than {MAX_V2_BYTES}")
    if len(data) < size:
        return None
    header = data[:size]
    if command == _LOCAL or family == 0:  # the addresses, of which the family says nothing, have to be ignored
        return ProxyHeader(size, None, _read_tlvs(header, _V2_FIXED_BYTES, is_strict=False))
    start = _V2_FIXED_BYTES + _BLOCK_BYTES[family]
    if size < start:
        raise ProxyHeaderError("its PROXY header is too short for its addresses")
    unique_id = _read_tlvs(header, start, is_strict=True)
    known = _FAMILIES.get(transport)
    if known is None:  # UNIX sockets, datagrams: valid, and no address of a visitor
        return ProxyHeader(size, None, unique_id)
    host = socket.inet_ntop(known, header[_V2_FIXED_BYTES : _V2_FIXED_BYTES + _ADDRESS_BYTES[known]])
    return ProxyHeader(size, (host, _PORTS.unpack_from(header, start - _PORTS.size)[0]), unique_id)


def _read_tlvs(header: bytes, at: int, *, is_strict: bool) -> bytes:
    """Verify the checksum if there is one, and return the unique id. Raises ProxyHeaderError.

    Where addresses of an unknown length may come first (not ``is_strict``), what looks malformed is ignored.
    """
    unique_id = b""
    while at < len(header):
        value_at = at + _TLV_HEAD.size
        kind, length = _TLV_HEAD.unpack_from(header, at) if value_at <= len(header) else (0, len(header))
        if value_at + length > len(header) or (kind == _CRC32C and length != 4):
            if is_strict:
                raise ProxyHeaderError("its PROXY header has a malformed TLV")
            return b""
        if kind == _CRC32C and not _has_checksum(header, value_at):
            raise ProxyHeaderError("its PROXY header has a wrong checksum")
        if kind == _UNIQUE_ID:
            unique_id = header[value_at : value_at + min(length, MAX_UNIQUE_ID_BYTES)]
        at = value_at + length
    return unique_id


def _has_checksum(header: bytes, at: int) -> bool:
    """Whether the checksum at this place is that of the header with zeros in its place (§2.2.3)."""
    zeroed = header[:at] + bytes(4) + header[at + 4 :]
    return int.from_bytes(header[at : at + 4]) == crc32c(zeroed)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of RFC 4960 appendix B, as HAProxy and RFC 3720 compute it."""
    table, value = _crc32c_table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901  the usual loop
        table.append(value)
    return tuple(table)
