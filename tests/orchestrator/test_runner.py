"""A keeper's promises: an engine that breaks is followed by another, and nothing else stops a tunnel but a command."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.supervisor.runner import TunnelRunner
from tests.orchestrator.fakes import FakeEngineFactory
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event
from tunnel.model.options import make_spec
from tunnel.model.state import State
from tunnel.model.url import parse_url

SPEC = make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))


class RunnerHarness:
    """A keeper with what it is given."""

    def __init__(self, pause: float = 0.0) -> None:
        self.engines = FakeEngineFactory()
        self.events: list[Event] = []
        self.bounds: list[float] = []
        self._pause = pause
        self.keeper = TunnelRunner(
            "web",
            SPEC,
            engine_factory=self.engines,
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
        await wait_until_async(lambda: self.state is State.UP)

    async def down(self) -> None:
        self.keeper.close()
        await self.keeper.wait()


async def test_a_tunnel_is_stopped_until_it_is_started() -> None:
    harness = RunnerHarness()
    assert harness.state is State.STOPPED
    assert not harness.keeper.is_running
    await harness.up()
    assert harness.keeper.snapshot().tags == ("prod",)
    await harness.down()
    assert harness.state is State.STOPPED


async def test_starting_twice_runs_one_engine() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.keeper.start()
    assert len(harness.engines.made["web"]) == 1
    await harness.down()


async def test_a_crashed_engine_is_replaced_and_counted() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.engines.last("web").crash.set_exception(ValueError("nobody thought of this"))
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    seen = harness.keeper.snapshot()
    assert seen.restarts == 1
    assert seen.last_error is not None
    assert "nobody thought of this" in seen.last_error
    assert "Traceback" not in seen.last_error
    assert [event.kind for event in harness.events if event.level.name == "ERROR"] == ["restart"]
    await harness.down()


async def test_a_crashed_engine_that_cannot_be_read_is_replaced() -> None:
    harness = RunnerHarness()
    await harness.up()
    broken = harness.engines.last("web")
    broken.crash.set_exception(ValueError("gone"))
    broken.fails_snapshot = True
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    await harness.down()


async def test_a_cancellation_inside_an_engine_is_a_crash() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.engines.last("web").crash.cancel()
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    assert harness.keeper.snapshot().restarts == 1
    await harness.down()


async def test_the_restart_delay_grows_up_to_thirty_seconds() -> None:
    harness = RunnerHarness()
    harness.engines.crashes_at_once.add("web")
    harness.keeper.start()
    await wait_until_async(lambda: len(harness.bounds) >= 12)
    assert harness.bounds[0] <= 0.5
    assert harness.bounds[:10] == sorted(harness.bounds[:10])
    assert max(harness.bounds) == 30.0
    await harness.down()


async def test_a_restart_delay_is_shown_as_a_cooldown_with_its_reason() -> None:
    harness = RunnerHarness(pause=30.0)
    harness.engines.crashes_at_once.add("web")
    harness.keeper.start()
    await wait_until_async(lambda: harness.state is State.COOLDOWN)
    seen = harness.keeper.snapshot()
    assert 0 < seen.cooldown.remaining_s <= 30.0
    assert seen.cooldown.attempt == 1
    assert "cannot even be made" in (seen.reason or "")
    harness.keeper.drain()
    await asyncio.wait_for(harness.keeper.wait(), GUARD_S)
    assert harness.state is State.STOPPED


async def test_a_restart_ends_the_restart_delay_and_a_start_does_not() -> None:
    harness = RunnerHarness(pause=30.0)
    harness.engines.crashes_at_once.add("web")
    harness.keeper.start()
    await wait_until_async(lambda: harness.state is State.COOLDOWN)
    harness.engines.crashes_at_once.clear()
    harness.keeper.restart()
    await wait_until_async(lambda: harness.state is State.UP)
    await harness.down()


async def test_a_retry_ends_the_restart_delay() -> None:
    harness = RunnerHarness(pause=30.0)
    harness.engines.crashes_at_once.add("web")
    harness.keeper.start()
    await wait_until_async(lambda: harness.state is State.COOLDOWN)
    harness.engines.crashes_at_once.clear()
    harness.keeper.retry()
    await wait_until_async(lambda: harness.state is State.UP)
    await harness.down()


async def test_an_engine_that_cannot_be_read_shows_the_error_as_its_reason() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.engines.last("web").fails_snapshot = True
    assert "cannot be read" in (harness.keeper.snapshot().reason or "")
    harness.engines.last("web").fails_snapshot = False
    await harness.down()


async def test_an_engine_that_crashes_at_a_command_is_cancelled() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.engines.last("web").fails_drain = True
    harness.keeper.drain()
    await asyncio.wait_for(harness.keeper.wait(), GUARD_S)
    seen = harness.keeper.snapshot()
    assert seen.state is State.STOPPED
    assert "cannot be drained" in (seen.last_error or "")


async def test_a_drain_waits_for_the_visitors() -> None:
    harness = RunnerHarness()
    await harness.up()
    engine = harness.engines.last("web")
    engine.visitor_left.clear()
    harness.keeper.drain(12.5)
    await wait_until_async(lambda: harness.state is State.DRAINING)
    assert engine.drained_with == [12.5]
    assert harness.keeper.is_running
    engine.visitor_left.set()
    await asyncio.wait_for(harness.keeper.wait(), GUARD_S)
    assert (harness.state, harness.keeper.snapshot().reason) == (State.STOPPED, "stopped by command")


async def test_a_restart_drains_and_starts_again() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.keeper.restart()
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    assert harness.keeper.snapshot().restarts == 0
    await harness.down()


async def test_a_start_during_a_drain_takes_effect_after_it() -> None:
    harness = RunnerHarness()
    await harness.up()
    first = harness.engines.last("web")
    first.visitor_left.clear()
    harness.keeper.drain()
    harness.keeper.start()
    first.visitor_left.set()
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    await harness.down()


async def test_a_tunnel_that_cannot_work_stays_failed_with_its_reason() -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.engines.last("web").fail("the certificate is not one")
    await asyncio.wait_for(harness.keeper.wait(), GUARD_S)
    seen = harness.keeper.snapshot()
    assert (seen.state, seen.reason) == (State.FAILED, "the certificate is not one")
    assert len(harness.engines.made["web"]) == 1
    harness.keeper.start()
    await wait_until_async(lambda: harness.state is State.UP)
    await harness.down()


@pytest.mark.parametrize("times", [1, 2])
async def test_close_does_not_wait_for_visitors(times: int) -> None:
    harness = RunnerHarness()
    await harness.up()
    harness.engines.last("web").visitor_left.clear()
    for _ in range(times):
        harness.keeper.close()
    await asyncio.wait_for(harness.keeper.wait(), GUARD_S)
    assert harness.state is State.STOPPED
