"""The streams of the local API: status and changes, log lines and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.api import stream
from tests.orchestrator.api_harness import FILE, ODD, ApiHarness, next_event, run_api
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.state import State


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ApiHarness]:
    async with run_api(tmp_path) as harness:
        await wait_until_async(lambda: harness.state("web") is harness.state(ODD) is State.UP)
        yield harness


async def test_a_watcher_gets_the_status_then_changes_and_events(harness: ApiHarness) -> None:
    async with harness.open_stream("/v1/watch?interval=0.1") as events:
        status = await next_event(events, "status")
        assert status == (await harness.request("GET", "/v1/status")).json
        await harness.request("POST", "/v1/tunnels/web/stop")
        assert (await next_event(events, "event"))["kind"] == "command"
        change = await next_event(events, "change")
        while change["changed"]["web"].get("state") != "stopped":
            change = await next_event(events, "change", "web")
        assert set(change["changed"]) == {"web"}
        assert "name" not in change["changed"]["web"]
        harness.file.write_text(FILE.replace("  spare:", "  new: client://127.0.0.1:1/127.0.0.1:2\n  other:"))
        await harness.request("POST", "/v1/reload")
        event = await next_event(events, "event", '"reload"')
        assert event["generation"] == 2
        assert event["results"]["new"]["action"] == "added"
        change = await next_event(events, "change", "spare")
        assert change["removed"] == ["spare"]
        assert change["changed"]["new"]["name"] == "new"
        assert change["status"]["generation"] == 2


async def test_a_reload_is_sent_at_once_whatever_the_interval(harness: ApiHarness) -> None:
    async with harness.open_stream("/v1/watch?interval=60") as events:
        assert (await next_event(events, "status"))["config"]["ok"]
        harness.file.write_text(FILE + "  - wrong\n")
        await harness.request("POST", "/v1/reload")
        assert not (await next_event(events, "change"))["status"]["config"]["ok"]
        harness.file.write_text(FILE.replace("  spare:", "  new: client://127.0.0.1:1/127.0.0.1:2\n  spare:"))
        await harness.request("POST", "/v1/reload")
        change = await next_event(events, "change")
        assert change["changed"]["new"]["name"] == "new"
        assert (change["status"]["generation"], change["status"]["config"]["ok"]) == (2, True)


async def test_the_first_visitor_of_a_quiet_tunnel_is_in_the_next_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"t{number}" for number in range(500)]
    text = "version: 1\ntunnels:\n" + "".join(f"  {name}: client://127.0.0.1:1/127.0.0.1:2\n" for name in names)
    async with run_api(tmp_path, text) as harness:
        await wait_until_async(lambda: all(harness.state(name) is State.UP for name in names))
        refreshes = 0
        refresh = harness.control.refresh

        async def count_refreshes(within_s: float = 0.0, *, everything: bool = False) -> None:
            nonlocal refreshes
            refreshes += 1
            await refresh(within_s, everything=everything)

        monkeypatch.setattr(harness.control, "refresh", count_refreshes)
        async with harness.open_stream("/v1/watch?interval=0.1") as events:
            await next_event(events, "status")
            await wait_until_async(lambda: refreshes > 2)
            for name in (names[77], names[400]):
                harness.engines.last(name).visitor_left.clear()
                harness.supervisor.bus.notify_activity(name)
                before = refreshes
                change = await next_event(events, "change")
                assert change["changed"][name]["connections"]["active"] == 1
                assert refreshes - before <= 2


async def test_the_changes_add_up_to_the_status(harness: ApiHarness) -> None:
    async with harness.open_stream("/v1/watch?interval=0.1") as events:
        known = {tunnel["name"]: tunnel for tunnel in (await next_event(events, "status"))["tunnels"]}
        for name in ("web", ODD, "web"):
            await harness.request("POST", f"/v1/tunnels/{quote(name, safe='')}/restart")
            await wait_until_async(lambda name=name: harness.state(name) is State.UP)  # type: ignore[misc]  # bound now, not later
        async with asyncio.timeout(GUARD_S):
            async for kind, data in events:
                if kind == "change":
                    for name, changed in data["changed"].items():
                        known[name] = {**known.get(name, {}), **changed}
                if list(known.values()) == [seen.as_json() for seen in harness.supervisor.snapshots()]:
                    break


async def test_a_log_stream_sends_only_the_tunnels_and_levels_it_was_asked_for(harness: ApiHarness) -> None:
    bus = harness.supervisor.bus
    bus.emit(LogLevel.WARN, EventKind.VISITOR, "before", tunnel="web")
    bus.emit(LogLevel.INFO, EventKind.VISITOR, "other", tunnel=ODD)
    async with harness.open_stream("/v1/logs?tunnel=web&level=warn&follow=true&n=1") as events:
        assert (await next_event(events, "event"))["text"] == "before"
        bus.emit(LogLevel.INFO, EventKind.VISITOR, "not grave enough", tunnel="web")
        bus.emit(LogLevel.ERROR, EventKind.VISITOR, "of another", tunnel=ODD)
        bus.emit(LogLevel.ERROR, EventKind.VISITOR, "after\u2028", tunnel="web")
        assert (await next_event(events, "event"))["text"] == "after\u2028"
    lines = (await harness.request("GET", f"/v1/logs?n=2&level=info&tunnel={quote(ODD, safe='')}&tunnel=web")).json[
        "lines"
    ]
    assert [line["text"] for line in lines] == ["of another", "after\u2028"]


async def test_the_event_history_holds_states_and_commands_but_no_log_lines(harness: ApiHarness) -> None:
    harness.supervisor.bus.emit(LogLevel.ERROR, EventKind.VISITOR, "no history")
    await harness.request("POST", "/v1/tunnels/web/restart")
    async with harness.open_stream("/v1/events?n=3&follow=false") as events:
        kinds = [data["kind"] async for _, data in events]
    assert len(kinds) == 3
    assert set(kinds) <= {"state", "command"}


async def test_a_stream_ends_in_order_when_the_daemon_ends(tmp_path: Path) -> None:
    async with run_api(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "np.sock")
        writer.write(b"GET /v1/logs?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(GUARD_S):
            await reader.readuntil(b"tunnels started")
    async with asyncio.timeout(GUARD_S):
        rest = await reader.read()
    writer.close()
    assert b"all tunnels are closed" in rest
    assert rest.endswith(b"0\r\n\r\n"), "the answer ends as HTTP wants it"


async def test_the_subscription_of_a_disconnected_client_is_removed(tmp_path: Path) -> None:
    async with run_api(tmp_path, limits=stream.StreamLimits(heartbeat_interval_s=0.05)) as harness:
        listeners = harness.supervisor.bus._subscribers
        before = len(listeners)
        async with (
            harness.open_stream("/v1/events?follow=true"),
            harness.open_stream("/v1/watch"),
            harness.open_stream("/v1/logs?follow=true"),
        ):
            await wait_until_async(lambda: len(listeners) == before + 3)
        await wait_until_async(lambda: len(listeners) == before)


async def test_a_slow_client_learns_how_many_events_were_dropped(harness: ApiHarness) -> None:
    bus = harness.supervisor.bus
    with stream.EventSubscription(bus, lambda _: True, stream.Subscriptions()) as subscription:
        for number in range(stream.MAX_QUEUED_EVENTS + 5):
            bus.emit(LogLevel.INFO, EventKind.VISITOR, str(number))
        events = await subscription.receive(1.0)
        assert len(events) == stream.MAX_QUEUED_EVENTS + 1
        assert events[-1].text == "5 events were dropped: the client reads too slowly"
        assert await subscription.receive(0.01) == []
