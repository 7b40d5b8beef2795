"""Which visitors are admitted, decided without sockets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tunnel.engine.admission import Admission, AdmissionRules, NewVisitorRates
from tunnel.model.networks import NO_NETWORKS
from tunnel.model.refusals import VisitorRefusal
from tunnel.model.visitor_option_types import NetworksType
from tunnel.protocol.visitor_address import pack_host


def rules(allow: str = "none", deny: str = "none", max_per_address: int = 0, rate_new: float = 0) -> AdmissionRules:
    parse = NetworksType().parse
    return AdmissionRules(parse(allow, Path()), parse(deny, Path()), max_per_address, rate_new)


def admission(**values: object) -> Admission:
    return Admission(rules(**values), 0.0)  # type: ignore[arg-type]


def test_a_tunnel_without_rules_needs_no_admission() -> None:
    assert not AdmissionRules(NO_NETWORKS, NO_NETWORKS, 0, 0)
    assert all((rules(allow="::1"), rules(deny="::1"), rules(max_per_address=1), rules(rate_new=0.5)))


def test_deny_wins_over_allow() -> None:
    door = admission(allow="10.0.0.0/8", deny="10.1.0.0/16")
    assert door.admit(pack_host("10.2.0.1"), 0) is None
    for host, reason in (("10.1.0.1", "its address is in deny"), ("11.0.0.1", "its address is not in allow")):
        assert door.admit(pack_host(host), 0) is VisitorRefusal.ALLOW
        assert door.describe(VisitorRefusal.ALLOW, pack_host(host)) == reason


def test_with_deny_alone_all_others_are_admitted() -> None:
    door = admission(deny="2001:db8::/32")
    assert door.admit(pack_host("2001:db8::1"), 0) is VisitorRefusal.ALLOW
    assert door.admit(pack_host("2001:db9::1"), 0) is None
    assert door.admit(b"", 0) is None


def test_an_unknown_address_is_in_no_allow_list() -> None:
    assert admission(allow="0.0.0.0/0, ::/0").admit(b"", 0) is VisitorRefusal.ALLOW


def test_an_address_has_a_number_of_visitors_at_once() -> None:
    door = admission(max_per_address=2)
    one, other = pack_host("10.0.0.1"), pack_host("10.0.0.2")
    assert [door.admit(one, 0) for _ in range(3)] == [None, None, VisitorRefusal.PER_ADDRESS]
    assert door.admit(other, 0) is None
    door.leave(one)
    assert door.admit(one, 0) is None
    assert door.describe(VisitorRefusal.PER_ADDRESS, one) == "its address has 2 visitors already (max_per_address)"


def test_an_ipv6_subnet_counts_as_one_address_and_a_mapped_address_as_its_ipv4_one() -> None:
    door = admission(max_per_address=1)
    assert door.admit(pack_host("2001:db8:1:2::1"), 0) is None
    assert door.admit(pack_host("2001:db8:1:2:ffff::9"), 0) is VisitorRefusal.PER_ADDRESS
    assert door.admit(pack_host("2001:db8:1:3::1"), 0) is None
    assert door.admit(pack_host("::ffff:10.0.0.1"), 0) is None
    assert door.admit(pack_host("10.0.0.1"), 0) is VisitorRefusal.PER_ADDRESS


def test_visitors_that_were_there_before_the_rule_are_counted() -> None:
    one = pack_host("10.0.0.1")
    door = Admission(rules(max_per_address=2), 0.0, [one, one, one])
    assert door.admit(one, 0) is VisitorRefusal.PER_ADDRESS
    door.leave(one)
    assert door.admit(one, 0) is VisitorRefusal.PER_ADDRESS
    door.leave(one)
    assert door.admit(one, 0) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60), st.integers(1, 3))
def test_the_number_of_visitors_is_exact(steps: list[tuple[int, bool]], limit: int) -> None:
    door, present = admission(max_per_address=limit), Counter[int]()
    for address, is_new in steps:
        packed = bytes([10, 0, 0, address])
        if is_new:
            assert (door.admit(packed, 0) is None) is (present[address] < limit)
            present[address] = min(limit, present[address] + 1)
        elif present[address]:
            door.leave(packed)
            present[address] -= 1
        assert door.count_of(packed) == present[address]


def test_an_address_has_a_rate_of_new_visitors() -> None:
    door, one = admission(rate_new=5), pack_host("10.0.0.1")
    assert [door.admit(one, 100) for _ in range(6)] == [None] * 5 + [VisitorRefusal.RATE]
    assert door.admit(pack_host("10.0.0.2"), 100) is None
    assert door.admit(one, 100.21) is None
    assert door.admit(one, 100.21) is VisitorRefusal.RATE
    assert door.describe(VisitorRefusal.RATE, one) == "its address had more than 5 new visitors per second (rate_new)"


def test_a_refused_visitor_is_not_counted_as_present() -> None:
    door, one = admission(rate_new=1, max_per_address=5), pack_host("10.0.0.1")
    assert [door.admit(one, 100) for _ in range(3)] == [None, VisitorRefusal.RATE, VisitorRefusal.RATE]
    assert door.count_of(one) == 1


@given(
    st.floats(0.1, 50),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3)), min_size=1, max_size=200),
)
def test_a_rate_is_that_of_a_token_bucket(per_s: float, steps: list[tuple[int, float]]) -> None:
    rates, now = NewVisitorRates(per_s, 0.0), 0.0
    burst, tokens, updated = max(1.0, per_s), dict.fromkeys(range(3), max(1.0, per_s)), dict.fromkeys(range(3), 0.0)
    for address, pause in steps:
        now += pause
        tokens[address] = min(burst, tokens[address] + (now - updated[address]) * per_s)
        updated[address] = now
        if abs(tokens[address] - 1) < 1e-6:  # both are right, as far as a float tells
            continue
        admitted = rates.take_token(bytes([address]), now)
        assert admitted is (tokens[address] >= 1)
        if admitted:
            tokens[address] -= 1


def test_known_addresses_are_forgotten_when_their_buckets_are_full_again() -> None:
    rates = NewVisitorRates(10, 0.0)
    for number in range(1000):
        rates.take_token(number.to_bytes(4), number / 1000)
    assert len(rates) == 1000
    rates.take_token(b"late", 5.0)
    assert len(rates) == 1


def test_memory_is_bounded_under_a_flood_of_addresses() -> None:
    rates = NewVisitorRates(1, 0.0, max_addresses=100)
    for number in range(10_000):
        assert rates.take_token(number.to_bytes(8), 0.0)
        assert len(rates) <= 201
    assert not rates.take_token((9_999).to_bytes(8), 0.0), "the newest are still known"
