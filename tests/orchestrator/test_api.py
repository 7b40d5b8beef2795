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

from orchestrator.api import handlers, stream
from orchestrator.api.openapi import document
from orchestrator.api.server import serve_api
from orchestrator.config.load import load
from orchestrator.process.socket_paths import SocketPathError
from orchestrator.supervisor.control import VERBS, ControlService
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import Workshop
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
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
    """A supervisor of fake engines with its API, at the socket and at a base URL where there is one."""

    def __init__(self, supervisor: Supervisor, workshop: Workshop, session: aiohttp.ClientSession, file: Path) -> None:
        self.supervisor = supervisor
        self.workshop = workshop
        self.session = session
        self.file = file

    async def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        url = URL(f"http://x{path}", encoded=True)
        async with self.session.request(method, url, data=body, headers=headers) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    @asynccontextmanager
    async def listening(self, path: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """The events of a stream as they come."""
        async with self.session.get(URL(f"http://x{path}", encoded=True)) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            yield _events(response)

    def state(self, name: str) -> State:
        return self.supervisor.snapshot(name).state


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for line in response.content:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, json.loads(value)


async def take(events: AsyncIterator[tuple[str, Any]], kind: str, wanted: str = "") -> Any:  # noqa: ANN401  as above
    """The next event of a kind whose text has a word in it."""
    async with asyncio.timeout(GUARD_S):
        async for found, data in events:
            if found == kind and wanted in json.dumps(data):
                return data
    raise AssertionError("the stream ended")


@asynccontextmanager
async def running(path: Path, text: str = FILE, *, read_only: bool = False) -> AsyncIterator[ApiHarness]:
    file = path / "tunnels.yaml"
    file.write_text(text)
    manifest = load(file, {})
    workshop = Workshop()
    supervisor = Supervisor(manifest, engine_factory=workshop)
    socket = path / "np.sock"
    async with (
        serve_api(ControlService(supervisor, read_only=read_only), socket, manifest.supervisor),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
    ):
        harness = ApiHarness(supervisor, workshop, session, file)
        life = asyncio.create_task(supervisor.run())
        await wait_until_async(lambda: supervisor.is_ready)
        yield harness
        supervisor.close()
        await asyncio.wait_for(life, GUARD_S)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ApiHarness]:
    async with running(tmp_path) as harness:
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
async def test_curl_on_each_path(harness: ApiHarness, path: str, kind: str) -> None:
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


async def test_commands_say_what_they_do(harness: ApiHarness) -> None:
    path = f"/v1/tunnels/{quote(ODD, safe='')}"
    harness.workshop.last(ODD).visitor_left.clear()
    answer = await harness.ask("POST", f"{path}/drain", '{"timeout": 7.5}')
    assert (answer.status, answer.json["name"], answer.json["ok"]) == (200, ODD, True)
    assert harness.workshop.last(ODD).drained_with == [7.5]
    assert harness.state(ODD) is State.DRAINING
    assert (await harness.ask("POST", f"{path}/start")).json[
        "text"
    ] == "starts again after its drain; 1 visitor may finish"
    harness.workshop.last(ODD).visitor_left.set()
    await wait_until_async(lambda: harness.state(ODD) is State.UP)
    assert len(harness.workshop.made[ODD]) == 2
    assert (await harness.ask("POST", f"{path}/stop", "{}")).json["text"] == "is stopped"
    await wait_until_async(lambda: harness.state(ODD) is State.STOPPED)
    assert (await harness.ask("POST", f"{path}/stop")).json == {
        "name": ODD, "ok": True, "state": "stopped", "text": "rests already",
    }  # fmt: skip
    assert (await harness.ask("POST", f"{path}/restart")).json["text"] == "is started"
    told = [event.text for event in harness.supervisor.bus.last_history(100) if event.kind == "command"]
    assert told[0] == "drain: drains; 1 visitor may finish"
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
async def test_refusals_are_problems(
    harness: ApiHarness, method: str, path: str, body: str | None, status: int, detail: str
) -> None:
    answer = await harness.ask(method, path, body)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    if method != "HEAD":
        assert answer.json["status"] == status
        assert detail in answer.json["detail"]
    assert not harness.workshop.last("web").drained_with


