"""The local API as programs use it: over the Unix socket, over TCP with a token, and on the address for metrics."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from openapi_spec_validator import validate

from orchestrator.api import application
from orchestrator.api.application import api_application
from orchestrator.api.routes import ROUTES
from orchestrator.process.socket_paths import SocketPathError
from orchestrator.supervisor.control import ControlService
from tests.orchestrator.api_harness import FILE, ODD, TOKEN, ApiHarness, run_api
from tests.support.openapi import api_document
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.links import LinkState
from tunnel.model.snapshot import LinkView, TargetChecksView, TargetView
from tunnel.model.spec import Direction
from tunnel.model.state import State
from tunnel.model.targets import TargetState


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ApiHarness]:
    async with run_api(tmp_path) as harness:
        await wait_until_async(lambda: harness.state("web") is harness.state(ODD) is State.UP)
        yield harness


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/status", "application/json"),
        (f"/v1/tunnels/{quote(ODD, safe='')}", "application/json"),
        ("/v1/plan", "application/json"),
        ("/v1/logs", "application/json"),
        ("/v1/events?follow=false", "text/event-stream"),
        ("/openapi.json", "application/json"),
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/metrics", "text/plain"),
    ],
)
async def test_curl_gets_an_answer_on_every_path(harness: ApiHarness, path: str, kind: str) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is what people use here"
    command = [
        curl,
        "-sS",
        "--unix-socket",
        str(harness.file.parent / "np.sock"),
        "-w",
        "\n%{http_code} %{content_type}",
    ]
    done = await asyncio.to_thread(subprocess.run, [*command, f"http://x{path}"], check=True, capture_output=True)
    body, _, verdict = done.stdout.decode().rpartition("\n")
    assert verdict.startswith(f"200 {kind}")
    if kind == "application/json":
        json.loads(body)


async def test_a_command_answers_with_its_effect(harness: ApiHarness) -> None:
    path = f"/v1/tunnels/{quote(ODD, safe='')}"
    harness.engines.last(ODD).visitor_left.clear()
    answer = await harness.request("POST", f"{path}/drain", '{"timeout": 7.5}')
    assert (answer.status, answer.json["name"], answer.json["ok"]) == (200, ODD, True)
    assert harness.engines.last(ODD).drained_with == [7.5]
    assert harness.state(ODD) is State.DRAINING
    assert (await harness.request("POST", f"{path}/start")).json[
        "text"
    ] == "starting again after the drain; 1 visitor may finish"
    harness.engines.last(ODD).visitor_left.set()
    await wait_until_async(lambda: harness.state(ODD) is State.UP)
    assert len(harness.engines.made[ODD]) == 2
    assert (await harness.request("POST", f"{path}/stop", "{}")).json["text"] == "stopping"
    await wait_until_async(lambda: harness.state(ODD) is State.STOPPED)
    assert (await harness.request("POST", f"{path}/stop")).json == {
        "name": ODD, "ok": True, "state": "stopped", "text": "already stopped",
    }  # fmt: skip
    assert (await harness.request("POST", f"{path}/restart")).json["text"] == "starting"
    told = [event.text for event in harness.supervisor.bus.last_history(100) if event.kind == "command"]
    assert told[0] == "drain: draining; 1 visitor may finish"
    assert len(told) == 5


async def test_one_of_several_targets_is_drained_and_started_again(harness: ApiHarness) -> None:
    engine = harness.engines.last("web")
    checks = TargetChecksView(kind="tcp")
    up = TargetView(address="db-1:5432", state=TargetState.UP, visitors=2, checks=checks)
    engine.targets = (up, TargetView(address="db-2:5432", state=TargetState.DRAINED, checks=checks))

    async def command(verb: str, target: str) -> tuple[int, str]:
        answer = await harness.request("POST", f"/v1/tunnels/web/{verb}", json.dumps({"target": target}))
        return answer.status, answer.json.get("text") or answer.json["detail"]

    expected = (200, "the target db-1:5432 gets no new visitors; 2 visitors may finish")
    assert await command("drain", "db-1:5432") == expected
    assert await command("start", "db-2:5432") == (200, "the target db-2:5432 gets new visitors again")
    assert engine.drained_targets == {"db-1:5432": True, "db-2:5432": False}
    assert await command("drain", "db-2:5432") == (200, "the target db-2:5432 is already drained")
    assert await command("start", "db-1:5432") == (200, "the target db-1:5432 is already up")
    unknown = "the tunnel has no target db-3:5432; its targets are: db-1:5432, db-2:5432"
    assert await command("drain", "db-3:5432") == (409, unknown)
    engine.targets = (TargetView(address="db-1:5432", state=TargetState.UP),)
    assert await command("drain", "db-1:5432") == (409, "db-1:5432 is the only target; drain the tunnel instead")
    assert harness.state("web") is State.UP


async def test_each_link_says_how_many_visitors_share_a_data_connection(harness: ApiHarness) -> None:
    known = LinkView(id="a1", peer="h:1", state=LinkState.UP, visitors=3, lanes=2, since="2026-01-01T00:00:00Z")
    harness.engines.last("web").links = (known, replace(known, id="b2", lanes=0), replace(known, id="c3", lanes=None))
    shown = (await harness.request("GET", "/v1/tunnels/web")).json["links"]
    assert [(link["visitors"], link["lanes"]) for link in shown] == [(3, 2), (3, 0), (3, None)]
    schema = (await harness.request("GET", "/openapi.json")).json["components"]["schemas"]["Link"]
    assert schema["properties"]["lanes"]["type"] == ["integer", "null"]


async def test_one_of_several_links_is_drained_and_started_again(harness: ApiHarness) -> None:
    engine = harness.engines.last("web")
    up = LinkView(id="a1", peer="h:1", state=LinkState.UP, visitors=1, since="2026-01-01T00:00:00Z")
    engine.links = (up, replace(up, id="b2", state=LinkState.DRAINED, visitors=0))

    async def command(verb: str, **body: str) -> tuple[int, str]:
        answer = await harness.request("POST", f"/v1/tunnels/web/{verb}", json.dumps(body))
        return answer.status, answer.json.get("text") or answer.json["detail"]

    expected = (200, "link a1 gets no new visitors while there is another; 1 visitor may finish")
    assert await command("drain", link="a1") == expected
    assert await command("start", link="b2") == (200, "link b2 gets new visitors again")
    assert engine.drained_links == {"a1": True, "b2": False}
    assert await command("drain", link="b2") == (200, "link b2 is already drained")
    assert await command("drain", link="c3") == (409, "the tunnel has no link c3; its links are: a1, b2")
    both = "the body names a target and a link; a command concerns one of them"
    assert await command("drain", link="a1", target="b:1") == (400, both)
    engine.links = (up,)
    assert await command("drain", link="a1") == (409, "a1 is the only link; drain the tunnel instead")
    engine.links = (up, replace(up, id="b2"))
    engine.direction = Direction.FORWARD
    elsewhere = "link a1 gets its visitors at the client; drain the tunnel there"
    assert await command("drain", link="a1") == (409, elsewhere)


async def test_retry_ends_the_pause_after_failed_data_connections(harness: ApiHarness) -> None:
    harness.engines.last("web").fail_dials("data connections to server-host:10101 fail: it did not answer in time")
    answer = await harness.request("POST", "/v1/tunnels/web/retry")
    assert (answer.status, answer.json["text"]) == (200, "retrying now")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("POST", "/v1/tunnels/nope/stop", None, 404, "no tunnel is named 'nope'"),
        ("GET", "/v1/tunnels/nope", None, 404, "no tunnel is named 'nope'"),
        ("GET", "/v1/logs?tunnel=nope", None, 404, "no tunnel is named 'nope'"),
        ("POST", "/v1/tunnels/web/retry", None, 409, "there is no cooldown to end: the tunnel is up"),
        ("POST", "/v1/tunnels/web/stpo", None, 404, ""),
        ("GET", "/v1/tunnels/web/stop", None, 405, ""),
        ("HEAD", "/v1/watch", None, 405, ""),
        ("POST", "/v1/tunnels/web/stop", "{", 400, "the body is not JSON"),
        ("POST", "/v1/tunnels/web/stop", "[]", 400, "the body is not a JSON object of timeout"),
        ("POST", "/v1/tunnels/web/stop", '{"timeut": 1}', 400, "did you mean 'timeout'?"),
        ("POST", "/v1/tunnels/web/stop", '{"timeout": -1}', 400, "not a number of seconds"),
        ("POST", "/v1/tunnels/web/stop", '{"timeout": true}', 400, "not a number of seconds"),
        ("POST", "/v1/tunnels/web/stop", '{"timeout": NaN}', 400, "not a number of seconds"),
        ("POST", "/v1/tunnels/web/start", '{"timeout": 1}', 400, "unknown key in the body 'timeout'"),
        ("POST", "/v1/shutdown", '{"drain": 1}', 400, "drain in the body is neither true nor false"),
        ("POST", "/v1/reload", "x" * 70_000, 413, ""),
        ("GET", "/v1/logs?n=-1", None, 400, "n: '-1' is not a whole number from 0 to 10000"),
        ("GET", "/v1/logs?levle=info", None, 400, "unknown parameter 'levle'; did you mean 'level'?"),
        ("GET", "/v1/logs?level=loud", None, 400, "'loud' is none of debug, info, warn, error, fatal"),
        ("GET", "/v1/events?follow=maybe", None, 400, "'maybe' is neither true nor false"),
        ("GET", "/v1/watch?interval=nan", None, 400, "'nan' is not a number of seconds from 0 to 60"),
        ("GET", "/v1/status?x=1", None, 400, "unknown parameter 'x'"),
    ],
)  # fmt: skip
async def test_a_refused_request_gets_a_problem_document(
    harness: ApiHarness, method: str, path: str, body: str | None, status: int, detail: str
) -> None:
    answer = await harness.request(method, path, body)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    if method != "HEAD":
        assert answer.json["status"] == status
        assert detail in answer.json["detail"]
    assert not harness.engines.last("web").drained_with


async def test_a_malformed_request_logs_no_traceback(harness: ApiHarness, caplog: pytest.LogCaptureFixture) -> None:
    for nonsense in (b"\x16\x03\x01\r\n\r\n", b"GET /v1/status HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(harness.file.parent / "np.sock")
        writer.write(nonsense)
        assert b" 400 " in (await asyncio.wait_for(reader.read(), GUARD_S))[:20]
        writer.close()
    assert not caplog.records


async def test_a_body_has_to_be_complete_in_time_and_is_not_decompressed(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "_BODY_TIMEOUT_S", 0.05)
    bomb = zlib.compress(bytes(1 << 20))
    encoded = f"Content-Encoding: deflate\r\nContent-Length: {len(bomb)}\r\nConnection: close"
    for headers, body, expected in (
        ("Content-Length: 9", b"{", b"408"),
        ("Transfer-Encoding: chunked", b"1\r\n{\r\n", b"408"),
        (encoded, bomb, b"the body is not JSON"),
    ):
        reader, writer = await asyncio.open_unix_connection(harness.file.parent / "np.sock")
        writer.write(f"POST /v1/reload HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode() + body)
        assert expected in await asyncio.wait_for(reader.read(4096), GUARD_S)
        writer.close()


async def test_a_read_only_daemon_rejects_every_command(tmp_path: Path) -> None:
    async with run_api(tmp_path, read_only=True) as harness:
        routes = [route for route in ROUTES if HTTPStatus.FORBIDDEN in route.errors]
        assert len(routes) > 5
        for route in routes:
            answer = await harness.request(route.method, route.path.format(name="web", id="x"))
            assert (answer.status, "--read-only" in answer.json["detail"]) == (403, True)
        status = (await harness.request("GET", "/v1/status")).json
        assert status["read_only"] is True
        assert (await harness.request("GET", "/v1/plan")).status == 200


async def test_commands_are_rejected_while_the_daemon_shuts_down(harness: ApiHarness) -> None:
    harness.engines.last("web").visitor_left.clear()
    harness.supervisor.shutdown()
    answer = await harness.request("POST", "/v1/tunnels/web/start")
    assert (answer.status, answer.json["title"]) == (409, "Conflict")
    assert (await harness.request("POST", "/v1/shutdown", '{"drain": false}')).status == 202
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)


async def test_reload_and_plan_report_each_entry(harness: ApiHarness) -> None:
    harness.file.write_text(
        FILE.replace("8080", "8081").replace("  spare:", "  new: client://127.0.0.1:1/127.0.0.1:2\n  spare:")
    )
    plan = (await harness.request("GET", "/v1/plan")).json
    assert (plan["add"], [step["name"] for step in plan["restart"]], plan["unchanged"]) == (["new"], ["web"], 2)
    answer = (await harness.request("POST", "/v1/reload")).json
    assert (answer["ok"], answer["generation"], answer["error"]) == (True, 2, None)
    assert {name: result["action"] for name, result in answer["results"].items()}["new"] == "added"
    harness.file.write_text("version: 1\ntunnels: [\n")
    answer = (await harness.request("POST", "/v1/reload")).json
    assert (answer["ok"], answer["generation"]) == (False, 2)
    assert answer["error"]["line"] >= 2
    config = (await harness.request("GET", "/v1/status")).json["config"]
    assert (config["ok"], config["line"]) == (False, answer["error"]["line"])


async def test_the_details_of_a_tunnel_name_the_source_of_each_setting(harness: ApiHarness) -> None:
    found = (await harness.request("GET", f"/v1/tunnels/{quote(ODD, safe='')}")).json
    assert (found["name"], found["enabled"], found["tags"]) == (ODD, True, ["prod"])
    assert found["where"].startswith("tunnels.yaml:5:")
    assert found["settings"]["shutdown_timeout"] == {"value": "5s", "source": "built in", "where": None}


async def test_tcp_requires_the_token_and_the_metrics_address_does_not(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    section = "supervisor: {api: {listen: '127.0.0.1:0', token_file: token}, metrics: '127.0.0.1:0'}\n"
    async with run_api(tmp_path, FILE.replace("tunnels:", f"{section}tunnels:")) as harness:
        told = [event.text for event in harness.supervisor.bus.events_of("")]
        base, metrics = (
            next(text.split()[-1] for text in told if text.startswith(f"listening for {what}"))
            for what in ("the API", "metrics")
        )
        async with aiohttp.ClientSession() as session:
            for value, status in (
                (None, 401),
                ("Bearer", 401),
                (f"Bearer {TOKEN[:-1]}", 401),
                (f"Basic {TOKEN}", 401),
                (f"Bearer {TOKEN}", 200),
                (f"bearer {TOKEN}", 200),
            ):
                headers = {"Authorization": value} if value else {}
                for path in ("/v1/status", "/healthz", "/metrics", "/openapi.json"):
                    async with session.get(f"http://{base}{path}", headers=headers) as answer:
                        assert answer.status == status
                        if status == 401:
                            assert answer.headers["WWW-Authenticate"] == "Bearer"
                            assert TOKEN not in await answer.text()
            async with session.post(f"http://{base}/v1/shutdown") as answer:
                assert answer.status == 401
            for path, status in (("/metrics", 200), ("/healthz", 200), ("/readyz", 200), ("/v1/status", 404)):
                async with session.get(f"http://{metrics}{path}") as answer:
                    assert answer.status == status


@pytest.mark.parametrize(
    ("section", "token", "sentence"),
    [
        ("{listen: '127.0.0.1:0', token_file: nowhere}", "", "No such file"),
        ("{listen: '127.0.0.1:0', token_file: token}", "short", "16 to 4096 characters"),
        ("{listen: '127.0.0.1:0', token_file: token}", "schlüssel-schlüssel", "plain ASCII"),
        ("{listen: '192.0.2.1:1', token_file: token}", TOKEN, "cannot listen on 192.0.2.1:1 for the API"),
    ],
)
async def test_an_address_or_token_that_cannot_be_used_is_reported(
    tmp_path: Path, section: str, token: str, sentence: str
) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(SocketPathError, match=sentence):
        async with run_api(tmp_path, FILE.replace("tunnels:", f"supervisor: {{api: {section}}}\ntunnels:")):
            pass


async def test_the_openapi_document_is_valid_and_has_every_route(harness: ApiHarness) -> None:
    found = (await harness.request("GET", "/openapi.json")).json
    validate(found)
    assert found["paths"] == json.loads(json.dumps(api_document()["paths"]))
    documented = {(path, method.upper()) for path, item in found["paths"].items() for method in item}
    served = {
        (route.resource.canonical, route.method)
        for route in api_application(ControlService(harness.supervisor)).router.routes()
        if route.resource
    }
    heads = {(route.path, "HEAD") for route in ROUTES if route.is_monitoring}
    assert served - heads == {(path, method) for path, method in documented if method != "PARAMETERS"}


async def test_the_schema_of_a_tunnel_has_the_fields_of_a_snapshot(harness: ApiHarness) -> None:
    fields = api_document()["components"]["schemas"]["Tunnel"]["properties"].keys()
    assert replace(harness.supervisor.snapshot("web"), rtt_ms=1.5).as_json().keys() == fields


async def test_probes_and_metrics_answer_head_and_ignore_unknown_parameters(harness: ApiHarness) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        for method in ("GET", "HEAD"):
            answer = await harness.request(method, f"{path}?probe=1")
            assert (answer.status, answer.body == b"") == (200, method == "HEAD")
