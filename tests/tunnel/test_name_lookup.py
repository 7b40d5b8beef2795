from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import wait_until_async
from tunnel.runtime.name_lookup import HostAddress, NameLookup, interleave_families

GUARD_S = 10.0
V4, V6 = socket.AF_INET, socket.AF_INET6


class NameServer:
    """Answers lookups in place of the system: names that start with ``dead`` block until ``gate`` opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: None, *, type: socket.SocketKind) -> list[tuple[object, ...]]:  # noqa: A002  as there
        self.asked.append(host)
        if host.startswith("dead"):
            self.gate.wait(GUARD_S)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        if host == "bad":
            raise UnicodeError("label too long")
        return [(V6, type, 6, "", ("2001:db8::1", 0, 0, 0)), (V4, type, 6, "", ("192.0.2.1", 0))]


async def test_a_name_gives_its_addresses() -> None:
    assert await NameLookup(NameServer()).resolve("good") == (
        HostAddress(V6, "2001:db8::1"),
        HostAddress(V4, "192.0.2.1"),
    )


async def test_the_system_resolves_localhost() -> None:
    assert any(found.ip in {"127.0.0.1", "::1"} for found in await NameLookup().resolve("localhost"))


async def test_many_waiters_for_one_name_cause_one_lookup() -> None:
    server = NameServer()
    lookup = NameLookup(server)
    tasks = [asyncio.create_task(lookup.resolve("dead")) for _ in range(50)]
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(lambda: bool(server.asked), "the lookup has begun")
        server.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert server.asked == ["dead"]
    assert all(isinstance(result, socket.gaierror) for result in results)


async def test_a_cancelled_waiter_leaves_the_lookup_to_the_others() -> None:
    server = NameServer()
    lookup = NameLookup(server)
    first, second = (asyncio.create_task(lookup.resolve("dead")) for _ in range(2))
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(lambda: bool(server.asked), "the lookup has begun")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        server.gate.set()
        with pytest.raises(socket.gaierror):
            await second
    assert server.asked == ["dead"]


async def test_dead_names_do_not_delay_names_that_were_resolved_before() -> None:
    server = NameServer()
    lookup = NameLookup(server)
    await lookup.resolve("good")
    dead = [asyncio.create_task(lookup.resolve(f"dead-{number}")) for number in range(40)]
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(lambda: len(server.asked) > 16, "every thread for new names is taken")
        await lookup.resolve("good")
        assert not any(task.done() for task in dead)
        server.gate.set()
        await asyncio.gather(*dead, return_exceptions=True)


async def test_names_known_as_slow_do_not_delay_new_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.runtime.name_lookup._SLOW_LOOKUP_S", 0.0)
    server = NameServer()
    server.gate.set()
    lookup = NameLookup(server)
    names = [f"dead-{number}" for number in range(40)]
    await asyncio.gather(*map(lookup.resolve, names), return_exceptions=True)
    server.gate.clear()
    dead = [asyncio.create_task(lookup.resolve(name)) for name in names]
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(lambda: len(server.asked) == len(names) + 4, "every thread for slow names is taken")
        await lookup.resolve("good")
        assert not any(task.done() for task in dead)
        server.gate.set()
        await asyncio.gather(*dead, return_exceptions=True)


async def test_a_name_that_cannot_be_asked_for_is_a_failed_lookup() -> None:
    with pytest.raises(socket.gaierror):
        await NameLookup(NameServer()).resolve("bad")


@given(st.lists(st.builds(HostAddress, st.sampled_from([V4, V6]), st.sampled_from("abcdef"))))
def test_families_alternate_while_both_are_left_and_no_address_is_lost(addresses: list[HostAddress]) -> None:
    ordered = interleave_families(addresses)
    assert len(ordered) == len(set(ordered))
    assert set(ordered) == set(addresses)
    if addresses:
        assert ordered[0] == addresses[0]
    counts = [sum(address.family == family for address in ordered) for family in (V4, V6)]
    for index in range(2 * min(counts) - 1):
        assert ordered[index].family != ordered[index + 1].family