async def test_what_is_no_http_is_nobodys_traceback(harness: ApiHarness, caplog: pytest.LogCaptureFixture) -> None:
    for nonsense in (b"\x16\x03\x01\r\n\r\n", b"GET /v1/status HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(harness.file.parent / "np.sock")
        writer.write(nonsense)
        assert b" 400 " in (await asyncio.wait_for(reader.read(), GUARD_S))[:20]
        writer.close()
    assert not caplog.records


async def test_read_only_takes_no_command(tmp_path: Path) -> None:
    async with running(tmp_path, read_only=True) as harness:
        paths = [f"/v1/tunnels/web/{verb}" for verb in VERBS] + ["/v1/reload", "/v1/shutdown"]
        for path in paths:
            answer = await harness.ask("POST", path)
            assert (answer.status, "--read-only" in answer.json["detail"]) == (403, True)
        status = (await harness.ask("GET", "/v1/status")).json
        assert status["read_only"] is True
        assert (await harness.ask("GET", "/v1/plan")).status == 200


async def test_commands_wait_for_no_end(harness: ApiHarness) -> None:
    harness.workshop.last("web").visitor_left.clear()
    harness.supervisor.shutdown()
    answer = await harness.ask("POST", "/v1/tunnels/web/start")
    assert (answer.status, answer.json["title"]) == (409, "Conflict")
    assert (await harness.ask("POST", "/v1/shutdown", '{"drain": false}')).status == 202
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)


async def test_reload_and_plan(harness: ApiHarness) -> None:
    harness.file.write_text(
        FILE.replace("8080", "8081").replace("  spare:", "  new: client://127.0.0.1:1/127.0.0.1:2\n  spare:")
    )
    plan = (await harness.ask("GET", "/v1/plan")).json
    assert (plan["add"], [step["name"] for step in plan["restart"]], plan["unchanged"]) == (["new"], ["web"], 2)
    answer = (await harness.ask("POST", "/v1/reload")).json
    assert (answer["ok"], answer["generation"], answer["error"]) == (True, 2, None)
    assert {name: result["action"] for name, result in answer["results"].items()}["new"] == "added"
    harness.file.write_text("version: 1\ntunnels: [\n")
    answer = (await harness.ask("POST", "/v1/reload")).json
    assert (answer["ok"], answer["generation"]) == (False, 2)
    assert answer["error"]["line"] >= 2
    config = (await harness.ask("GET", "/v1/status")).json["config"]
    assert (config["ok"], config["line"]) == (False, answer["error"]["line"])


async def test_one_tunnel_in_full(harness: ApiHarness) -> None:
    found = (await harness.ask("GET", f"/v1/tunnels/{quote(ODD, safe='')}")).json
    assert (found["name"], found["enabled"], found["tags"]) == (ODD, True, ["prod"])
    assert found["where"].startswith("tunnels.yaml:5:")
    assert found["settings"]["shutdown_timeout"] == {"value": "5s", "source": "built in", "where": None}


async def test_watching(harness: ApiHarness) -> None:
    async with harness.listening("/v1/watch?interval=0.1") as events:
        status = await take(events, "status")
        assert status == (await harness.ask("GET", "/v1/status")).json
        await harness.ask("POST", "/v1/tunnels/web/stop")
        assert (await take(events, "event"))["kind"] == "command"
        change = await take(events, "change")
        while change["changed"]["web"].get("state") != "stopped":
            change = await take(events, "change", "web")
        assert set(change["changed"]) == {"web"}
        assert "name" not in change["changed"]["web"]
        harness.file.write_text(FILE.replace("  spare:", "  new: client://127.0.0.1:1/127.0.0.1:2\n  other:"))
        await harness.ask("POST", "/v1/reload")
        event = await take(events, "event", '"reload"')
        assert event["generation"] == 2
        assert event["results"]["new"]["action"] == "added"
        change = await take(events, "change", "spare")
        assert change["removed"] == ["spare"]
        assert change["changed"]["new"]["name"] == "new"
        assert change["status"]["generation"] == 2


