"""The queue of messages for the broker, and the schedule that fills it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mqtt.broker import BrokerError
from orchestrator.mqtt.publications import (
    MIN_STATE_INTERVAL_S,
    REPEAT_INTERVAL_S,
    SETTLE_DELAY_S,
    STATS_INTERVAL_S,
    PublishQueue,
    PublishSchedule,
)
from orchestrator.mqtt.publisher import publish_all
from orchestrator.mqtt.topics import OutgoingMessage
from orchestrator.status.store import snapshot_store
from orchestrator.supervisor.runner import stopped_snapshot
from tests.support.scale import GUARD_S
from tunnel.model.options import make_spec
from tunnel.model.snapshot import LinkView, Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url


def snapshot(name: str = "web", **changes: Any) -> Snapshot:  # noqa: ANN401  any field
    return replace(stopped_snapshot(name, make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))), **changes)


# --- the queue --------------------------------------------------------------------------------------------------------

kinds = st.sampled_from([(1, True), (1, False), (0, False)])


@given(st.lists(st.tuples(st.sampled_from("abc"), kinds)), st.integers(1, 5))
def test_the_newest_message_per_topic_is_kept_and_the_queue_is_bounded(
    puts: list[tuple[str, tuple[int, bool]]], most: int
) -> None:
    queue = PublishQueue(max_events=4)
    newest: dict[tuple[str, tuple[int, bool]], bytes] = {}
    for number, (topic, kind) in enumerate(puts):
        queue.add(OutgoingMessage(topic, b"%d" % number, *kind))
        newest[topic, kind] = b"%d" % number
        assert len(queue) <= 3 + 3 + 4
    taken: list[OutgoingMessage] = []
    while batch := queue.take_next(most):
        assert len(batch) <= most
        taken += batch
    events = [message for message in taken if message.is_event]
    assert [m.payload for m in events] == [b"%d" % n for n, (_, kind) in enumerate(puts) if kind == (1, False)][-4:]
    assert queue.take_dropped_count() == max(0, sum(kind == (1, False) for _, kind in puts) - 4)
    for message in taken:
        if not message.is_event:
            assert message.payload == newest[message.topic, (message.qos, message.retain)]
    order = [0 if m.retain else 1 if m.is_event else 2 for m in taken]
    assert order == sorted(order)


async def test_unconfirmed_events_are_queued_again_in_their_old_place() -> None:
    queue = PublishQueue(max_events=3)
    for number in range(3):
        queue.add(OutgoingMessage("event", b"%d" % number))
    batch = queue.take_next(2)
    queue.add(OutgoingMessage("t/a/state", b"s", retain=True))
    queue.put_back(batch)
    queue.clear_current_values()
    assert [m.payload for m in queue.take_next(9)] == [b"0", b"1", b"2"]
    waiting = asyncio.create_task(queue.wait_filled())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.add(OutgoingMessage("event", b"3"))
    await asyncio.wait_for(waiting, GUARD_S)


async def test_each_message_of_a_batch_is_sent_in_its_own_turn_and_all_await_confirmation_together() -> None:
    turn = 0
    left: list[tuple[str, int]] = []
    all_left = asyncio.Event()

    class SlowSession:
        async def publish(self, message: OutgoingMessage) -> None:
            left.append((message.topic, turn))
            if len(left) == 20:
                all_left.set()
            async with asyncio.timeout(GUARD_S):
                await all_left.wait()  # no confirmation arrives before all are sent
            if message.topic == "1":
                raise BrokerError("lost")

    async def count() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    session: Any = SlowSession()
    counting = asyncio.create_task(count())
    with pytest.raises(BrokerError, match="lost"):
        await publish_all(session, [OutgoingMessage(str(number), b"") for number in range(20)])
    counting.cancel()
    assert [topic for topic, _ in left] == [str(number) for number in range(20)]
    assert len({at for _, at in left}) == 20


# --- the schedule -----------------------------------------------------------------------------------------------------


class ScheduledStore:
    """A status store and the schedule that reads it."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self.store = snapshot_store()
        self.schedule = PublishSchedule(uniform)
        self.revision = 0

    def next(self, snapshots: list[Snapshot], now: float) -> tuple[list[Snapshot], list[Snapshot], list[str]]:
        """States, statistics and removed names that are due after these snapshots were stored."""
        for one in snapshots:
            self.store.update(one.name, one)
        self.store.retain([one.name for one in snapshots])
        delta = self.store.changes_since(self.revision)
        self.revision = delta.revision
        removed = self.schedule.apply(delta, now)
        due = self.schedule.take_due(now)
        states, stats = ([self.store.get(name) for name in names] for names in (due.states, due.stats))
        return [one for one in states if one], [one for one in stats if one], removed

    def restart(self) -> None:
        self.schedule.reset()
        self.revision = 0


