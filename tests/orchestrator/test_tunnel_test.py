"""Tests of tunnels on request: API, command, and engines in workers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.status.tunnel_test import describe_test, encode_test, summarize_test
from orchestrator.supervisor.crash_reports import EngineSilentError
from orchestrator.workers.messages import EngineEnded, TimeLegs, TunnelTested
from tests.orchestrator.api_harness import ApiHarness, run_api
from tests.orchestrator.test_control_commands import DaemonShell
from tests.orchestrator.test_remote_engine import EngineHarness, FakeWorker
from tests.support.ports import free_port
from tunnel.model.tunnel_test import Leg, LegResult, TargetTimes

LINK = LegResult(Leg.LINK, is_here=True, link="0123456789abcdef", target=None, duration_s=0.01234)


def test_each_leg_is_one_line_with_its_time_or_its_reason() -> None:
    times = TargetTimes("db:5432", True, 0.0021, 0.0004, None, None)
    refused = TargetTimes("127.0.0.1:9", False, None, None, None, "it refused the connection")
    found = encode_test(
        "web", "tcp", [LINK, *times.legs("0123456789abcdef", is_here=False), *refused.legs(None, is_here=True)]
    )
    assert describe_test(found) == [
        "link                12.3 ms  round trip",
        "name lookup          2.1 ms  target db:5432, timed at the other end",
        "dial                 0.4 ms  target db:5432, timed at the other end",
        "first byte                -  target db:5432, timed at the other end: it waits for its visitor to speak",
        "dial                 failed  target 127.0.0.1:9: it refused the connection",
    ]
    assert not found["ok"]
    assert found["legs"][0]["ms"] == 12.34


def test_with_several_links_each_leg_names_its_own() -> None:
    found = encode_test("web", "tcp", [LINK, LINK._replace(link="fedcba9876543210")])
    assert describe_test(found)[1] == "link                12.3 ms  link fedcba9876543210: round trip"


def test_the_log_names_each_reason_of_a_failed_test_once() -> None:
    refused = TargetTimes("127.0.0.1:9", False, None, None, None, "it refused the connection").legs(None, is_here=True)
    silent = LINK._replace(error="no answer within 5 s", duration_s=None)
    assert summarize_test(encode_test("web", "tcp", [LINK])) == "test: passed"
    assert summarize_test(encode_test("web", "tcp", [silent, *refused, *refused])) == (
        "test: failed: link: no answer within 5 s; dial of target 127.0.0.1:9: it refused the connection"
    )


@pytest.mark.parametrize(
    ("proto", "dial_s", "line"),
    [
        ("udp", None, "dial                      -  target 127.0.0.1:9: UDP: it is not dialled"),
        ("both", 0.0004, "dial                 0.4 ms  target 127.0.0.1:9: over TCP; UDP is not tested"),
    ],
)
def test_a_test_says_what_it_does_not_show_of_udp(proto: str, dial_s: float | None, line: str) -> None:
    times = TargetTimes("127.0.0.1:9", False, None, dial_s, None, None)
    assert describe_test(encode_test("dns", proto, times.legs(None, is_here=True)))[0] == line


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ApiHarness]:
    async with run_api(tmp_path) as harness:
        yield harness


async def test_the_api_answers_the_legs_and_the_test_is_an_event(harness: ApiHarness) -> None:
    answer = await harness.request("POST", "/v1/tunnels/web/test", "{}")
    leg = {"leg": "link", "at": "here", "link": "0123456789abcdef", "target": None, "ms": 12.5, "error": None}
    assert (answer.status, answer.json) == (200, {"name": "web", "proto": "tcp", "ok": True, "legs": [leg]})
    harness.engines.last("web").legs = [LINK._replace(error="no answer within 5 s")]
    await harness.request("POST", "/v1/tunnels/web/test", "{}")
    texts = [event.text for event in harness.control.bus.last_history(10)]
    assert texts[-2:] == ["test: passed", "test: failed: link: no answer within 5 s"]


async def test_what_cannot_be_tested_is_refused_with_the_reason(harness: ApiHarness) -> None:
    assert (await harness.request("POST", "/v1/tunnels/nope/test", "{}")).status == 404
    harness.engines.last("web").legs = []
    answer = await harness.request("POST", "/v1/tunnels/web/test", "{}")
    assert (answer.status, "only one that runs can be tested" in answer.json["detail"]) == (409, True)


async def test_a_read_only_daemon_makes_no_tests(tmp_path: Path) -> None:
    async with run_api(tmp_path, read_only=True) as harness:
        assert (await harness.request("POST", "/v1/tunnels/web/test", "{}")).status == 403


async def test_a_tunnel_has_one_test_at_a_time(harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    started, released = asyncio.Event(), asyncio.Event()

    async def wait() -> list[LegResult]:
        started.set()
        await released.wait()
        return [LINK]

    monkeypatch.setattr(harness.engines.last("web"), "test", wait)
    first = asyncio.create_task(harness.request("POST", "/v1/tunnels/web/test", "{}"))
    await started.wait()
    assert (await harness.request("POST", "/v1/tunnels/web/test", "{}")).status == 409
    released.set()
    assert (await first).status == 200


async def test_a_worker_answers_with_the_legs_or_the_test_ends_with_its_engine() -> None:
    harness = EngineHarness(FakeWorker())
    with pytest.raises(EngineSilentError):
        await harness.engine.test()
    await harness.run()
    for ends in (False, True):
        task = asyncio.create_task(harness.engine.test())
        await asyncio.sleep(0)
        request = harness.worker.requests[-1]
        assert isinstance(request, TimeLegs)
        if ends:
            harness.engine.on_notification(EngineEnded(request.engine, None))
            with pytest.raises(EngineSilentError, match="the tunnel has ended"):
                await task
        else:
            harness.engine.on_notification(TunnelTested(request.engine, request.request, (LINK,)))
            assert await task == (LINK,)


def test_the_command_prints_the_legs_and_its_exit_code_says_whether_one_failed(tmp_path: Path) -> None:
    shell = DaemonShell(tmp_path)
    tunnel, visitors = free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
        shell.file.write_text(
            "version: 1\ntunnels:\n"
            f"  near: {{url: 'server://127.0.0.1:{tunnel}/127.0.0.1:{visitors}', auth: open}}\n"
            f"  far: {{url: 'client://127.0.0.1:{tunnel}/127.0.0.1:{port}', auth: open}}\n"
        )
        assert shell.run("up", "--wait").returncode == 0
        try:
            done = shell.run("test", "near", "--json")
            (found,) = json.loads(done.stdout)["tests"]
            assert (done.returncode, found["ok"]) == (0, True)
            assert [leg["leg"] for leg in found["legs"]] == [
                "link", "data_connection", "signal", "dial", "first_byte",
            ]  # fmt: skip
            target.close()
            done = shell.run("test", "near", "far")
            assert done.returncode == 1
            assert done.stdout.startswith("near:\n  link ")
            assert f"failed  target 127.0.0.1:{port}" in done.stdout
        finally:
            shell.run("down", "--now", "--wait")
