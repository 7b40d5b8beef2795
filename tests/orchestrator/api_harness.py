"""A supervisor of fake engines with its local API, and a client that checks every answer against the document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from orchestrator.api import stream
from orchestrator.api.server import serve_api
from orchestrator.config.load import load
from orchestrator.supervisor.control import ControlService
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import FakeEngineFactory
from tests.support.openapi import check_answer, check_event
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
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
    """An answer with its body read."""

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
        self, control: ControlService, engines: FakeEngineFactory, session: aiohttp.ClientSession, file: Path
    ) -> None:
        self.control = control
        self.supervisor = control.supervisor
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
    path: Path,
    text: str = FILE,
    *,
    read_only: bool = False,
    limits: stream.StreamLimits | None = None,
    waits_until_ready: bool = True,
) -> AsyncIterator[ApiHarness]:
    file = path / "tunnels.yaml"
    file.write_text(text)
    manifest = load(file, {})
    engines = FakeEngineFactory()
    supervisor = Supervisor(manifest, engine_factory=engines)
    control = ControlService(supervisor, read_only=read_only)
    socket = path / "np.sock"
    async with (
        serve_api(control, socket, manifest.supervisor, limits),
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), read_bufsize=1 << 20
        ) as session,  # of 500 tunnels
    ):
        harness = ApiHarness(control, engines, session, file)
        running = asyncio.create_task(supervisor.run())
        await wait_until_async(lambda: supervisor.is_ready or not waits_until_ready)
        yield harness
        supervisor.close()
        await asyncio.wait_for(running, GUARD_S)
