from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from types import MappingProxyType

import pytest

from tunnel.model.events import Event, EventKind, EventLog
from tunnel.model.spec import LogLevel


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock that the test advances: its only element is the time."""
    now = [1000.0]
    monkeypatch.setattr("tunnel.model.events.time.monotonic", lambda: now[0])
    return now


def test_an_event_has_tunnel_time_level_kind_and_text() -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    event_log.log_info(EventKind.LISTEN, "listening on 127.0.0.1:1", port=1)
    event_log.log_warn(EventKind.REFUSED, "wrong key")
    event_log.log_error(EventKind.TARGET, "cannot listen")
    assert [(e.tunnel, e.level, e.kind) for e in events] == [
        ("web", LogLevel.INFO, "listen"),
        ("web", LogLevel.WARN, "refused"),
        ("web", LogLevel.ERROR, "target"),
    ]
    assert events[0].data == {"port": 1}
    assert events[0].ts == pytest.approx(time.time(), abs=60)
    assert pickle.loads(pickle.dumps(events)) == events  # noqa: S301  our own bytes


def test_debug_events_are_created_only_at_level_debug() -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    event_log.log_debug(EventKind.POOL, "refilled")
    assert not events
    event_log.level = LogLevel.DEBUG
    event_log.log_debug(EventKind.POOL, "refilled")
    assert [e.level for e in events] == [LogLevel.DEBUG]


def test_all_other_events_reach_the_sink_at_every_level() -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append, LogLevel.FATAL)
    event_log.log_info(EventKind.STATE, "up")
    assert len(events) == 1


def test_repeated_warnings_of_one_topic_are_throttled_and_counted(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for _ in range(1000):
        event_log.warn_throttled(EventKind.REFUSED, "127.0.0.9", "wrong key from 127.0.0.9")
    assert [e.text for e in events] == ["wrong key from 127.0.0.9"]
    clock[0] += 60
    event_log.warn_throttled(EventKind.REFUSED, "127.0.0.9", "wrong key from 127.0.0.9")
    assert "999 more" in events[-1].text
    clock[0] += 60
    event_log.warn_throttled(EventKind.REFUSED, "127.0.0.9", "wrong key from 127.0.0.9")
    assert events[-1].text == "wrong key from 127.0.0.9"


class Timers:
    """Timers of a test, which run when the test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timers:
        self.due.append((delay_s, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1
        self.due.clear()


def test_what_was_suppressed_last_is_counted_by_a_line_of_its_own(clock: list[float]) -> None:
    events: list[Event] = []
    timers = Timers()
    event_log = EventLog("web", events.append, call_later=timers.call_later)
    for _ in range(3):
        event_log.warn_throttled(EventKind.REFUSED, "rate", "a visitor was refused", visitor="127.0.0.1:9")
    [(delay_s, on_timer)] = timers.due
    timers.due.clear()
    clock[0] += delay_s
    on_timer()
    assert [event.text for event in events[1:]] == ["2 more were suppressed after this: a visitor was refused"]
    assert (events[1].level, events[1].kind, dict(events[1].data)) == (
        LogLevel.WARN,
        EventKind.REFUSED,
        {"suppressed": 2},
    )
    assert not timers.due
    event_log.warn_throttled(EventKind.REFUSED, "rate", "a visitor was refused")
    assert events[-1].text == "a visitor was refused"


def test_while_events_go_on_their_own_lines_count_what_was_suppressed(clock: list[float]) -> None:
    events: list[Event] = []
    timers = Timers()
    event_log = EventLog("web", events.append, call_later=timers.call_later)
    for second in range(61):
        event_log.warn_throttled(EventKind.REFUSED, "rate", "a visitor was refused")
        if second % 10 == 0 and second:
            [(_, on_timer)] = timers.due
            timers.due.clear()
            on_timer()
        clock[0] += 1
    assert {event.text for event in events} == {
        "a visitor was refused",
        "a visitor was refused (4 more were suppressed)",
    }


def test_each_topic_is_counted_in_its_own_time(clock: list[float]) -> None:
    events: list[Event] = []
    timers = Timers()
    event_log = EventLog("web", events.append, call_later=timers.call_later)
    for topic in ("a", "b"):
        for _ in range(2):
            event_log.warn_throttled(EventKind.REFUSED, topic, f"refused for {topic}")
        clock[0] += 4
    for text in ("1 more was suppressed after this: refused for a", "1 more was suppressed after this: refused for b"):
        [(_, on_timer)] = timers.due
        timers.due.clear()
        clock[0] += 4
        on_timer()
        assert events[-1].text == text
    assert not timers.due


def test_a_log_that_ends_counts_what_was_suppressed(clock: list[float]) -> None:
    events: list[Event] = []
    timers = Timers()
    event_log = EventLog("web", events.append, call_later=timers.call_later)
    for _ in range(2):
        event_log.warn_throttled(EventKind.REFUSED, "rate", "a visitor was refused")
    event_log.close()
    event_log.close()
    assert events[-1].text == "1 more was suppressed after this: a visitor was refused"
    assert (len(events), timers.cancelled, clock) == (2, 1, [1000.0])


def test_topics_are_throttled_separately(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for host in range(10):
        event_log.warn_throttled(EventKind.REFUSED, f"127.0.0.{host}", "wrong key")
    assert len(events) == 10
    assert clock == [1000.0]


def test_what_a_peer_causes_again_and_again_is_paced_after_a_burst(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for number in range(1000):
        event_log.log_paced(LogLevel.INFO, EventKind.LINK, "link", f"link {number}")
    assert [event.text for event in events] == [f"link {number}" for number in range(len(events))]
    assert len(events) == 50
    event_log.log_paced(LogLevel.INFO, EventKind.LINK, "lost", "another topic")
    clock[0] += 1.5
    event_log.log_paced(LogLevel.INFO, EventKind.LINK, "link", "one more")
    assert [event.text for event in events[50:]] == ["another topic", "one more (950 more were suppressed)"]


def test_the_number_of_remembered_topics_is_bounded(clock: list[float]) -> None:
    events: list[Event] = []
    event_log = EventLog("web", events.append)
    for number in range(10_000):
        clock[0] += 0.1
        event_log.warn_throttled(EventKind.REFUSED, f"topic {number}", "wrong key")
    assert len(event_log._throttled) < 1000
    for number in range(5_000):  # all at one time: no topic is old enough to be dropped for its age
        event_log.warn_throttled(EventKind.REFUSED, f"another {number}", "wrong key")
    assert len(event_log._throttled) < 1000


def test_an_event_is_one_json_object() -> None:
    event = Event(
        ts=0.0,
        tunnel="web",
        level=LogLevel.WARN,
        kind=EventKind.REFUSED,
        text="no",
        data=MappingProxyType({"peer": "127.0.0.1:5"}),
    )
    assert json.loads(json.dumps(event.as_json())) == {
        "ts": "1970-01-01T00:00:00.000Z",
        "tunnel": "web",
        "level": "warn",
        "kind": "refused",
        "text": "no",
        "peer": "127.0.0.1:5",
    }


def test_the_data_of_an_event_cannot_replace_its_fixed_keys() -> None:
    event = Event(
        ts=0.0, tunnel="web", level=LogLevel.WARN, kind=EventKind.REFUSED, text="no", data={"tunnel": "other"}
    )
    assert event.as_json()["tunnel"] == "web"
