"""The address of a visitor keeps its meaning on the wire."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.visitor_address import UNKNOWN, pack_address, unpack_address


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_an_address_round_trips_and_a_mapped_one_becomes_ipv4(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    peer = (str(ip), port) if ip.version == 4 else (str(ip), port, 0, 0)
    packed = pack_address(peer)
    expected = getattr(ip, "ipv4_mapped", None) or ip
    assert len(packed) == (6 if expected.version == 4 else 18)
    unpacked = unpack_address(packed)
    assert unpacked is not None
    assert (ipaddress.ip_address(unpacked[0]), unpacked[1]) == (expected, port)


def test_a_zone_stays_on_its_host() -> None:
    assert unpack_address(pack_address(("fe80::1%eth0", 80, 0, 2))) == ("fe80::1", 80)
    assert unpack_address(pack_address(("::ffff:192.0.2.1", 80, 0, 0))) == ("192.0.2.1", 80)


@pytest.mark.parametrize("peer", ["", b"", None, ("", 1), ("name", 1), ("::zz", 1)])
def test_anything_but_an_ip_address_is_unknown(peer: object) -> None:
    assert pack_address(peer) == UNKNOWN


@pytest.mark.parametrize("packed", [UNKNOWN, b"12345", bytes(19), bytes(255)])
def test_an_address_of_another_length_is_not_known_here(packed: bytes) -> None:
    assert unpack_address(packed) is None
