"""The traffic history of real visitors, over the life of its daemon."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.support.peers import exchange
from tests.support.processes import Daemon, ProcessHarness
from tests.support.waiting import wait_until


def traffic(harness: ProcessHarness, daemon: Daemon, *arguments: str) -> dict[str, Any]:
    """Return what ``traffic --json`` shows of the only tunnel."""
    command = harness.start_command("traffic", "t", "--json", *arguments, "--socket", str(daemon.socket))
    assert command.wait_exit() == 0
    (tunnel,) = json.loads(command.stdout_text())["tunnels"]
    shown: dict[str, Any] = tunnel
    return shown


def test_both_ends_record_their_visitors_and_a_new_daemon_continues(harness: ProcessHarness) -> None:
    pair = harness.start_pair().wait_up()
    for _ in range(5):
        assert exchange(pair.visitors, b"x" * 1000) == b"x" * 1000
    wait_until(lambda: all(daemon.tunnel()["bytes"]["out"] == 5000 for daemon in (pair.server, pair.client)))
    for daemon in (pair.server, pair.client):
        (row,) = traffic(harness, daemon, "--by", "month")["rows"]
        assert {key: row[key] for key in ("in", "out", "visitors", "failed")} == {
            "in": 5000, "out": 5000, "visitors": 5, "failed": 0,
        }  # fmt: skip
    pair.server.signal(signal.SIGTERM)
    assert pair.server.wait_exit() == 0
    pair.server.start()
    pair.wait_up()
    assert exchange(pair.visitors, b"y" * 500) == b"y" * 500
    wait_until(lambda: pair.server.tunnel()["bytes"]["out"] == 500)
    assert traffic(harness, pair.server)["total"]["out"] == 5500
    assert traffic(harness, pair.server, "--by", "hour")["total"]["visitors"] == 6
