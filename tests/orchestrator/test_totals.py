"""Counters, events and readiness stay true across restarts, reloads and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.supervisor.totals import count_visitors
from tests.orchestrator.api_harness import ApiHarness, run_api
from tests.orchestrator.fakes import FakeEngine
from tests.support.waiting import wait_until_async
from tunnel.model.events import EventKind
from tunnel.model.options import make_spec
from tunnel.model.snapshot import LinkView, Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url

FILE = "version: 1\ntunnels: {web: 'server://127.0.0.1:1001/127.0.0.1:8001'}\n"


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ApiHarness]:
    async with run_api(tmp_path, FILE) as harness:
        await wait_until_async(lambda: harness.state("web") is State.UP)
        yield harness


def served(harness: ApiHarness) -> tuple[int, int]:
    """Return the visitors and the bytes of the tunnel; the counters that rates are measured by are always the same."""
    seen = harness.supervisor.snapshot("web")
    assert harness.supervisor._registry.read_traffic("web") == seen.traffic
    return seen.connections.total, seen.bytes.from_visitors


async def test_counters_never_go_back_whatever_replaces_the_engine(harness: ApiHarness) -> None:
    first = harness.engines.last("web")
    first.served = 3
    first.visitor_left.clear()
    harness.file.write_text(FILE.replace("8001", "8002"))
    await harness.supervisor.reload()
    second = harness.engines.last("web")
    assert second is not first
    assert served(harness) == (3, 300)
    second.served, first.served = 1, 4
    assert served(harness) == (5, 500), "the former engine serves its visitors to the end"
    first.served = 5
    first.visitor_left.set()
    await wait_until_async(lambda: first.state.state is State.STOPPED)
    assert served(harness) == (6, 600)

    harness.supervisor.restart("web")
    await wait_until_async(lambda: harness.engines.last("web") is not second and harness.state("web") is State.UP)
    harness.engines.last("web").served = 10
    assert served(harness) == (16, 1600)
    harness.supervisor.stop("web")
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)
    assert served(harness) == (16, 1600)
    harness.supervisor.start("web")
    await wait_until_async(lambda: harness.state("web") is State.UP)
    harness.engines.last("web").served = 1
    harness.engines.last("web").crash.set_exception(RuntimeError("broken"))
    await wait_until_async(lambda: harness.state("web") is State.COOLDOWN)
    assert served(harness) == (17, 1700)
    (tunnel,) = (await harness.request("GET", "/v1/tunnels")).json["tunnels"]
    assert tunnel["connections"]["total"] == 17


async def test_the_states_of_a_former_engine_are_not_those_of_the_tunnel(harness: ApiHarness) -> None:
    first = harness.engines.last("web")
    first.visitor_left.clear()
    harness.file.write_text(FILE.replace("8001", "8002"))
    await harness.supervisor.reload()
    first.visitor_left.set()
    await wait_until_async(lambda: first.state.state is State.STOPPED)
    events = harness.supervisor.bus.events_of("web")
    states = [event.text for event in events if event.kind is EventKind.STATE]
    assert states[-1] == "up"
    retired = [event.text for event in events if event.kind is EventKind.RETIRED]
    assert retired == ["the former engine: draining", "the former engine: stopped"]


async def test_a_removed_tunnel_reports_its_own_end(harness: ApiHarness) -> None:
    harness.file.write_text("version: 1\ntunnels: {}\n")
    await harness.supervisor.reload()
    await wait_until_async(lambda: "web" not in harness.supervisor.names())
    assert harness.supervisor.bus.events_of("web")[-1].kind is EventKind.STATE


async def test_the_daemon_is_ready_when_no_tunnel_is_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = asyncio.Event()
    serve = FakeEngine.run

    async def bind_slowly(engine: FakeEngine) -> None:
        await bound.wait()
        await serve(engine)

    monkeypatch.setattr(FakeEngine, "run", bind_slowly)
    async with run_api(tmp_path, FILE, waits_until_ready=False) as harness:
        await wait_until_async(lambda: harness.supervisor.is_started)
        assert (await harness.request("GET", "/readyz")).status == 503
        ready = asyncio.create_task(harness.supervisor.wait_ready())
        bound.set()
        await ready
        assert (await harness.request("GET", "/readyz")).status == 200
        harness.supervisor.restart("web")
        bound.clear()
        assert (await harness.request("GET", "/readyz")).status == 200, "a restart does not make the daemon unready"
        bound.set()


def end(url: str, link: str | None, active: int, direction: str | None = "reverse") -> Snapshot:
    seen = stopped_snapshot("x", make_spec(parse_url(url), environ={}))
    return replace(seen, direction=direction, link=link, connections=replace(seen.connections, active=active))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([], 0),
        ([("server", "a", 3, "reverse")], 3),
        ([("client", "a", 3, "reverse")], 3),
        ([("server", "a", 3, "reverse"), ("client", "a", 3, "reverse")], 3),
        ([("server", "a", 3, "forward"), ("client", "a", 3, "forward")], 3),
        ([("server", "a", 3, "reverse"), ("client", "b", 2, "reverse")], 5),
        ([("server", None, 1, "reverse"), ("client", None, 2, None)], 3),
    ],
)
def test_a_visitor_of_two_tunnels_of_one_link_counts_once(
    ends: list[tuple[str, str | None, int, str | None]], expected: int
) -> None:
    seen = [end(f"{role}://127.0.0.1:1/127.0.0.1:2", link, active, way) for role, link, active, way in ends]
    assert count_visitors(seen) == expected


def test_a_visitor_of_a_client_with_several_servers_counts_once() -> None:
    servers = [end("server://127.0.0.1:1/a:2", link, 2, "forward") for link in ("a", "b")]
    links = tuple(LinkView(id=link, peer="h:1", state="up", since="") for link in ("a", "b"))
    client = replace(end("client://127.0.0.1:1/127.0.0.1:2", "a", 4, "forward"), links=links)
    assert count_visitors([*servers, client]) == 4
