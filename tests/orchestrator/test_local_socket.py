"""The local socket is created again, also when the first attempt fails."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.api import local_socket
from orchestrator.supervisor.event_bus import EventBus
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    import pytest


async def test_a_removed_socket_is_created_again_after_an_attempt_without_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bus, texts = tmp_path / "s", EventBus(), list[str]()
    bus.subscribe(lambda event: texts.append(event.text))
    make_listener, failures = local_socket._unix_listener, iter([OSError(errno.EMFILE, os.strerror(errno.EMFILE))])

    def make_listener_later(at: Path) -> socket.socket:
        for failure in failures:
            raise failure
        return make_listener(at)

    monkeypatch.setattr(local_socket, "CHECK_INTERVAL_S", 0.01)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    async with local_socket.serve_local_socket(runner, path, bus, lambda: path):
        monkeypatch.setattr(local_socket, "_unix_listener", make_listener_later)
        path.unlink()
        await wait_until_async(path.exists, "the socket is there again")
        await wait_until_async(lambda: len(texts) == 2, "both attempts are reported")
        assert "commands cannot reach this daemon" in texts[0]
        assert "too many open files" in texts[0]
        assert "a new one listens" in texts[1]
    await runner.cleanup()
    assert not path.exists()
