"""A keeper's promises: an engine that breaks is followed by another, and nothing else stops a tunnel but a command."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.supervisor.keeper import Keeper
from tests.orchestrator.fakes import Workshop, until
from tests.scale import GUARD
from tunnel.model.options import make_spec
from tunnel.model.state import Event, State
from tunnel.model.url import parse

SPEC = make_spec(parse("server://127.0.0.1:10101/127.0.0.1:8080"))


class House:
    """A keeper with what it is given."""

    def __init__(self, pause: float = 0.0) -> None:
        self.workshop = Workshop()
        self.events: list[Event] = []
        self.bounds: list[float] = []
        self._pause = pause
        self.keeper = Keeper(
            "web",
            SPEC,
            make_engine=self.workshop,
            sink=self.events.append,
            tags=("prod",),
            uniform=self._uniform,
        )

    def _uniform(self, _low: float, high: float) -> float:
        self.bounds.append(high)
        return self._pause

    @property
    def state(self) -> State:
        return self.keeper.snapshot().state

    async def up(self) -> None:
        self.keeper.start()
        await until(lambda: self.state is State.UP)

    async def down(self) -> None:
        self.keeper.close()
        await self.keeper.wait()


async def test_rests_until_started() -> None:
    house = House()
    assert house.state is State.STOPPED
    assert not house.keeper.is_running
    await house.up()
    assert house.keeper.snapshot().tags == ("prod",)
    await house.down()
    assert house.state is State.STOPPED


async def test_starting_twice_runs_one_engine() -> None:
    house = House()
    await house.up()
    house.keeper.start()
    assert len(house.workshop.made["web"]) == 1
    await house.down()


async def test_an_engine_that_breaks_is_followed_by_another_and_counted() -> None:
    house = House()
    await house.up()
    house.workshop.last("web").defect.set_exception(ValueError("nobody thought of this"))
    await until(lambda: len(house.workshop.made["web"]) == 2 and house.state is State.UP)
    seen = house.keeper.snapshot()
    assert seen.restarts == 1
    assert seen.last_error is not None
    assert "nobody thought of this" in seen.last_error
    assert "Traceback" not in seen.last_error
    assert [event.kind for event in house.events if event.level.name == "ERROR"] == ["restart"]
    await house.down()


async def test_an_engine_too_broken_to_speak_is_followed_by_another() -> None:
    house = House()
    await house.up()
    broken = house.workshop.last("web")
    broken.defect.set_exception(ValueError("gone"))
    broken.mute = True
    await until(lambda: len(house.workshop.made["web"]) == 2 and house.state is State.UP)
    await house.down()


async def test_a_cancellation_from_within_is_a_defect_not_the_end() -> None:
    house = House()
    await house.up()
    house.workshop.last("web").defect.cancel()
    await until(lambda: len(house.workshop.made["web"]) == 2 and house.state is State.UP)
    assert house.keeper.snapshot().restarts == 1
    await house.down()


async def test_pauses_grow_up_to_thirty_seconds() -> None:
    house = House()
    house.workshop.breaks_at_once.add("web")
    house.keeper.start()
    await until(lambda: len(house.bounds) >= 12)
    assert house.bounds[0] <= 0.5
    assert house.bounds[:10] == sorted(house.bounds[:10])
    assert max(house.bounds) == 30.0
    await house.down()


async def test_the_pause_is_shown_as_a_cooldown_with_its_reason() -> None:
    house = House(pause=30.0)
    house.workshop.breaks_at_once.add("web")
    house.keeper.start()
    await until(lambda: house.state is State.COOLDOWN)
    seen = house.keeper.snapshot()
    assert 0 < seen.cooldown.remaining_s <= 30.0
    assert seen.cooldown.attempt == 1
    assert "cannot even be made" in (seen.reason or "")
    house.keeper.drain()
    await asyncio.wait_for(house.keeper.wait(), GUARD)
    assert house.state is State.STOPPED


async def test_a_start_ends_no_pause_but_a_restart_does() -> None:
    house = House(pause=30.0)
    house.workshop.breaks_at_once.add("web")
    house.keeper.start()
    await until(lambda: house.state is State.COOLDOWN)
    house.workshop.breaks_at_once.clear()
    house.keeper.restart()
    await until(lambda: house.state is State.UP)
    await house.down()


async def test_retry_ends_the_pause() -> None:
    house = House(pause=30.0)
    house.workshop.breaks_at_once.add("web")
    house.keeper.start()
    await until(lambda: house.state is State.COOLDOWN)
    house.workshop.breaks_at_once.clear()
    house.keeper.retry()
    await until(lambda: house.state is State.UP)
    await house.down()


async def test_an_engine_that_cannot_be_looked_at_is_shown_as_broken() -> None:
    house = House()
    await house.up()
    house.workshop.last("web").mute = True
    assert "too broken to say anything" in (house.keeper.snapshot().reason or "")
    house.workshop.last("web").mute = False
    await house.down()


async def test_an_engine_that_breaks_at_a_command_loses_its_task() -> None:
    house = House()
    await house.up()
    house.workshop.last("web").stubborn = True
    house.keeper.drain()
    await asyncio.wait_for(house.keeper.wait(), GUARD)
    seen = house.keeper.snapshot()
    assert seen.state is State.STOPPED
    assert "does not listen" in (seen.last_error or "")


async def test_drain_waits_for_the_visitor() -> None:
    house = House()
    await house.up()
    engine = house.workshop.last("web")
    engine.visitor_left.clear()
    house.keeper.drain(12.5)
    await until(lambda: house.state is State.DRAINING)
    assert engine.drained_with == [12.5]
    assert house.keeper.is_running
    engine.visitor_left.set()
    await asyncio.wait_for(house.keeper.wait(), GUARD)
    assert (house.state, house.keeper.snapshot().reason) == (State.STOPPED, "stopped by command")


async def test_restart_is_drain_and_start() -> None:
    house = House()
    await house.up()
    house.keeper.restart()
    await until(lambda: len(house.workshop.made["web"]) == 2 and house.state is State.UP)
    assert house.keeper.snapshot().restarts == 0
    await house.down()


async def test_a_start_during_a_drain_runs_again_after_it() -> None:
    house = House()
    await house.up()
    first = house.workshop.last("web")
    first.visitor_left.clear()
    house.keeper.drain()
    house.keeper.start()
    first.visitor_left.set()
    await until(lambda: len(house.workshop.made["web"]) == 2 and house.state is State.UP)
    await house.down()


async def test_what_cannot_work_stays_failed_and_says_why() -> None:
    house = House()
    await house.up()
    house.workshop.last("web").fail("the certificate is not one")
    await asyncio.wait_for(house.keeper.wait(), GUARD)
    seen = house.keeper.snapshot()
    assert (seen.state, seen.reason) == (State.FAILED, "the certificate is not one")
    assert len(house.workshop.made["web"]) == 1
    house.keeper.start()
    await until(lambda: house.state is State.UP)
    await house.down()


@pytest.mark.parametrize("times", [1, 2])
async def test_close_does_not_wait_for_visitors(times: int) -> None:
    house = House()
    await house.up()
    house.workshop.last("web").visitor_left.clear()
    for _ in range(times):
        house.keeper.close()
    await asyncio.wait_for(house.keeper.wait(), GUARD)
    assert house.state is State.STOPPED
