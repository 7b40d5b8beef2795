from __future__ import annotations

import pickle
import time

import pytest

from tunnel.model.events import Event, EventLog
from tunnel.model.spec import LogLevel


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock that goes when the test says so: its only element is the time."""
    now = [1000.0]
    monkeypatch.setattr("tunnel.model.events.time.monotonic", lambda: now[0])
    return now


def test_events_carry_who_when_how_grave_and_what() -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    event_log.log_info("listen", "listening on 127.0.0.1:1", port=1)
    event_log.log_warn("refused", "wrong key")
    event_log.log_error("target", "cannot listen")
    assert [(e.tunnel, e.level, e.kind) for e in events] == [
        ("web", LogLevel.INFO, "listen"),
        ("web", LogLevel.WARN, "refused"),
        ("web", LogLevel.ERROR, "target"),
    ]
    assert events[0].data == {"port": 1}
    assert events[0].ts == pytest.approx(time.time(), abs=60)
    assert pickle.loads(pickle.dumps(events)) == events  # noqa: S301  our own bytes


def test_detail_is_made_only_for_somebody_who_asked() -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    event_log.log_debug("pool", "refilled")
    assert not events
    event_log.level = LogLevel.DEBUG
    event_log.log_debug("pool", "refilled")
    assert [e.level for e in events] == [LogLevel.DEBUG]


def test_what_is_not_detail_reaches_the_sink_at_every_level() -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append, LogLevel.FATAL)
    event_log.log_info("state", "up")
    assert len(events) == 1


def test_strangers_cannot_flood_the_log(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for _ in range(1000):
        event_log.warn_throttled("refused", "127.0.0.9", "wrong key from 127.0.0.9")
    assert [e.text for e in events] == ["wrong key from 127.0.0.9"]
    clock[0] += 60
    event_log.warn_throttled("refused", "127.0.0.9", "wrong key from 127.0.0.9")
    assert "999 more" in events[-1].text
    clock[0] += 60
    event_log.warn_throttled("refused", "127.0.0.9", "wrong key from 127.0.0.9")
    assert events[-1].text == "wrong key from 127.0.0.9"


def test_one_topic_does_not_silence_another(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for host in range(10):
        event_log.warn_throttled("refused", f"127.0.0.{host}", "wrong key")
    assert len(events) == 10
    assert clock == [1000.0]


def test_topics_are_forgotten_and_never_without_bound(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for stranger in range(10_000):
        clock[0] += 0.1
        event_log.warn_throttled("refused", f"stranger {stranger}", "wrong key")
    assert len(event_log._throttled) < 1000
    for stranger in range(5_000):  # all in one moment: nothing is old enough to be forgotten by age
        event_log.warn_throttled("refused", f"another {stranger}", "wrong key")
    assert len(event_log._throttled) < 1000
