"""Pending connections: their number and their time are bounded, and the oldest is closed first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import wait_until_async
from tunnel.engine.admission import AdmissionLimits, PendingConnections


@dataclass(eq=False)
class FakeConnection:
    address: str = "10.0.0.1"
    reasons: list[str] = field(default_factory=list)

    def evict(self, reason: str) -> None:
        self.reasons.append(reason)


@given(moves=st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 30)), max_size=60))
async def test_the_number_of_pending_connections_is_bounded_and_the_newest_stays(
    moves: list[tuple[bool, str, int]],
) -> None:
    pending, everyone = PendingConnections(limits=AdmissionLimits(total=9, per_address=4)), list[FakeConnection]()
    for is_arrival, address, index in moves:
        if is_arrival:
            newest = FakeConnection(address)
            everyone.append(newest)
            pending.admit(newest)
            assert not newest.reasons
        elif everyone:
            pending.release(everyone[index % len(everyone)])
        by_address = Counter(connection.address for connection in pending._deadlines)
        assert len(pending) == by_address.total() <= 9
        assert all(count <= 4 for count in by_address.values())
        assert by_address == pending._by_address
    pending.evict_all("the test is over")
    assert not len(pending)
    assert not pending._by_address
    assert all(len(connection.reasons) <= 1 for connection in everyone)


async def test_the_oldest_connection_of_a_crowded_address_is_evicted_first() -> None:
    pending = PendingConnections(limits=AdmissionLimits(per_address=2))
    other, first, second, third = (FakeConnection(address) for address in "baaa")
    for connection in (other, first, second, third):
        pending.admit(connection)
    assert first.reasons == ["too many pending connections from this address"]
    assert not any(connection.reasons for connection in (other, second, third))
    pending.evict_all("the test is over")


async def test_a_silent_connection_is_evicted_in_time_and_an_authenticated_one_stays() -> None:
    pending = PendingConnections(limits=AdmissionLimits(timeout_s=0.05))
    authenticated, silent = FakeConnection(), [FakeConnection(str(n)) for n in range(5)]
    pending.admit(authenticated)
    for connection in silent:
        pending.admit(connection)
    pending.release(authenticated)
    pending.release(authenticated)
    await wait_until_async(
        lambda: all(connection.reasons for connection in silent), "the silent connections were evicted"
    )
    assert not authenticated.reasons
    late = FakeConnection()
    pending.admit(late)
    await wait_until_async(
        lambda: late.reasons == ["it did not authenticate in time"], "a later connection is evicted too"
    )
