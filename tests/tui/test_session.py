"""The session: what changes the view, the connection and the notice."""

from __future__ import annotations

from pathlib import Path

from tests.tui.fake import Json
from tui.session import DashboardSession
from tui.sources.base import (
    Disconnected,
    EventReceived,
    SourceHeartbeat,
    SourceMessage,
    StatusChanged,
    StatusReceived,
)
from tui.sources.daemon import ApiSource

VALID: Json = {"path": "/t.yaml", "ok": True, "error": None}
INVALID: Json = {"path": "/t.yaml", "ok": False, "error": "/t.yaml:1:1: unknown key"}
STATUS: Json = {"ts": "2026-01-01T12:00:00.000Z", "generation": 1, "config": VALID, "tunnels": []}
RELOAD: Json = {"kind": "reload", "generation": 2, "results": {"web": {"action": "added"}}}


def change(**status: Json) -> StatusChanged:
    return StatusChanged({"ts": "2026-01-01T12:00:00.000Z", "changed": {}, "removed": [], "status": status})  # type: ignore[typeddict-item]  # a part of the status


def test_details_are_outdated_after_a_reconnect_and_after_a_change_of_the_file() -> None:
    session = DashboardSession(ApiSource(Path("/nowhere")))
    messages: list[tuple[SourceMessage, bool]] = [
        (StatusReceived(STATUS), True),
        (change(), False),
        (change(mqtt={"state": "off"}), False),
        (change(config=INVALID), True),
        (change(config=INVALID), False),
        (change(config=VALID), True),
        (change(generation=2), True),
        (EventReceived(RELOAD), False),
        (Disconnected("refused"), False),
        (StatusReceived(STATUS), True),
    ]
    assert [session.apply(message) for message, _ in messages] == [is_outdated for _, is_outdated in messages]
    assert session.notice == "Generation 2: added web"


def test_a_heartbeat_counts_as_an_answer_of_the_daemon() -> None:
    now = 100.0
    session = DashboardSession(ApiSource(Path("/nowhere")), now=lambda: now)
    session.apply(StatusReceived(STATUS))
    now = 5000.0
    session.apply(SourceHeartbeat())
    now = 5003.0
    session.apply(Disconnected("refused"))
    assert session.connection().silent_for == 3.0
