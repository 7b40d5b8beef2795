"""The supervisor: neighbours are neighbours, commands do what they say, the end is orderly. And its local API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import doors
from orchestrator.client import Client, NoDaemonError, RefusedError
from orchestrator.config.load import load
from orchestrator.supervisor.desk import Desk
from orchestrator.supervisor.supervisor import Supervisor, UnknownTunnelError
from tests.orchestrator.fakes import Workshop, until
from tests.scale import GUARD
from tunnel.model.state import State

FILE = """
version: 1
supervisor: {drain_timeout: 30s}
tunnels:
  web: server://127.0.0.1:10101/127.0.0.1:8080
  "a/b [red]": {url: "client://127.0.0.1:10102/127.0.0.1:80", tags: [prod]}
  spare: {url: "client://127.0.0.1:10103/127.0.0.1:80", enabled: false}
"""


class House:
    """A running supervisor."""

    def __init__(self, supervisor: Supervisor, workshop: Workshop, socket: Path) -> None:
        self.supervisor = supervisor
        self.workshop = workshop
        self.socket = socket
        self.life = asyncio.create_task(supervisor.run())

    def state(self, name: str) -> State:
        return self.supervisor.snapshot(name).state

    async def ask(self, method: str, *arguments: str) -> dict[str, Any]:
        """Use the client as a command does, in a thread of its own."""
        answer: dict[str, Any] = await asyncio.to_thread(getattr(Client(self.socket), method), *arguments)
        return answer


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    file = tmp_path / "tunnels.yaml"
    file.write_text(FILE)
    workshop = Workshop()
    manifest = load(file, {})
    supervisor = Supervisor(manifest, make_engine=workshop)
    async with doors.opened(Desk(supervisor), tmp_path / "np.sock", manifest.supervisor):
        house = House(supervisor, workshop, tmp_path / "np.sock")
        await until(lambda: house.state("web") is house.state("a/b [red]") is State.UP)
        yield house
        supervisor.close()
        await asyncio.wait_for(house.life, GUARD)


async def test_enabled_entries_run_and_disabled_ones_are_shown(house: House) -> None:
    shown = [(s.name, s.state, s.reason) for s in house.supervisor.snapshots()]
    assert shown == [
        ("web", State.UP, None),
        ("a/b [red]", State.UP, None),
        ("spare", State.STOPPED, "disabled in the file"),
    ]
    assert "spare" not in house.workshop.made


async def test_an_engine_that_breaks_takes_nobody_along(house: House) -> None:
    house.workshop.last("web").defect.set_exception(RuntimeError("broken"))
    await until(lambda: len(house.workshop.made["web"]) == 2 and house.state("web") is State.UP)
    assert house.supervisor.snapshot("web").restarts == 1
    assert len(house.workshop.made["a/b [red]"]) == 1
    assert any(event.kind == "restart" for event in house.supervisor.bus.recent("web"))


async def test_commands_by_name(house: House) -> None:
    supervisor = house.supervisor
    supervisor.stop("web")
    await until(lambda: house.state("web") is State.STOPPED)
    supervisor.start("web")
    await until(lambda: house.state("web") is State.UP)
    supervisor.drain("web")
    await until(lambda: house.state("web") is State.STOPPED)
    assert [engine.drained_with for engine in house.workshop.made["web"]] == [[None], [30.0]]
    supervisor.restart("a/b [red]")
    await until(lambda: len(house.workshop.made["a/b [red]"]) == 2 and house.state("a/b [red]") is State.UP)
    supervisor.start("spare")
    await until(lambda: house.state("spare") is State.UP)
    with pytest.raises(UnknownTunnelError, match="no tunnel is named 'nope'"):
        supervisor.stop("nope")


async def test_shutdown_drains_and_waits_for_visitors(house: House) -> None:
    engine = house.workshop.last("web")
    engine.visitor_left.clear()
    house.supervisor.shutdown()
    await until(lambda: house.state("a/b [red]") is State.STOPPED)
    assert house.state("web") is State.DRAINING
    assert not house.life.done()
    assert engine.drained_with == [30.0]
    engine.visitor_left.set()
    await asyncio.wait_for(house.life, GUARD)
    assert house.state("web") is State.STOPPED


async def test_close_cuts_a_drain_short(house: House) -> None:
    house.workshop.last("web").visitor_left.clear()
    house.supervisor.shutdown()
    house.supervisor.close()
    await asyncio.wait_for(house.life, GUARD)


async def test_an_engine_that_does_not_end_is_cancelled(house: House) -> None:
    house.workshop.last("web").visitor_left.clear()
    house.workshop.last("web").deaf = True
    house.supervisor.close()
    await asyncio.wait_for(house.life, GUARD)


async def test_status_has_the_keys_of_the_contract(house: House) -> None:
    status = await house.ask("status")
    assert set(status) >= {"generation", "pid", "config", "mqtt", "tunnels", "version", "host", "started_at"}
    assert status["read_only"] is False
    assert status["config"] | {"loaded_at": None} == {
        "path": str(house.socket.parent / "tunnels.yaml"),
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


async def test_one_tunnel_by_its_name_whatever_it_is(house: House) -> None:
    assert (await house.ask("tunnel", "a/b [red]"))["target_addr"] == "127.0.0.1:80"
    with pytest.raises(RefusedError, match="no tunnel is named 'x'"):
        await house.ask("tunnel", "x")


async def test_shutdown_over_the_socket(house: House) -> None:
    answer = await house.ask("shutdown")
    assert answer["ok"] is True
    await asyncio.wait_for(house.life, GUARD)


async def raw(socket: Path, request: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), GUARD)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET /nope", 404), ("DELETE /v1/status", 405), ("GET /v1/tunnels/nope", 404), ("POST /healthz", 405)],
)
async def test_errors_are_problems(house: House, request_line: str, status: int) -> None:
    found, headers, body = await raw(house.socket, request_line)
    problem = json.loads(body)
    assert (found, problem["status"]) == (status, status)
    assert headers["content-type"].startswith("application/problem+json")
    assert problem["detail"]


async def test_a_defect_in_an_answer_shows_nothing_of_the_inside(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(house.supervisor, "head", broken)
    found, _, body = await raw(house.socket, "GET /v1/status")
    assert found == 500
    assert b"inside" not in body
    assert any("inside" in event.text for event in house.supervisor.bus.recent(""))


async def test_health_and_readiness(house: House) -> None:
    assert (await raw(house.socket, "GET /healthz"))[0] == 200
    assert (await raw(house.socket, "GET /readyz"))[0] == 200
    house.workshop.last("web").visitor_left.clear()
    house.supervisor.shutdown()
    assert (await raw(house.socket, "GET /healthz"))[0] == 200
    assert (await raw(house.socket, "GET /readyz"))[0] == 503


async def test_the_socket_is_its_owners_alone(house: House) -> None:
    assert house.socket.stat().st_mode & 0o777 == 0o600


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"no daemon answers at .*nodepass-orch up"):
        Client(tmp_path / "no.sock").status()


async def test_somebody_else_answers(tmp_path: Path) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "np.sock"):
        with pytest.raises(NoDaemonError, match="does not answer as a daemon"):
            await asyncio.to_thread(Client(tmp_path / "np.sock").status)