def test_states_are_published_on_change_and_repeated_and_numbers_when_they_change() -> None:
    tunnels = ScheduledStore(lambda low, high: (low + high) / 2)
    quiet = snapshot()
    busy = replace(quiet, connections=replace(quiet.connections, active=1, total=1))
    assert tunnels.next([quiet], 0) == ([quiet], [], [])
    assert tunnels.next([quiet], 1) == ([], [], [])
    assert tunnels.next([busy], 1.5) == ([], [], []), "at most every two seconds"
    assert tunnels.next([busy], SETTLE_DELAY_S) == ([busy], [], []), "once more, when its numbers have settled"
    assert tunnels.next([busy], SETTLE_DELAY_S + 0.1) == ([], [busy], []), "for readers of statistics alone"
    assert tunnels.next([busy], SETTLE_DELAY_S + STATS_INTERVAL_S + 0.1) == ([], [], [])
    noise = replace(busy, rtt_ms=7.0, cooldown=replace(busy.cooldown, remaining_s=3.0))
    assert tunnels.next([noise], SETTLE_DELAY_S + 3) == ([], [], []), "the clock of a cooldown is no change"
    assert tunnels.next([quiet], SETTLE_DELAY_S + 4) == ([], [quiet], [])
    up = replace(quiet, state=State.UP)
    assert tunnels.next([up], SETTLE_DELAY_S + 5) == ([up], [], [])
    assert tunnels.next([], SETTLE_DELAY_S + 6) == ([], [], ["web"])
    tunnels.next([up], SETTLE_DELAY_S + 6)
    tunnels.restart()
    assert tunnels.next([up], SETTLE_DELAY_S + 6) == ([up], [], []), "a new connection gets everything"


def test_a_link_or_target_that_changes_its_state_is_published_and_its_visitors_are_not() -> None:
    tunnels = ScheduledStore(lambda low, high: (low + high) / 2)
    first, second = (LinkView(id=ident, peer="p", state="up", since="") for ident in ("l1", "l2"))
    both = snapshot(state=State.UP, link="l1", links=(first, second))
    now = 3 * SETTLE_DELAY_S
    tunnels.next([both], 0)
    tunnels.next([both], SETTLE_DELAY_S)
    busy = replace(both, links=(replace(first, visitors=3, pool=7), second))
    assert tunnels.next([busy], now) == ([], [], [])
    drained = replace(busy, links=(busy.links[0], replace(second, state="drained")))
    assert tunnels.next([drained], now + 1) == ([drained], [], [])
    lost = replace(drained, links=busy.links[:1])
    assert tunnels.next([lost], now + 2) == ([lost], [], [])


def test_the_repeated_states_of_many_tunnels_are_spread_over_the_whole_interval() -> None:
    tunnels = ScheduledStore(random.Random(1).uniform)
    many = [snapshot(f"t{number}") for number in range(300)]
    tunnels.next(many, 0)
    tunnels.next(many, SETTLE_DELAY_S)
    counts = [
        len(tunnels.next(many, SETTLE_DELAY_S + second)[0]) for second in range(1, 1 + int(2 * REPEAT_INTERVAL_S))
    ]
    assert sum(counts[: int(REPEAT_INTERVAL_S)]) == 300
    assert max(counts) <= 3 * 300 / REPEAT_INTERVAL_S


def test_a_state_that_follows_another_too_soon_is_announced_with_its_time() -> None:
    tunnels = ScheduledStore(lambda _, high: high)
    tunnels.next([snapshot(state=State.UP)], 10)
    tunnels.store.update("web", snapshot(state=State.COOLDOWN))
    tunnels.schedule.apply(tunnels.store.changes_since(tunnels.revision), 10.3)
    due = tunnels.schedule.take_due(10.3)
    assert (due.states, due.next_state_at) == ((), 10 + MIN_STATE_INTERVAL_S)
    due = tunnels.schedule.take_due(due.next_state_at)
    assert (due.states, due.next_state_at) == (("web",), math.inf)


def test_a_flapping_tunnel_does_not_flood_the_broker() -> None:
    tunnels = ScheduledStore(lambda _, high: high)
    flapping = [snapshot(state=state) for state in (State.CONNECTING, State.COOLDOWN)]
    count = sum(len(tunnels.next([flapping[tick % 2]], tick / 10)[0]) for tick in range(101))
    assert 10 <= count <= 10 / MIN_STATE_INTERVAL_S + 1


@given(st.lists(st.tuples(st.floats(0.05, 20), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_a_reader_is_never_later_than_the_intervals_say(steps: list[tuple[float, int, int]]) -> None:
    tunnels = ScheduledStore(lambda low, _: low)
    now, state_at, stats_at, published = 0.0, -1e9, -1e9, None
    base = snapshot()
    for wait, restarts, active in steps:
        now += wait
        present = replace(base, restarts=restarts, connections=replace(base.connections, active=active))
        states, stats, _ = tunnels.next([present], now)
        assert len(states) + len(stats) <= 1
        if states:
            assert now >= state_at + MIN_STATE_INTERVAL_S or published is None
            state_at, published = now, present
        if stats:
            assert now >= stats_at + STATS_INTERVAL_S
            stats_at = now
        assert now <= state_at + REPEAT_INTERVAL_S
        assert published is not None
        assert published.restarts == present.restarts or now < state_at + MIN_STATE_INTERVAL_S
