from pathlib import Path

from tui.sources import ApiSource, Beat, Change, Happened, Heard, Lost, Status
from tui.watch import Watch

GOOD = {"path": "/t.yaml", "ok": True, "error": None}
WRONG = {"path": "/t.yaml", "ok": False, "error": "/t.yaml:1:1: unknown key"}


def change(**status: object) -> Change:
    return Change({"ts": "2026-01-01T12:00:00.000Z", "changed": {}, "removed": [], "status": status})


def test_what_concerns_the_whole_screen_is_told_from_what_changes_in_it() -> None:
    watch = Watch(ApiSource(Path("/nowhere")))
    status = {"ts": "2026-01-01T12:00:00.000Z", "generation": 1, "config": GOOD, "tunnels": []}
    heard: list[tuple[Heard, bool]] = [
        (Status(status), True),
        (change(), False),
        (change(mqtt={"state": "off"}), False),
        (change(config=WRONG), True),
        (change(config=WRONG), False),
        (change(config=GOOD), True),
        (change(generation=2), True),
        (Happened({"kind": "reload", "generation": 2, "results": {"web": {"action": "added"}}}), False),
        (Lost("refused"), False),
        (Status(status), True),
    ]
    assert [watch.hear(message) for message, _ in heard] == [whole for _, whole in heard]
    assert watch.notice == "Generation 2: added web"


def test_a_daemon_that_is_silent_but_there_is_not_lost_for_long() -> None:
    now = 100.0
    watch = Watch(ApiSource(Path("/nowhere")), now=lambda: now)
    watch.hear(Status({"ts": "2026-01-01T12:00:00.000Z", "generation": 1, "config": GOOD, "tunnels": []}))
    now = 5000.0
    watch.hear(Beat())
    now = 5003.0
    watch.hear(Lost("refused"))
    assert watch.attached().lost_for == 3.0
