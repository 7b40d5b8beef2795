"""The runner of one tunnel: a crashed engine is replaced, and only a command or a failure stops the tunnel."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.supervisor.runner import TunnelRunner
from orchestrator.supervisor.runner_state import TRANSITIONS, RunnerEvent, RunnerState
from tests.orchestrator.fakes import FakeEngineFactory
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event
from tunnel.model.options import make_spec
from tunnel.model.state import State
from tunnel.model.url import parse_url

SPEC = make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))


class RunnerHarness:
    """A runner with fake engines and recorded events."""

    def __init__(self, pause: float = 0.0) -> None:
        self.engines = FakeEngineFactory()
        self.events: list[Event] = []
        self.bounds: list[float] = []
        self._pause = pause
        self.runner = TunnelRunner(
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
        return self.runner.snapshot().state

    async def start(self) -> None:
        self.runner.start()
        await wait_until_async(lambda: self.state is State.UP)

    async def stop(self) -> None:
        self.runner.close()
        await self.runner.wait()


async def test_a_tunnel_is_stopped_until_it_is_started() -> None:
    harness = RunnerHarness()
    assert harness.state is State.STOPPED
    assert not harness.runner.is_running
    await harness.start()
    assert harness.runner.snapshot().tags == ("prod",)
    await harness.stop()
    assert harness.state is State.STOPPED


async def test_starting_twice_runs_one_engine() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.runner.start()
    assert len(harness.engines.made["web"]) == 1
    await harness.stop()


async def test_a_crashed_engine_is_replaced_and_counted() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.engines.last("web").crash.set_exception(ValueError("unexpected"))
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    seen = harness.runner.snapshot()
    assert seen.restarts == 1
    assert seen.last_error is not None
    assert "unexpected" in seen.last_error
    assert "Traceback" not in seen.last_error
    assert [event.kind for event in harness.events if event.level.name == "ERROR"] == ["restart"]
    await harness.stop()


async def test_a_crashed_engine_that_cannot_be_read_is_replaced() -> None:
    harness = RunnerHarness()
    await harness.start()
    broken = harness.engines.last("web")
    broken.crash.set_exception(ValueError("gone"))
    broken.fails_snapshot = True
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    await harness.stop()


async def test_a_cancellation_inside_an_engine_is_a_crash() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.engines.last("web").crash.cancel()
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    assert harness.runner.snapshot().restarts == 1
    await harness.stop()


async def test_the_restart_delay_grows_up_to_thirty_seconds() -> None:
    harness = RunnerHarness()
    harness.engines.crashes_at_once.add("web")
    harness.runner.start()
    await wait_until_async(lambda: len(harness.bounds) >= 12)
    assert harness.bounds[0] <= 0.5
    assert harness.bounds[:10] == sorted(harness.bounds[:10])
    assert max(harness.bounds) == 30.0
    await harness.stop()


async def test_a_restart_delay_is_shown_as_a_cooldown_with_its_reason() -> None:
    harness = RunnerHarness(pause=30.0)
    harness.engines.crashes_at_once.add("web")
    harness.runner.start()
    await wait_until_async(lambda: harness.state is State.COOLDOWN)
    seen = harness.runner.snapshot()
    assert 0 < seen.cooldown.remaining_s <= 30.0
    assert seen.cooldown.attempt == 1
    assert "cannot even be made" in (seen.reason or "")
    harness.runner.drain()
    await asyncio.wait_for(harness.runner.wait(), GUARD_S)
    assert harness.state is State.STOPPED


async def test_a_restart_ends_the_restart_delay_and_a_start_does_not() -> None:
    harness = RunnerHarness(pause=30.0)
    harness.engines.crashes_at_once.add("web")
    harness.runner.start()
    await wait_until_async(lambda: harness.state is State.COOLDOWN)
    harness.engines.crashes_at_once.clear()
    harness.runner.restart()
    await wait_until_async(lambda: harness.state is State.UP)
    await harness.stop()


async def test_a_retry_ends_the_restart_delay() -> None:
    harness = RunnerHarness(pause=30.0)
    harness.engines.crashes_at_once.add("web")
    harness.runner.start()
    await wait_until_async(lambda: harness.state is State.COOLDOWN)
    harness.engines.crashes_at_once.clear()
    harness.runner.retry()
    await wait_until_async(lambda: harness.state is State.UP)
    await harness.stop()


async def test_an_engine_that_cannot_be_read_shows_the_error_as_its_reason() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.engines.last("web").fails_snapshot = True
    assert "cannot be read" in (harness.runner.snapshot().reason or "")
    harness.engines.last("web").fails_snapshot = False
    await harness.stop()


async def test_an_engine_that_crashes_at_a_command_is_cancelled() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.engines.last("web").fails_drain = True
    harness.runner.drain()
    await asyncio.wait_for(harness.runner.wait(), GUARD_S)
    seen = harness.runner.snapshot()
    assert seen.state is State.STOPPED
    assert "cannot be drained" in (seen.last_error or "")


async def test_a_drain_waits_for_the_visitors() -> None:
    harness = RunnerHarness()
    await harness.start()
    engine = harness.engines.last("web")
    engine.visitor_left.clear()
    harness.runner.drain(12.5)
    await wait_until_async(lambda: harness.state is State.DRAINING)
    assert engine.drained_with == [12.5]
    assert harness.runner.is_running
    engine.visitor_left.set()
    await asyncio.wait_for(harness.runner.wait(), GUARD_S)
    assert (harness.state, harness.runner.snapshot().reason) == (State.STOPPED, "stopped by command")


async def test_a_restart_drains_and_starts_again() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.runner.restart()
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    assert harness.runner.snapshot().restarts == 0
    await harness.stop()


async def test_a_start_during_a_drain_takes_effect_after_it() -> None:
    harness = RunnerHarness()
    await harness.start()
    first = harness.engines.last("web")
    first.visitor_left.clear()
    harness.runner.drain()
    harness.runner.start()
    first.visitor_left.set()
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state is State.UP)
    await harness.stop()


async def test_a_tunnel_that_cannot_work_stays_failed_with_its_reason() -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.engines.last("web").fail("the certificate is not one")
    await asyncio.wait_for(harness.runner.wait(), GUARD_S)
    seen = harness.runner.snapshot()
    assert (seen.state, seen.reason) == (State.FAILED, "the certificate is not one")
    assert len(harness.engines.made["web"]) == 1
    harness.runner.start()
    await wait_until_async(lambda: harness.state is State.UP)
    await harness.stop()


@pytest.mark.parametrize("times", [1, 2])
async def test_close_does_not_wait_for_visitors(times: int) -> None:
    harness = RunnerHarness()
    await harness.start()
    harness.engines.last("web").visitor_left.clear()
    for _ in range(times):
        harness.runner.close()
    await asyncio.wait_for(harness.runner.wait(), GUARD_S)
    assert harness.state is State.STOPPED


def test_every_command_has_an_effect_in_every_state_with_a_task() -> None:
    commands = {RunnerEvent.START, RunnerEvent.DRAIN, RunnerEvent.RESTART}
    at_rest = {RunnerState.STOPPED, RunnerState.ENDED}
    for state in set(RunnerState) - at_rest:
        assert commands <= TRANSITIONS[state].keys()
    for state, following in TRANSITIONS.items():
        assert RunnerState.PAUSED not in following.values() or state in {RunnerState.RUNNING, RunnerState.PAUSED}


async def test_a_runner_that_was_cancelled_before_it_ran_can_be_started_again() -> None:
    harness = RunnerHarness()
    harness.runner.start()
    harness.runner.cancel()
    await harness.runner.wait()
    harness.runner.drain()
    assert harness.state is State.STOPPED
    await harness.start()
    await harness.stop()


async def test_facts_change_exactly_where_the_snapshot_does() -> None:
    harness = RunnerHarness()
    before = harness.runner.facts()
    assert harness.runner.facts() == before
    harness.runner.set_last_error("cannot listen")
    assert harness.runner.facts() != before
    before = harness.runner.facts()
    harness.runner.update_spec(SPEC, ("test",))
    assert harness.runner.facts() != before
    assert harness.runner.snapshot().tags == ("test",)
