"""The front door: places, deadlines, handshakes and attempts of peers that have not authenticated are bounded."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.runtime.fd_budget import FdBudget
from tunnel.runtime.front_door import FrontDoor, FrontDoorLimits, PeerOrigin, origin_of


@dataclass(eq=False)
class FakePeer:
    host: str = "10.0.0.1"
    owner: object = None
    reasons: list[str] = field(default_factory=list)

    @property
    def origin(self) -> PeerOrigin:
        return origin_of((self.host, 4711))

    def evict(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
async def doors() -> AsyncIterator[list[FrontDoor]]:
    """Front doors that are closed when the test is over."""
    made: list[FrontDoor] = []
    yield made
    for door in made:
        door.close()


def flood(door: FrontDoor, hosts: list[str]) -> list[FakePeer]:
    """Admit one connection from each host, in this order."""
    peers = [FakePeer(host) for host in hosts]
    for peer in peers:
        door.admit(peer)
    return peers


def evicted(peers: list[FakePeer]) -> int:
    """How many of them were evicted."""
    return sum(bool(peer.reasons) for peer in peers)


def slash_64(count: int) -> list[str]:
    """Addresses of one IPv6 /64."""
    return [f"2001:db8:0:1::{number + 16:x}" for number in range(count)]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:0:1::5", "2001:db8:0:1:ffff::9", True),
        ("2001:db8:0:1::5", "2001:db8:0:2::5", False),
        ("fe80::1%eth0", "fe80::2%3", True),
    ],
)
def test_addresses_are_counted_by_ipv4_address_and_by_ipv6_subnet(one: str, other: str, *, is_same: bool) -> None:
    assert (origin_of((one, 1)).prefix == origin_of((other, 2, 0, 0)).prefix) is is_same


def test_a_peer_without_an_ip_address_has_an_origin_too() -> None:
    assert origin_of("") == origin_of(b"\0name") == origin_of(None)


@given(moves=st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 30)), max_size=60))
async def test_the_number_of_pending_connections_is_bounded_and_the_newest_stays(
    moves: list[tuple[bool, int, int]],
) -> None:
    door, everyone = FrontDoor(limits=FrontDoorLimits(total=9, per_prefix=4)), list[FakePeer]()
    door.note_authenticated(origin_of(("10.0.0.0", 1)))
    for is_arrival, host, index in moves:
        if is_arrival:
            newest = FakePeer(f"10.0.0.{host}")
            everyone.append(newest)
            door.admit(newest)
            assert not newest.reasons
        elif everyone:
            door.release(everyone[index % len(everyone)])
        pending = [*door._unknown, *door._known]
        by_host = Counter(peer.origin.prefix for peer in pending)
        assert len(door) == by_host.total() <= 9
        assert all(count <= 4 for count in by_host.values())
        assert by_host == {key: len(entries) for key, entries in door._by_key.items()}
    door.evict_all(None, "the test is over")
    door.close()
    assert not len(door)
    assert not door._by_key
    assert all(len(peer.reasons) <= 1 for peer in everyone)


async def test_the_oldest_connection_of_a_crowded_address_is_evicted_first(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(per_prefix=2)))
    other, first, second, third = flood(door, [f"10.0.0.{number}" for number in (2, 1, 1, 1)])
    assert first.reasons == ["too many pending connections from its address or network"]
    assert not any(peer.reasons for peer in (other, second, third))


async def test_a_subnet_gets_no_more_places_than_one_address(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(per_prefix=16)))
    [client] = flood(door, ["2001:db8:0:2::1"])
    attackers = flood(door, slash_64(2000))
    assert evicted(attackers) == 2000 - 16
    assert not client.reasons


async def test_a_flood_from_its_own_subnet_does_not_evict_a_known_client(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(per_prefix=16)))
    door.note_authenticated(FakePeer("2001:db8:0:1::1").origin)
    [client] = flood(door, ["2001:db8:0:1::1"])
    flood(door, slash_64(2000))
    assert not client.reasons


async def test_a_flood_from_everywhere_does_not_evict_a_known_client(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(total=40)))
    door.note_authenticated(FakePeer("192.0.2.1").origin)
    [client] = flood(door, ["192.0.2.1"])
    attackers = flood(door, [f"10.{number >> 8}.{number & 255}.1" for number in range(2000)])
    assert evicted(attackers) == 2000 - 30, "a quarter of the places is left to known addresses"
    assert not client.reasons


async def test_known_clients_leave_places_to_unknown_ones(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(total=40)))
    hosts = [f"10.0.0.{number}" for number in range(100)]
    for host in hosts:
        door.note_authenticated(FakePeer(host).origin)
    [unknown] = flood(door, ["192.0.2.1"])
    flood(door, hosts)
    assert not unknown.reasons
    assert len(door) <= 40


async def test_pending_connections_get_a_quarter_of_the_descriptors_at_most(
    doors: list[FrontDoor], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = FdBudget(0)
    monkeypatch.setattr(budget, "limit", 40)
    doors.append(door := FrontDoor(budget))
    peers = flood(door, [f"10.0.0.{number}" for number in range(12)])
    assert len(door) <= 10
    assert evicted(peers) == 12 - len(door)


async def test_a_reserved_descriptor_costs_the_oldest_unknown_connection_its_place(doors: list[FrontDoor]) -> None:
    budget = FdBudget(0)
    doors.append(door := FrontDoor(budget))
    door.note_authenticated(FakePeer("192.0.2.1").origin)
    peers = flood(door, ["10.0.0.1", "10.0.0.2"])
    known, newest = FakePeer("192.0.2.1"), FakePeer("10.0.0.3")
    door.admit(known, budget.visitor_ceiling)
    door.admit(newest, budget.visitor_ceiling + 1)
    assert evicted(peers) == 2
    assert evicted([known, newest]) == 0


async def test_a_silent_connection_is_evicted_in_time_and_an_authenticated_one_stays(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(timeout_s=0.05)))
    authenticated, *silent = flood(door, [f"10.0.0.{number}" for number in range(5)])
    assert door.release(authenticated, authenticated=True)
    assert not door.release(authenticated)
    await wait_until_async(lambda: evicted(silent) == 4, "the silent connections were evicted")
    assert not authenticated.reasons
    late = flood(door, ["10.0.0.0", "10.0.0.9"])  # one known address, one unknown
    await wait_until_async(lambda: evicted(late) == 2, "later connections are evicted too")
    assert late[0].reasons == ["it did not authenticate in time"]


async def test_an_owner_evicts_its_own_connections_alone(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor())
    ours, theirs = FakePeer(owner="us"), FakePeer(owner="them")
    for peer in (ours, theirs):
        door.admit(peer)
    door.evict_all("us", "the server is closing")
    assert (ours.reasons, theirs.reasons) == (["the server is closing"], [])
    door.release(theirs)


# --- handshakes -------------------------------------------------------------------------------------------------------


def request_all(door: FrontDoor, peers: list[FakePeer], started: list[FakePeer]) -> None:
    """Request a handshake for each; ``started`` gets them in the order of their starts."""
    for peer in peers:
        door.request_handshake(peer, lambda peer=peer: started.append(peer))  # type: ignore[misc]


async def test_few_handshakes_start_in_each_turn_of_the_loop(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(handshakes_per_turn=3)))
    started: list[FakePeer] = []
    request_all(door, flood(door, ["10.0.0.1"] * 10), started)
    counts = []
    while len(started) < 10:
        counts.append(len(started))
        await run_loop_turns(1)
    assert max(after - before for before, after in itertools.pairwise([*counts, 10])) == 3


async def test_prefixes_take_turns_and_known_addresses_come_first(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(handshakes_per_turn=1)))
    door.note_authenticated(FakePeer("10.0.0.9").origin)
    started: list[FakePeer] = []
    request_all(door, flood(door, ["10.0.0.1"] * 20), started)
    request_all(door, flood(door, ["10.0.0.2", "10.0.0.9"]), started)
    await run_loop_turns(3)
    assert [peer.host for peer in started] == ["10.0.0.9", "10.0.0.1", "10.0.0.2"]


async def test_a_prefix_has_a_rate_of_handshakes_that_others_do_not_use_up(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(handshakes_per_prefix_per_s=20)))
    started: list[FakePeer] = []
    request_all(door, flood(door, slash_64(100)), started)
    await run_loop_turns(40)
    assert 20 <= len(started) <= 25, "the burst"
    others = flood(door, ["2001:db8:0:2::1"])
    request_all(door, others, started)
    await wait_until_async(lambda: others[0] in started, "another prefix starts")
    count = len(started)
    assert count < 60
    await wait_until_async(lambda: len(started) > count, "they continue at their rate")


async def test_the_process_has_a_rate_of_handshakes_that_does_not_delay_known_addresses(
    doors: list[FrontDoor],
) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(handshakes_per_s=20)))
    door.note_authenticated(FakePeer("192.0.2.1").origin)
    started: list[FakePeer] = []
    request_all(door, flood(door, [f"10.0.{number}.1" for number in range(100)]), started)
    await run_loop_turns(40)
    assert 20 <= len(started) <= 25
    known = flood(door, ["192.0.2.1"])
    request_all(door, known, started)
    await wait_until_async(lambda: known[0] in started, "the known one starts")
    assert len(started) < 60


async def test_a_connection_that_is_released_starts_no_handshake(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(per_prefix=2)))
    started: list[FakePeer] = []
    peers = flood(door, ["10.0.0.1"] * 2)
    request_all(door, peers, started)
    later = flood(door, ["10.0.0.1"])  # evicts the first one
    door.release(peers[1])
    request_all(door, [*peers, *later], started)
    await run_loop_turns(3)
    assert started == later


# --- wrong proofs -----------------------------------------------------------------------------------------------------


async def guess(door: FrontDoor, host: str, *, until: asyncio.Event) -> int:
    """Try wrong proofs as fast as the door allows; how many were judged."""
    origin, judged = FakePeer(host).origin, 0
    while not until.is_set():
        await door.wait_to_verify(origin)
        if not until.is_set():
            judged += 1
            door.note_wrong_proof(origin)
            await asyncio.sleep(0)
    return judged


async def test_wrong_proofs_are_judged_at_a_rate_for_all_connections_of_a_prefix_together(
    doors: list[FrontDoor],
) -> None:
    limits = FrontDoorLimits(wrong_proofs_at_once=5, wrong_proofs_per_s=20)
    doors.append(door := FrontDoor(limits=limits))
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    started_at = loop.time()
    loop.call_later(0.3, over.set)
    judged = sum(await asyncio.gather(*(guess(door, host, until=over) for host in slash_64(20))))
    assert 5 < judged <= 5 + 20 * (loop.time() - started_at) + 1


async def test_other_prefixes_and_an_address_that_has_authenticated_do_not_wait(doors: list[FrontDoor]) -> None:
    doors.append(door := FrontDoor(limits=FrontDoorLimits(wrong_proofs_at_once=1, wrong_proofs_per_s=0.001)))
    known, unknown = FakePeer("2001:db8:0:1::1").origin, FakePeer("2001:db8:0:1::2").origin
    door.note_authenticated(known)
    door.note_wrong_proof(unknown)
    async with asyncio.timeout(1):
        await door.wait_to_verify(known)
        await door.wait_to_verify(FakePeer("10.0.0.1").origin)
    waiting = asyncio.create_task(door.wait_to_verify(unknown))
    await run_loop_turns(3)
    assert not waiting.done()
    waiting.cancel()
    door.note_authenticated(unknown)
    async with asyncio.timeout(1):
        await door.wait_to_verify(unknown)


async def test_listeners_accept_one_connection_in_each_turn_during_a_flood(doors: list[FrontDoor]) -> None:
    door = FrontDoor()
    doors.append(door)
    assert door.accepts_per_turn() > 1
    peers = flood(door, [f"10.0.0.{number}" for number in range(100)])
    assert door.accepts_per_turn() == 1
    for peer in peers:
        door.release(peer, authenticated=True)
    assert door.accepts_per_turn() > 1