async def test_a_reload_is_shown_at_once_however_seldom_somebody_looks(harness: ApiHarness) -> None:
    async with harness.listening("/v1/watch?interval=60") as events:
        assert (await take(events, "status"))["config"]["ok"]
        harness.file.write_text(FILE + "  - wrong\n")
        await harness.ask("POST", "/v1/reload")
        assert not (await take(events, "change"))["status"]["config"]["ok"]
        harness.file.write_text(FILE.replace("  spare:", "  new: client://127.0.0.1:1/127.0.0.1:2\n  spare:"))
        await harness.ask("POST", "/v1/reload")
        change = await take(events, "change")
        assert change["changed"]["new"]["name"] == "new"
        assert (change["status"]["generation"], change["status"]["config"]["ok"]) == (2, True)


async def test_visitors_of_a_quiet_tunnel_are_seen_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"t{number}" for number in range(500)]
    text = "version: 1\ntunnels:\n" + "".join(f"  {name}: client://127.0.0.1:1/127.0.0.1:2\n" for name in names)
    async with running(tmp_path, text) as harness:
        await wait_until_async(lambda: all(harness.state(name) is State.UP for name in names))
        looked: list[int] = []
        look = harness.supervisor.look

        async def counting(those: Collection[str] | None = None, within: float = 0.0) -> list[Snapshot]:
            looked.append(len(those or ()))
            return await look(those, within)

        monkeypatch.setattr(harness.supervisor, "look", counting)
        async with harness.listening("/v1/watch?interval=0.1") as events:
            await take(events, "status")
            await wait_until_async(lambda: looked[-1] < 100)  # it looks at some of them in turn, for all are quiet
            for name in (names[77], names[400]):
                harness.workshop.last(name).visitor_left.clear()
                harness.supervisor.bus.notify_activity(name)
                before = len(looked)
                change = await take(events, "change")
                assert change["changed"][name]["connections"]["active"] == 1
                assert len(looked) - before <= 2


async def test_changes_make_the_status_again(harness: ApiHarness) -> None:
    async with harness.listening("/v1/watch?interval=0.1") as events:
        known = {tunnel["name"]: tunnel for tunnel in (await take(events, "status"))["tunnels"]}
        for name in ("web", ODD, "web"):
            await harness.ask("POST", f"/v1/tunnels/{quote(name, safe='')}/restart")
            await wait_until_async(lambda name=name: harness.state(name) is State.UP)  # type: ignore[misc]  # bound now, not later
        async with asyncio.timeout(GUARD_S):
            async for kind, data in events:
                if kind == "change":
                    for name, changed in data["changed"].items():
                        known[name] = {**known.get(name, {}), **changed}
                if list(known.values()) == [seen.as_json() for seen in harness.supervisor.snapshots()]:
                    break


async def test_a_new_log_line_reaches_only_who_wants_it(harness: ApiHarness) -> None:
    bus = harness.supervisor.bus
    bus.emit(LogLevel.WARN, "visitor", "before", tunnel="web")
    bus.emit(LogLevel.INFO, "visitor", "other", tunnel=ODD)
    async with harness.listening("/v1/logs?tunnel=web&level=warn&follow=true&n=1") as events:
        assert (await take(events, "event"))["text"] == "before"
        bus.emit(LogLevel.INFO, "visitor", "not grave enough", tunnel="web")
        bus.emit(LogLevel.ERROR, "visitor", "of another", tunnel=ODD)
        bus.emit(LogLevel.ERROR, "visitor", "after\u2028", tunnel="web")
        assert (await take(events, "event"))["text"] == "after\u2028"
    lines = (await harness.ask("GET", f"/v1/logs?n=2&level=info&tunnel={quote(ODD, safe='')}&tunnel=web")).json["lines"]
    assert [line["text"] for line in lines] == ["of another", "after\u2028"]


