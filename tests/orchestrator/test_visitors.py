"""Visitors in the daemon: API, worker processes, rates, and the commands that list and kick."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.stream import PartWriter
from orchestrator.status.json_types import VisitorJson
from orchestrator.status.visitors import RateMeter, encode_visitor
from orchestrator.supervisor.crash_reports import EngineSilentError
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.visitor_table import SORT_KEYS, format_age, format_visitors, sort_visitors
from orchestrator.workers import remote
from orchestrator.workers.messages import EngineEnded, KickVisitors, ListVisitors, VisitorSlice
from tests.orchestrator.api_harness import ODD, ApiHarness, run_api
from tests.orchestrator.test_control_commands import DaemonShell
from tests.orchestrator.test_remote_engine import SPEC, EngineHarness, FakeWorker
from tests.support.peers import connect
from tests.support.ports import free_port
from tests.support.waiting import wait_until, wait_until_async
from tunnel.model.spec import Proto
from tunnel.model.visitors import CONNECTED, VisitorView, parse_selector

LINK = "0123456789abcdef"


def visitor(number: int, address: str = "192.0.2.1:1000") -> VisitorView:
    target = "127.0.0.1:80"
    return VisitorView(f"{LINK}-{number}", address, 1_000_000.0, 10 * number, 20, target, LINK, CONNECTED, Proto.TCP)


def shown(number: int = 1, **changes: object) -> VisitorJson:
    return {**encode_visitor("web", visitor(number), 1_000_002.5), **changes}  # type: ignore[typeddict-item]


# --- rates and the table ----------------------------------------------------------------------------------------------


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0.1, 100.0))
def test_a_rate_is_the_growth_in_bits_per_second(first: int, growth: int, span_s: float) -> None:
    meter = RateMeter()
    before, after = shown(bytes={"in": first, "out": 0}), shown(bytes={"in": first + growth, "out": 0})
    meter.measure([before], 50.0)
    meter.start_list()
    meter.measure([after], 50.0 + span_s)
    assert before["rates"] is None
    assert after["rates"] is not None
    assert after["rates"]["in_bps"] == pytest.approx(8 * growth / span_s, rel=1e-6, abs=1)
    assert after["rates"]["out_bps"] == 0


def test_a_visitor_that_was_not_in_the_list_before_has_no_rate() -> None:
    meter = RateMeter()
    meter.measure([shown(1)], 1.0)
    meter.start_list()
    one, other = shown(1), shown(2)
    meter.measure([one, other], 2.0)
    assert (one["rates"], other["rates"]) == ({"in_bps": 0, "out_bps": 0}, None)
    meter.start_list()
    meter.start_list()
    gone = shown(1)
    meter.measure([gone], 3.0)
    assert gone["rates"] is None


def test_visitors_sort_by_numbers_not_by_texts() -> None:
    addresses = ["192.0.2.10:1", "192.0.2.9:2", "192.0.2.9:10", "[2001:db8::1]:5", None]
    ordered = sort_visitors([shown(address=address) for address in reversed(addresses)], "address")
    assert [one["address"] for one in ordered] == [
        "192.0.2.9:2",
        "192.0.2.9:10",
        "192.0.2.10:1",
        "[2001:db8::1]:5",
        None,
    ]
    rates = [shown(number, rates={"in_bps": 8 * number, "out_bps": 0}) for number in (1, 3, 2)]
    assert [one["id"] for one in sort_visitors(rates, "rate", 2)] == [f"{LINK}-3", f"{LINK}-2"]
    assert set(SORT_KEYS) == {"rate", "bytes", "age", "address", "tunnel", "target"}


def test_the_table_shows_how_long_a_limit_held_visitors_back_where_there_is_one() -> None:
    assert "HELD BACK" not in format_visitors([shown(1)])
    heading, first, second = format_visitors([shown(1, paused_s=125.25), shown(2)]).split("\n")[:3]
    assert heading.index("HELD BACK") == first.index("2m05s") == second.index("-", heading.index("HELD BACK"))


def test_the_table_shows_rates_only_if_some_are_known() -> None:
    plain = format_visitors([shown()])
    assert plain.split("\n")[0].split() == [
        "TUNNEL",
        "ADDRESS",
        "STATE",
        "AGE",
        "FROM",
        "VISITOR",
        "TO",
        "VISITOR",
        "TARGET",
        "ID",
    ]
    assert "2s" in plain
    rated = format_visitors([shown(rates={"in_bps": 16384, "out_bps": 0}), shown(2)])
    assert "RATE FROM" in rated
    assert "2.0K/s" in rated


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0s"), (59, "59s"), (250, "4m10s"), (11_100, "3h05m"), (1_048_000, "12d03h")],
)
def test_an_age_is_short(seconds: float | None, text: str) -> None:
    assert format_age(seconds) == text


# --- API --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ApiHarness]:
    async with run_api(tmp_path) as harness:
        harness.engines.last("web").present = [visitor(1), visitor(2, "192.0.2.2:1"), visitor(3, "198.51.100.1:1")]
        harness.engines.last(ODD).present = [visitor(1)]
        yield harness


async def test_the_visitors_of_one_tunnel_and_of_all_are_listed(harness: ApiHarness) -> None:
    listed = (await harness.request("GET", "/v1/tunnels/web/visitors")).json["visitors"]
    assert [one["id"] for one in listed] == [f"{LINK}-1", f"{LINK}-2", f"{LINK}-3"]
    assert listed[1]["bytes"] == {"in": 20, "out": 20}
    assert listed[1]["since"] == "1970-01-12T13:46:40.000Z"
    assert len((await harness.request("GET", "/v1/visitors")).json["visitors"]) == 4
    some = (await harness.request("GET", "/v1/visitors?tunnel=web&tunnel=spare")).json["visitors"]
    assert {one["tunnel"] for one in some} == {"web"}
    assert (await harness.request("GET", "/v1/tunnels/spare/visitors")).json == {"visitors": []}


async def test_rates_are_measured_if_the_client_wants_them(harness: ApiHarness) -> None:
    listed = (await harness.request("GET", "/v1/tunnels/web/visitors?rates=0.06")).json["visitors"]
    assert [one["rates"] for one in listed] == 3 * [{"in_bps": 0, "out_bps": 0}]
    for bad in ("-1", "11", "x", "nan"):
        assert (await harness.request("GET", f"/v1/tunnels/web/visitors?rates={bad}")).status == 400


async def test_a_visitor_is_disconnected_by_its_id(harness: ApiHarness) -> None:
    answer = await harness.request("DELETE", f"/v1/tunnels/web/visitors/{LINK}-2")
    assert [one["address"] for one in answer.json["kicked"]] == ["192.0.2.2:1"]
    assert len(harness.engines.last("web").present) == 2
    again = await harness.request("DELETE", f"/v1/tunnels/web/visitors/{LINK}-2")
    assert again.status == 404
    assert "it may have left" in again.json["detail"]


async def test_a_kick_means_the_tunnels_that_it_names_or_all(harness: ApiHarness) -> None:
    body = json.dumps({"visitors": "192.0.2.0/24", "tunnels": ["web"]})
    assert len((await harness.request("POST", "/v1/kick", body)).json["kicked"]) == 2
    assert len((await harness.request("POST", "/v1/kick", '{"visitors": "0.0.0.0/0"}')).json["kicked"]) == 2
    assert (await harness.request("POST", "/v1/kick", '{"visitors": "0.0.0.0/0"}')).json == {"kicked": []}


async def test_a_kick_is_an_event_without_addresses(harness: ApiHarness) -> None:
    await harness.request("POST", "/v1/kick", '{"visitors": "192.0.2.0/24"}')
    texts = [event.text for event in harness.control.bus.last_history(10)]
    assert "kick: 2 visitors disconnected" in texts
    assert not any("192.0.2" in text for text in texts), "events are published to brokers"


@pytest.mark.parametrize(
    "body", ["{}", '{"visitors": 1}', '{"visitors": "nonsense"}', '{"visitors": "192.0.2.1", "tunnels": "web"}']
)
async def test_a_malformed_kick_disconnects_nobody(harness: ApiHarness, body: str) -> None:
    assert (await harness.request("POST", "/v1/kick", body)).status == 400
    assert len(harness.engines.last("web").present) == 3


async def test_unknown_tunnels_are_refused(harness: ApiHarness) -> None:
    for method, path, body in (
        ("GET", "/v1/tunnels/nope/visitors", None),
        ("GET", "/v1/visitors?tunnel=nope", None),
        ("DELETE", "/v1/tunnels/nope/visitors/x", None),
        ("POST", "/v1/kick", '{"visitors": "192.0.2.1", "tunnels": ["nope"]}'),
    ):
        assert (await harness.request(method, path, body)).status == 404


async def test_a_read_only_daemon_lists_but_does_not_kick(tmp_path: Path) -> None:
    async with run_api(tmp_path, read_only=True) as harness:
        harness.engines.last("web").present = [visitor(1)]
        assert len((await harness.request("GET", "/v1/visitors")).json["visitors"]) == 1
        assert (await harness.request("POST", "/v1/kick", '{"visitors": "192.0.2.1"}')).status == 403
        assert (await harness.request("DELETE", f"/v1/tunnels/web/visitors/{LINK}-1")).status == 403


# --- workers ----------------------------------------------------------------------------------------------------------


async def test_a_worker_sends_its_list_in_slices() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()

    async def collect() -> list[VisitorView]:
        return [one async for visitors in harness.engine.visitors() for one in visitors]

    listing = asyncio.create_task(collect())
    await wait_until_async(lambda: isinstance(harness.worker.requests[-1], ListVisitors))
    number = harness.worker.requests[-1].request
    harness.engine.on_notification(VisitorSlice(7, number + 1, (visitor(9),)))
    harness.engine.on_notification(VisitorSlice(7, number, (visitor(1), visitor(2))))
    harness.engine.on_notification(VisitorSlice(7, number, (visitor(3),)))
    harness.engine.on_notification(VisitorSlice(7, number, ()))
    assert [one.from_visitor for one in await listing] == [10, 20, 30]
    harness.engine.on_notification(EngineEnded(7, stopped_snapshot("web", SPEC)))
    await harness.end()


async def test_a_list_ends_with_its_engine() -> None:
    harness = EngineHarness(FakeWorker())
    await harness.run()
    kicking = asyncio.create_task(harness.engine.kick(parse_selector("192.0.2.1")))
    await wait_until_async(lambda: isinstance(harness.worker.requests[-1], KickVisitors))
    harness.engine.on_notification(VisitorSlice(7, harness.worker.requests[-1].request, (visitor(1),)))
    harness.engine.on_notification(EngineEnded(7, stopped_snapshot("web", SPEC)))
    assert [one.id for one in await kicking] == [f"{LINK}-1"]
    await harness.end()
    assert await harness.engine.kick(parse_selector("192.0.2.1")) == [], "an engine that has ended has no visitors"


async def test_a_worker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_ANSWER_TIMEOUT_S", 0.01)
    harness = EngineHarness(FakeWorker())
    await harness.run()
    with pytest.raises(EngineSilentError, match=r"worker 2 does not answer in 0\.01 s"):
        await harness.engine.kick(parse_selector("192.0.2.1"))
    harness.engine.on_notification(EngineEnded(7, stopped_snapshot("web", SPEC)))
    await harness.end()


# --- the commands, with real visitors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_visitors_are_listed_and_kicked_from_the_command_line(tmp_path: Path, workers: int) -> None:
    shell = DaemonShell(tmp_path)
    tunnel, where = free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
        shell.file.write_text(
            f"version: 1\nsupervisor: {{workers: {workers}}}\ntunnels:\n"
            f"  near: {{url: 'server://127.0.0.1:{tunnel}/127.0.0.1:{where}', auth: open}}\n"
            f"  far: {{url: 'client://127.0.0.1:{tunnel}/127.0.0.1:{port}', auth: open}}\n"
        )
        assert shell.run("up", "-d").returncode == 0
        try:
            wait_until(lambda: set(shell.states().values()) == {"up"})
            with connect(("127.0.0.1", where)) as one, connect(("127.0.0.1", where), source="127.0.0.9") as other:
                accepted = [target.accept()[0] for _ in range(2)]
                other.sendall(b"hello")
                wait_until(lambda: "5B" in shell.run("visitors", "far").stdout)
                listed = json.loads(shell.run("visitors", "--json", "--sort", "address").stdout)["visitors"]
                assert [seen["tunnel"] for seen in listed] == ["far", "near", "far", "near"]
                assert len({seen["id"] for seen in listed}) == 2
                kicked = shell.run("kick", "127.0.0.9", "near")
                assert (kicked.returncode, kicked.stdout.count("\n")) == (0, 2)
                assert "1 visitor disconnected" in kicked.stderr
                with pytest.raises(ConnectionResetError):
                    other.recv(1)
                nothing = shell.run("kick", "127.0.0.9")
                assert nothing.returncode == 1
                assert "no present visitor has the ID or address 127.0.0.9" in nothing.stderr
                assert shell.run("kick", "web/x").returncode == 2
                assert shell.run("visitors", "nope").returncode == 1
                for sock in accepted:
                    sock.close()
                one.close()
            wait_until(lambda: "no visitors" in shell.run("visitors").stderr)
        finally:
            shell.run("down", "--now", "--wait")


async def test_the_parts_of_a_long_list_are_sent_in_turns_of_their_own(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.engines.last("web").present = [visitor(number) for number in range(20)]
    turns: list[None] = []
    sent_at: list[int] = []
    write = PartWriter.write

    async def count_turns() -> None:
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    async def record(writer: PartWriter, data: bytes) -> None:
        if b'"id"' in data:
            sent_at.append(len(turns))
        await write(writer, data)

    monkeypatch.setattr(PartWriter, "write", record)
    counting = asyncio.create_task(count_turns())
    listed = (await harness.request("GET", "/v1/tunnels/web/visitors")).json["visitors"]
    counting.cancel()
    assert len(listed) == 20
    assert len({*sent_at}) == len(sent_at) == 10, "two parts in one turn"
