"""Slots for handshakes: bounded for each host, and not taken by a host that is silent."""

from __future__ import annotations

import asyncio

from tests.support.scale import GUARD_S
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine.handshake_slots import HandshakeSlots
from tunnel.model.address import Address

LONG_S = 10 * GUARD_S


class Attempt:
    """An attempt that holds a slot until it is told to end."""

    def __init__(self, slots: HandshakeSlots, host: str = "192.0.2.1", port: int = 1) -> None:
        self.slot = slots.slot(Address(host, port))
        self.has_begun = asyncio.Event()
        self._may_end = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.slot:
            self.has_begun.set()
            await self._may_end.wait()

    async def end(self) -> None:
        self._may_end.set()
        await self._task

    async def cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_a_host_has_so_many_slots_whatever_the_port_and_another_host_has_its_own() -> None:
    slots = HandshakeSlots(2, LONG_S)
    first, second, third = (Attempt(slots, port=port) for port in (1, 2, 3))
    other = Attempt(slots, "192.0.2.2")
    await run_loop_turns(5)
    assert [one.has_begun.is_set() for one in (first, second, third, other)] == [True, True, False, True]
    await second.end()
    async with asyncio.timeout(GUARD_S):
        await third.has_begun.wait()
    for one in (first, third, other):
        await one.end()


async def test_a_silent_host_gives_its_slot_to_others_and_takes_it_again_when_it_answers() -> None:
    slots = HandshakeSlots(1, 0.01)
    silent, other = Attempt(slots), Attempt(slots)
    async with asyncio.timeout(GUARD_S):
        await other.has_begun.wait()
        await other.slot.note_connected()
        answered = asyncio.create_task(silent.slot.note_connected())
        await run_loop_turns(5)
        assert not answered.done(), "the other attempt has the slot"
        await other.end()
        await answered
        waiting = Attempt(slots)
        await run_loop_turns(5)
        assert not waiting.has_begun.is_set(), "an attempt with an answer keeps its slot"
        await silent.end()
        await waiting.has_begun.wait()
        await waiting.end()


async def test_an_attempt_that_is_cancelled_leaves_its_slot_to_the_next() -> None:
    slots = HandshakeSlots(1, LONG_S)
    holding, waiting = Attempt(slots), Attempt(slots)
    await run_loop_turns(5)
    await waiting.cancel()
    await holding.cancel()
    last = Attempt(slots)
    await wait_until_async(last.has_begun.is_set, "the slot is free")
    await last.end()


async def test_an_attempt_that_ended_while_silent_frees_no_second_slot() -> None:
    slots = HandshakeSlots(1, 0.01)
    silent, other = Attempt(slots), Attempt(slots)
    await wait_until_async(other.has_begun.is_set, "the slot of the silent host is free")
    await other.slot.note_connected()
    await silent.end()
    waiting = Attempt(slots)
    await run_loop_turns(5)
    assert not waiting.has_begun.is_set()
    await other.end()
    await wait_until_async(waiting.has_begun.is_set, "the slot is free")
    await waiting.end()
