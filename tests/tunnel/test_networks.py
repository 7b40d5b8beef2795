"""Sets of networks: parsed, printed and looked up as the standard library does it."""

from __future__ import annotations

import ipaddress
import pickle
import random
import socket
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.model.errors import InvalidValueError
from tunnel.model.networks import NO_NETWORKS, NetworkSet, format_network, parse_network
from tunnel.model.visitor_option_types import MAX_NETWORKS, NetworksType, VisitorRateType
from tunnel.protocol.visitor_address import pack_host

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
TYPE = NetworksType()


def parse(text: str) -> NetworkSet:
    return TYPE.parse(text, Path())


@st.composite
def networks(draw: st.DrawFn) -> IpNetwork:
    """Networks that often overlap: few distinct first bits."""
    bits = draw(st.sampled_from((32, 128)))
    prefix = draw(st.integers(0, bits))
    number = draw(st.integers(0, 7)) << (bits - 3) | draw(st.integers(0, 3))
    host_bits = bits - prefix
    packed = (number >> host_bits << host_bits).to_bytes(bits // 8)
    return ipaddress.ip_network((packed, prefix))


def mentioned_addresses(networks: list[IpNetwork]) -> list[IpAddress]:
    """Return addresses at and next to the ends of networks."""
    found: list[IpAddress] = [ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::")]
    for network in networks:
        for number in (int(network[0]), int(network[-1])):
            nearby = (number - 1, number, number + 1)
            found += (type(network[0])(near) for near in nearby if 0 <= near < 1 << network.max_prefixlen)
    return found


def unmapped(address: IpAddress) -> IpAddress:
    return (address.ipv4_mapped if address.version == 6 else None) or address


@given(st.lists(networks(), max_size=12))
@example(listed=[ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("192.0.2.7/32")])
def test_a_set_contains_the_addresses_that_the_standard_library_finds_in_it(listed: list[IpNetwork]) -> None:
    listed = [one for one in listed if one.version == 4 or not one.subnet_of(MAPPED)]
    found = NetworkSet.of(parse_network(str(network)) for network in listed)
    for address in map(unmapped, mentioned_addresses(listed)):
        expected = any(address in network for network in listed if network.version == address.version)
        assert (pack_host(str(address)) in found) is expected, address


@given(networks())
def test_a_network_is_printed_as_the_standard_library_prints_it(network: IpNetwork) -> None:
    parsed = parse_network(str(network))
    if network.version == 4:
        assert format_network(parsed) == str(network).removesuffix("/32")
    assert parse_network(format_network(parsed)) == parsed


@given(st.lists(networks(), max_size=12))
def test_equal_sets_are_equal_whatever_their_order_and_survive_a_process_border(listed: list[IpNetwork]) -> None:
    one, other = (NetworkSet.of(map(parse_network, map(str, part))) for part in (listed, reversed(listed + listed)))
    assert one == other == pickle.loads(pickle.dumps(one))  # noqa: S301  made here
    assert parse(TYPE.format(one)) == one


@given(st.text(alphabet="0123456789abcdef:./ ,x%", max_size=30))
def test_a_text_is_a_list_of_networks_or_a_fault_that_quotes_it(text: str) -> None:
    try:
        found = parse(text)
    except InvalidValueError:
        return
    for network in found.networks:
        ipaddress.ip_network(format_network(network))


def test_an_ipv4_mapped_network_is_the_ipv4_one() -> None:
    assert parse("::ffff:192.0.2.0/120, ::ffff:198.51.100.7") == parse("192.0.2.0/24 198.51.100.7")
    assert pack_host("192.0.2.1") in parse("::ffff:192.0.2.0/120")
    assert pack_host("::ffff:192.0.2.1") in parse("192.0.2.0/24")
    assert pack_host("192.0.2.1") not in parse("::/0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8 or 10.0.0.1"),
        ("2001:db8::1/64", "write 2001:db8::/64 or 2001:db8::1"),
        ("10.0.0.0/33", "'10.0.0.0/33' has no prefix length from 0 to 32"),
        ("10.0.0.0/", "no prefix length"),
        ("10.0.0.0/-1", "no prefix length"),
        ("10.0.0/8", "'10.0.0/8' is not a network, as in 192.0.2.0/24"),
        ("example.com", "is not a network"),
        ("fe80::1%eth0", "is not a network"),
        ("1\0.2.3.4", "is not a network"),
        ("", "the list has no network; name one, or write none"),
        (" , ", "the list has no network"),
        ("1" * 200, "is not a network"),
    ],
)
def test_a_fault_in_a_list_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 160


def test_none_replaces_a_list_and_an_unknown_address_is_in_no_network() -> None:
    assert parse("none") == NO_NETWORKS == NetworkSet()
    assert not NO_NETWORKS
    assert b"" not in parse("0.0.0.0/0, ::/0")


def test_a_list_has_a_bound() -> None:
    with pytest.raises(InvalidValueError, match="more than 100000 networks"):
        parse("10.0.0.1," * (MAX_NETWORKS + 1))


def test_ten_thousand_networks_are_parsed_and_looked_up() -> None:
    numbers = random.Random(7).sample(range(1 << 24), 10_000)
    found = parse(",".join(f"{socket.inet_ntoa((number << 8).to_bytes(4))}/24" for number in numbers))
    assert len(found) == 10_000
    present = set(numbers)
    for number in (*numbers[:500], *range(500)):
        assert (pack_host(socket.inet_ntoa((number << 8 | 9).to_bytes(4))) in found) is (number in present)


@pytest.mark.parametrize("value", [7, None, ["10.0.0.0/8", 3]])
def test_what_is_no_text_is_no_list_of_networks(value: object) -> None:
    with pytest.raises(InvalidValueError, match="not a list of networks"):
        TYPE.parse(value, Path())


def test_a_set_of_networks_is_itself_a_value() -> None:
    found = parse("10.0.0.0/8")
    assert TYPE.parse(found, Path()) is found


def test_long_lists_are_described_by_their_numbers() -> None:
    small, large = parse("10.0.0.0/8"), parse(",".join(f"10.0.0.{number}" for number in range(20)))
    assert TYPE.shorten(small) == "10.0.0.0/8"
    assert TYPE.shorten(large) == "20 networks"
    assert TYPE.describe_change(small, NO_NETWORKS) == "10.0.0.0/8 → none"
    assert TYPE.describe_change(small, large) == "20 networks, 20 added and 1 removed"


@given(st.integers(0, 1_000_000), st.integers(0, 999_999))
def test_a_rate_of_visitors_is_printed_as_it_can_be_written(whole: int, millionths: int) -> None:
    kind = VisitorRateType()
    value = min(1_000_000.0, whole + millionths / 1_000_000)
    assert kind.parse(kind.format(value), Path()) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("value", [True, None, "", "-1", "1e3", "nan", "inf", "1000001", "5/s", [1]])
def test_what_is_no_rate_of_visitors_is_a_fault(value: object) -> None:
    with pytest.raises(InvalidValueError):
        VisitorRateType().parse(value, Path())
