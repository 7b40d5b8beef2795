"""The local API as programs meet it: over the Unix socket, over TCP with a token, and on the address for metrics."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from openapi_spec_validator import validate
from yarl import URL

from orchestrator.api import stream
from orchestrator.api.application import api_application
from orchestrator.api.routes import ROUTES
from orchestrator.api.server import serve_api
from orchestrator.config.load import load
from orchestrator.process.socket_paths import SocketPathError
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import FakeEngineFactory
from tests.support.openapi import api_document, check_answer, check_event
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import EventKind
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import LogLevel
from tunnel.model.state import State

TOKEN = "0123456789abcdef-and-more"
FILE = """
version: 1
tunnels:
  web: server://127.0.0.1:10101/127.0.0.1:8080
  "a b%2F [red]": {url: "client://127.0.0.1:10102/127.0.0.1:80", tags: [prod]}
  spare: {url: "client://127.0.0.1:10103/127.0.0.1:80", enabled: false}
"""
ODD = "a b%2F [red]"


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:  # noqa: ANN401  JSON of any shape
        return json.loads(self.body)


class ApiHarness:
    """A supervisor of fake engines with its API on a Unix socket; every answer is checked against the document."""

    def __init__(
        self, supervisor: Supervisor, engines: FakeEngineFactory, session: aiohttp.ClientSession, file: Path
    ) -> None:
        self.supervisor = supervisor
        self.engines = engines
        self.session = session
        self.file = file

    async def request(self, method: str, path: str, body: str | None = None) -> Answer:
        url = URL(f"http://x{path}", encoded=True)
        async with self.session.request(method, url, data=body) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        if method != "HEAD" and "json" in answer.headers["Content-Type"]:
            check_answer(method, path, answer.status, answer.json)
        return answer

    @asynccontextmanager
    async def open_stream(self, path: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """Open a stream of server-sent events; yields them as they come."""
        async with self.session.get(URL(f"http://x{path}", encoded=True)) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            yield _events(path, response)

    def state(self, name: str) -> State:
        return self.supervisor.snapshot(name).state


async def _events(path: str, response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for line in response.content:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            data = json.loads(value)
            check_event(path, kind, data)
            yield kind, data


async def next_event(events: AsyncIterator[tuple[str, Any]], kind: str, wanted: str = "") -> Any:  # noqa: ANN401  as above
    """Return the data of the next event of a kind that contains a word."""
    async with asyncio.timeout(GUARD_S):
        async for found, data in events:
            if found == kind and wanted in json.dumps(data):
                return data
    raise AssertionError("the stream ended")


@asynccontextmanager
async def run_api(
    path: Path, text: str = FILE, *, read_only: bool = False, limits: stream.StreamLimits | None = None
) -> AsyncIterator[ApiHarness]:
    file = path / "tunnels.yaml"
    file.write_text(text)
    manifest = load(file, {})
    engines = FakeEngineFactory()
    supervisor = Supervisor(manifest, engine_factory=engines)
    socket = path / "np.sock"
    async with (
        serve_api(ControlService(supervisor, read_only=read_only), socket, manifest.supervisor, limits),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
    ):
        harness = ApiHarness(supervisor, engines, session, file)
        running = asyncio.create_task(supervisor.run())
        await wait_until_async(lambda: supervisor.is_ready)
        yield harness
        supervisor.close()
        await asyncio.wait_for(running, GUARD_S)


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


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("POST", "/v1/tunnels/nope/stop", None, 404, "no tunnel is named 'nope'"),
        ("GET", "/v1/tunnels/nope", None, 404, "no tunnel is named 'nope'"),
        ("GET", "/v1/logs?tunnel=nope", None, 404, "no tunnel is named 'nope'"),
        ("POST", "/v1/tunnels/web/retry", None, 409, "'web' has no cooldown to end: it is up"),
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


async def test_a_read_only_daemon_rejects_every_command(tmp_path: Path) -> None:
    async with run_api(tmp_path, read_only=True) as harness:
        paths = [route.path.format(name="web") for route in ROUTES if route.method == "POST"]
        for path in paths:
            answer = await harness.request("POST", path)
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
        looked: list[int] = []
        look = harness.supervisor.look

        async def counting(those: Collection[str] | None = None, within: float = 0.0) -> list[Snapshot]:
            looked.append(len(those or ()))
            return await look(those, within)

        monkeypatch.setattr(harness.supervisor, "look", counting)
        async with harness.open_stream("/v1/watch?interval=0.1") as events:
            await next_event(events, "status")
            await wait_until_async(lambda: looked[-1] < 100)  # it looks at some of them in turn, for all are quiet
            for name in (names[77], names[400]):
                harness.engines.last(name).visitor_left.clear()
                harness.supervisor.bus.notify_activity(name)
                before = len(looked)
                change = await next_event(events, "change")
                assert change["changed"][name]["connections"]["active"] == 1
                assert len(looked) - before <= 2


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
            harness.open_stream("/v1/events"),
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
