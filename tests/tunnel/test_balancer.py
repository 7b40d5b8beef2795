"""The choice of a link or a target for each visitor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.balancer import MAX_WEIGHT, Balance, Balancer, create_balancer, ramped_weight


@dataclass(eq=False)
class Member:
    balance_key: bytes
    balance_weight: float = 1.0
    is_backup: bool = False
    active_visitors: int = 0


weights = st.integers(1, MAX_WEIGHT)
member_sets = st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=6).map(
    lambda found: [Member(b"%d" % number, weight, backup) for number, (weight, backup) in enumerate(found)]
)


def balancer_of(balance: Balance, members: list[Member]) -> Balancer[Member]:
    balancer: Balancer[Member] = create_balancer(balance)
    balancer.set_members(members)
    return balancer


def always(_: Member) -> bool:
    return True


def visitors_from(count: int) -> list[bytes]:
    return [number.to_bytes(4) for number in range(count)]


@given(balance=st.sampled_from(Balance), members=member_sets, ready=st.sets(st.integers(0, 5)), source=st.binary())
def test_a_visitor_gets_a_member_that_is_ready_and_has_a_weight(
    balance: Balance, members: list[Member], ready: set[int], source: bytes
) -> None:
    balancer = balancer_of(balance, members)
    chosen = balancer.choose(source, lambda member: int(member.balance_key) in ready)
    fitting = [member for member in balancer.members if int(member.balance_key) in ready]
    if chosen is None:
        assert not fitting
    else:
        assert chosen in fitting
        assert chosen.balance_weight > 0


@given(balance=st.sampled_from(Balance), members=member_sets, source=st.binary())
def test_without_a_condition_every_member_is_ready(balance: Balance, members: list[Member], source: bytes) -> None:
    one, other = balancer_of(balance, members), balancer_of(balance, members)
    assert [one.choose(source) for _ in range(5)] == [other.choose(source, always) for _ in range(5)]


@given(balance=st.sampled_from(Balance), members=member_sets)
def test_backup_members_get_visitors_only_without_any_other_member(balance: Balance, members: list[Member]) -> None:
    balancer = balancer_of(balance, members)
    has_primary = any(member.balance_weight and not member.is_backup for member in members)
    assert all(member.is_backup is not has_primary for member in balancer.members)
    assert bool(balancer.members) is any(member.balance_weight for member in members)


@pytest.mark.parametrize("balance", Balance)
def test_backup_members_follow_on_request_if_no_other_is_ready(balance: Balance) -> None:
    primary, backup = Member(b"a"), Member(b"b", is_backup=True)
    balancer = balancer_of(balance, [primary, backup])
    assert balancer.choose(b"", lambda member: member is backup) is None
    assert balancer.choose(b"", lambda member: member is backup, use_backup=True) is backup
    assert balancer.choose(b"", always, use_backup=True) is primary


@given(shares=st.lists(weights, min_size=1, max_size=6), rounds=st.integers(1, 3))
def test_members_take_turns_by_weight(shares: list[int], rounds: int) -> None:
    members = [Member(b"%d" % number, weight) for number, weight in enumerate(shares)]
    balancer = balancer_of(Balance.ROUNDROBIN, members)
    counts = Counter(balancer.choose(b"", always) for _ in range(rounds * sum(shares)))
    assert [counts[member] for member in members] == [rounds * weight for weight in shares]


def test_turns_are_spread_evenly() -> None:
    heavy, light = Member(b"h", 3), Member(b"l", 1)
    balancer = balancer_of(Balance.ROUNDROBIN, [heavy, light])
    assert [balancer.choose(b"", always) for _ in range(4)].index(light) in {1, 2}


def test_turns_continue_when_another_member_joins() -> None:
    a, b, c = Member(b"a"), Member(b"b"), Member(b"c")
    balancer = balancer_of(Balance.ROUNDROBIN, [a, b])
    assert balancer.choose(b"", always) is a
    balancer.set_members([a, b, c])
    assert balancer.choose(b"", always) is b


@given(found=st.lists(st.tuples(weights, st.integers(0, 1000)), min_size=1, max_size=6))
def test_leastconn_chooses_the_least_visitors_for_the_weight(found: list[tuple[int, int]]) -> None:
    members = [Member(b"%d" % number, weight, active_visitors=n) for number, (weight, n) in enumerate(found)]
    chosen = balancer_of(Balance.LEASTCONN, members).choose(b"", always)
    assert chosen is not None
    loads = [(member.active_visitors + 1) / member.balance_weight for member in members]
    assert (chosen.active_visitors + 1) / chosen.balance_weight == min(loads)


def test_leastconn_takes_turns_among_equals() -> None:
    members = [Member(b"a"), Member(b"b")]
    balancer = balancer_of(Balance.LEASTCONN, members)
    assert {balancer.choose(b"", always), balancer.choose(b"", always)} == {*members}


def test_leastconn_gives_a_slow_member_fewer_visitors() -> None:
    quick, slow = Member(b"q"), Member(b"s")
    balancer = balancer_of(Balance.LEASTCONN, [quick, slow])
    counts: Counter[Member] = Counter()
    for turn in range(1000):
        chosen = balancer.choose(b"", always)
        assert chosen is not None
        chosen.active_visitors += 1
        counts[chosen] += 1
        quick.active_visitors = 0
        if turn % 10 == 0:
            slow.active_visitors = max(0, slow.active_visitors - 1)
    assert counts[slow] < 0.2 * counts[quick]


def test_first_uses_another_member_only_for_what_the_first_cannot_take() -> None:
    first, second = Member(b"a"), Member(b"b", MAX_WEIGHT)
    balancer = balancer_of(Balance.FIRST, [first, second])
    assert balancer.choose(b"", always) is first
    assert balancer.choose(b"", lambda member: member is second) is second


@given(names=st.lists(st.binary(max_size=8), min_size=2, max_size=6, unique=True), source=st.binary(max_size=16))
def test_a_source_keeps_its_member_when_others_come_or_leave(names: list[bytes], source: bytes) -> None:
    members = [Member(name) for name in names]
    balancer = balancer_of(Balance.SOURCE, members)
    chosen = balancer.choose(source, always)
    for gone in members:
        rest = [member for member in members if member is not gone]
        again = balancer_of(Balance.SOURCE, rest[::-1]).choose(source, always)
        assert again is chosen or gone is chosen


def test_sources_are_shared_by_weight() -> None:
    members = [Member(b"a", 1), Member(b"b", 3)]
    balancer = balancer_of(Balance.SOURCE, members)
    counts = Counter(balancer.choose(source, always) for source in visitors_from(2000))
    assert counts[members[1]] == pytest.approx(1500, abs=75)


@given(weight=st.integers(0, MAX_WEIGHT), age_s=st.floats(0, 100), slowstart_s=st.floats(0, 100))
def test_a_weight_grows_to_its_value_and_is_never_zero_before(weight: int, age_s: float, slowstart_s: float) -> None:
    ramped = ramped_weight(weight, age_s, slowstart_s)
    assert ramped <= weight
    assert (ramped > 0) is (weight > 0)
    assert ramped <= ramped_weight(weight, age_s + 1, slowstart_s)
    assert ramped_weight(weight, slowstart_s, slowstart_s) == weight
