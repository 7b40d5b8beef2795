"""The supervisor: neighbours are neighbours, commands do what they say, the end is orderly. And its local API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.server import serve_api
from orchestrator.client import ApiClient, NoDaemonError, RequestRefusedError
from orchestrator.config.load import load
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.registry import UnknownTunnelError
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import FakeEngineFactory
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.state import State

FILE = """
version: 1
supervisor: {drain_timeout: 30s}
tunnels:
  web: server://127.0.0.1:10101/127.0.0.1:8080
  "a/b [red]": {url: "client://127.0.0.1:10102/127.0.0.1:80", tags: [prod]}
  spare: {url: "client://127.0.0.1:10103/127.0.0.1:80", enabled: false}
"""


class SupervisorHarness:
    """A running supervisor with fake engines."""

    def __init__(self, supervisor: Supervisor, engines: FakeEngineFactory, socket: Path) -> None:
        self.supervisor = supervisor
        self.engines = engines
        self.socket = socket
        self.life = asyncio.create_task(supervisor.run())

    def state(self, name: str) -> State:
        return self.supervisor.snapshot(name).state

    async def ask(self, method: str, *arguments: str) -> dict[str, Any]:
        """Use the client as a command does, in a thread of its own."""
        answer: dict[str, Any] = await asyncio.to_thread(getattr(ApiClient(self.socket), method), *arguments)
        return answer


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[SupervisorHarness]:
    file = tmp_path / "tunnels.yaml"
    file.write_text(FILE)
    engines = FakeEngineFactory()
    manifest = load(file, {})
    supervisor = Supervisor(manifest, engine_factory=engines)
    async with serve_api(ControlService(supervisor), tmp_path / "np.sock", manifest.supervisor):
        harness = SupervisorHarness(supervisor, engines, tmp_path / "np.sock")
        await wait_until_async(lambda: harness.state("web") is harness.state("a/b [red]") is State.UP)
        yield harness
        supervisor.close()
        await asyncio.wait_for(harness.life, GUARD_S)


async def test_enabled_entries_run_and_disabled_ones_are_shown(harness: SupervisorHarness) -> None:
    shown = [(s.name, s.state, s.reason) for s in harness.supervisor.snapshots()]
    assert shown == [
        ("web", State.UP, None),
        ("a/b [red]", State.UP, None),
        ("spare", State.STOPPED, "disabled in the file"),
    ]
    assert "spare" not in harness.engines.made


async def test_a_crash_of_one_engine_affects_no_other(harness: SupervisorHarness) -> None:
    harness.engines.last("web").crash.set_exception(RuntimeError("broken"))
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2 and harness.state("web") is State.UP)
    assert harness.supervisor.snapshot("web").restarts == 1
    assert len(harness.engines.made["a/b [red]"]) == 1
    assert any(event.kind == "restart" for event in harness.supervisor.bus.events_of("web"))


async def test_commands_act_on_the_named_tunnel(harness: SupervisorHarness) -> None:
    supervisor = harness.supervisor
    supervisor.stop("web")
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)
    supervisor.start("web")
    await wait_until_async(lambda: harness.state("web") is State.UP)
    supervisor.drain("web")
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)
    assert [engine.drained_with for engine in harness.engines.made["web"]] == [[None], [30.0]]
    supervisor.restart("a/b [red]")
    await wait_until_async(
        lambda: len(harness.engines.made["a/b [red]"]) == 2 and harness.state("a/b [red]") is State.UP
    )
    supervisor.start("spare")
    await wait_until_async(lambda: harness.state("spare") is State.UP)
    with pytest.raises(UnknownTunnelError, match="no tunnel is named 'nope'"):
        supervisor.stop("nope")


async def test_shutdown_drains_and_waits_for_visitors(harness: SupervisorHarness) -> None:
    engine = harness.engines.last("web")
    engine.visitor_left.clear()
    harness.supervisor.shutdown()
    await wait_until_async(lambda: harness.state("a/b [red]") is State.STOPPED)
    assert harness.state("web") is State.DRAINING
    assert not harness.life.done()
    assert engine.drained_with == [30.0]
    engine.visitor_left.set()
    await asyncio.wait_for(harness.life, GUARD_S)
    assert harness.state("web") is State.STOPPED


async def test_close_ends_a_drain_at_once(harness: SupervisorHarness) -> None:
    harness.engines.last("web").visitor_left.clear()
    harness.supervisor.shutdown()
    harness.supervisor.close()
    await asyncio.wait_for(harness.life, GUARD_S)


async def test_an_engine_that_does_not_end_is_cancelled(harness: SupervisorHarness) -> None:
    harness.engines.last("web").visitor_left.clear()
    harness.engines.last("web").ignores_close = True
    harness.supervisor.close()
    await asyncio.wait_for(harness.life, GUARD_S)


async def test_status_has_the_keys_of_the_contract(harness: SupervisorHarness) -> None:
    status = await harness.ask("status")
    assert set(status) >= {"generation", "pid", "config", "mqtt", "tunnels", "version", "host", "started_at"}
    assert status["read_only"] is False
    assert status["config"] | {"loaded_at": None} == {
        "path": str(harness.socket.parent / "tunnels.yaml"),
        "ok": True,
        "error": None,
        "line": None,
        "column": None,
        "warnings": [],
        "loaded_at": None,
    }
    assert status["mqtt"] == {"state": "off"}
    assert [(t["name"], t["tags"], t["restarts"]) for t in status["tunnels"]] == [
        ("web", [], 0),
        ("a/b [red]", ["prod"], 0),
        ("spare", [], 0),
    ]


async def test_a_tunnel_is_found_by_a_name_with_special_characters(harness: SupervisorHarness) -> None:
    assert (await harness.ask("tunnel", "a/b [red]"))["target_addr"] == "127.0.0.1:80"
    with pytest.raises(RequestRefusedError, match="no tunnel is named 'x'"):
        await harness.ask("tunnel", "x")


async def test_the_api_shuts_the_daemon_down(harness: SupervisorHarness) -> None:
    answer = await harness.ask("shutdown")
    assert answer["ok"] is True
    await asyncio.wait_for(harness.life, GUARD_S)


async def raw(socket: Path, request: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), GUARD_S)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET /nope", 404), ("DELETE /v1/status", 405), ("GET /v1/tunnels/nope", 404), ("POST /healthz", 405)],
)
async def test_errors_are_problems(harness: SupervisorHarness, request_line: str, status: int) -> None:
    found, headers, body = await raw(harness.socket, request_line)
    problem = json.loads(body)
    assert (found, problem["status"]) == (status, status)
    assert headers["content-type"].startswith("application/problem+json")
    assert problem["detail"]


async def test_an_internal_error_of_the_api_is_logged_and_not_sent(
    harness: SupervisorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(harness.supervisor, "config_status", broken)
    found, _, body = await raw(harness.socket, "GET /v1/status")
    assert found == 500
    assert b"inside" not in body
    assert any("inside" in event.text for event in harness.supervisor.bus.events_of(""))


async def test_readiness_ends_with_the_shutdown_and_liveness_does_not(harness: SupervisorHarness) -> None:
    assert (await raw(harness.socket, "GET /healthz"))[0] == 200
    assert (await raw(harness.socket, "GET /readyz"))[0] == 200
    harness.engines.last("web").visitor_left.clear()
    harness.supervisor.shutdown()
    assert (await raw(harness.socket, "GET /healthz"))[0] == 200
    assert (await raw(harness.socket, "GET /readyz"))[0] == 503


async def test_only_the_owner_may_use_the_socket(harness: SupervisorHarness) -> None:
    assert harness.socket.stat().st_mode & 0o777 == 0o600


def test_a_missing_daemon_is_reported_with_the_command_that_starts_one(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"no daemon answers at .*nodepass-orch up"):
        ApiClient(tmp_path / "no.sock").status()


async def test_an_answer_of_another_program_is_reported(tmp_path: Path) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "np.sock"):
        with pytest.raises(NoDaemonError, match="does not answer as a nodepass-orch daemon"):
            await asyncio.to_thread(ApiClient(tmp_path / "np.sock").status)
