"""The fake daemon answers as the OpenAPI document of the local API says."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.support.openapi import check_answer, check_event
from tests.tui.fake import FakeDaemon


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("GET", "/v1/tunnels/db-east"),
        ("GET", "/v1/tunnels/no-such-tunnel"),
        ("POST", "/v1/tunnels/db-east/restart"),
        ("GET", "/v1/plan"),
        ("POST", "/v1/reload"),
    ],
)
async def test_answers_match_the_openapi_document(socket: Path, daemon: FakeDaemon, method: str, path: str) -> None:
    async with (
        aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(socket))) as session,
        session.request(method, path) as response,
    ):
        check_answer(method, path, response.status, await response.json(content_type=None))


async def test_a_refused_command_matches_the_openapi_document(socket: Path, daemon: FakeDaemon) -> None:
    daemon.refusal, path = "it is draining", "/v1/tunnels/db-east/stop"
    async with (
        aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(socket))) as session,
        session.post(path) as response,
    ):
        assert response.status == 409
        check_answer("POST", path, response.status, await response.json(content_type=None))


def test_messages_of_the_stream_match_the_openapi_document(socket: Path) -> None:
    daemon = FakeDaemon(socket)
    change = daemon.change_message(changed={"db-east": {"state": "failed"}}, removed=["edge-7"])
    check_event("/v1/watch", "change", change)
    check_event("/v1/watch", "event", daemon.event("info", "state", "it is up", "db-east"))
    check_event("/v1/watch", "status", {**daemon.status, "tunnels": list(daemon.tunnels.values())})