async def test_the_history_knows_what_became_of_tunnels(harness: ApiHarness) -> None:
    harness.supervisor.bus.emit(LogLevel.ERROR, "visitor", "no history")
    await harness.ask("POST", "/v1/tunnels/web/restart")
    async with harness.listening("/v1/events?n=3&follow=false") as events:
        kinds = [data["kind"] async for _, data in events]
    assert len(kinds) == 3
    assert set(kinds) <= {"state", "command"}


async def test_streams_end_with_the_daemon(tmp_path: Path) -> None:
    async with running(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "np.sock")
        writer.write(b"GET /v1/logs?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(GUARD_S):
            await reader.readuntil(b"tunnels started")
    async with asyncio.timeout(GUARD_S):
        rest = await reader.read()
    writer.close()
    assert b"all tunnels are closed" in rest
    assert rest.endswith(b"0\r\n\r\n"), "the answer ends as HTTP wants it"


async def test_a_reader_who_left_is_forgotten(harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_INTERVAL_S", 0.05)
    listeners = harness.supervisor.bus._subscribers
    before = len(listeners)
    async with (
        harness.listening("/v1/events"),
        harness.listening("/v1/watch"),
        harness.listening("/v1/logs?follow=true"),
    ):
        await wait_until_async(lambda: len(listeners) == before + 3)
    await wait_until_async(lambda: len(listeners) == before)


async def test_a_slow_reader_is_told_what_he_missed(harness: ApiHarness) -> None:
    bus = harness.supervisor.bus
    with stream.EventSubscription(bus, lambda _: True, stream.Subscriptions()) as subscription:
        for number in range(stream._MAX_QUEUED_EVENTS + 5):
            bus.emit(LogLevel.INFO, "visitor", str(number))
        events = await subscription.receive(1.0)
        assert len(events) == stream._MAX_QUEUED_EVENTS + 1
        assert events[-1].text == "5 events were dropped: the client reads too slowly"
        assert await subscription.receive(0.01) == []


async def test_tcp_is_for_bearers_of_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    section = "supervisor: {api: {listen: '127.0.0.1:0', token_file: token}, metrics: '127.0.0.1:0'}\n"
    async with running(tmp_path, FILE.replace("tunnels:", f"{section}tunnels:")) as harness:
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
async def test_a_door_that_cannot_be_opened(tmp_path: Path, section: str, token: str, sentence: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(SocketPathError, match=sentence):
        async with running(tmp_path, FILE.replace("tunnels:", f"supervisor: {{api: {section}}}\ntunnels:")):
            pass


async def test_the_document_validates_and_names_every_path(harness: ApiHarness) -> None:
    found = (await harness.ask("GET", "/openapi.json")).json
    validate(found)
    ours = set()
    for route in handlers.api_application(ControlService(harness.supervisor)).router.routes():
        path = route.resource.canonical if route.resource else ""
        names = [path.replace("{verb}", verb) for verb in VERBS] if "{verb}" in path else [path]
        ours |= {(name, route.method.lower()) for name in names}
    documented = {(path, method) for path, item in found["paths"].items() for method in item if method != "parameters"}
    assert documented == ours


async def test_the_document_describes_the_status_as_it_is(harness: ApiHarness) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schemas = document("1")["components"]["schemas"]
    status = (await harness.ask("GET", "/v1/status")).json
    one = (await harness.ask("GET", "/v1/tunnels/web")).json
    for name, data in (("Status", status), ("Inspection", one)):
        jsonschema.validate(data, {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})
    assert (
        replace(harness.supervisor.snapshot("web"), rtt_ms=1.5).as_json().keys()
        == schemas["Tunnel"]["properties"].keys()
    )
