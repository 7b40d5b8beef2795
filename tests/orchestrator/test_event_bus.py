"""The event bus keeps the latest events for readers and passes each on to its subscribers; neither without bound."""

from __future__ import annotations

from orchestrator.supervisor import event_bus
from orchestrator.supervisor.event_bus import MAX_EVENTS, MAX_EVENTS_PER_TUNNEL, SUPERVISOR, EventBus
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel


def event(number: float, tunnel: str = "web", kind: str = EventKind.LINK, level: LogLevel = LogLevel.INFO) -> Event:
    return Event(ts=number, tunnel=tunnel, level=level, kind=EventKind(kind), text=str(number))


def texts(events: list[Event] | tuple[Event, ...]) -> list[str]:
    return [event.text for event in events]


def any_event(_: Event) -> bool:
    return True


def test_the_latest_events_of_one_of_some_and_of_all_tunnels_come_oldest_first() -> None:
    bus = EventBus()
    for number in range(9):
        bus.publish(event(number, "abc"[number % 3]))
    assert texts(bus.last_events(2, any_event, ["a"])) == ["3", "6"]
    assert texts(bus.last_events(3, any_event, ["a", "c"])) == ["5", "6", "8"]
    assert texts(bus.last_events(4, any_event)) == ["5", "6", "7", "8"]
    assert texts(bus.last_events(2, lambda event: int(event.text) < 5)) == ["3", "4"]
    assert bus.last_events(0, any_event) == bus.last_events(3, any_event, ["unknown"]) == []
    assert (bus.has_events_of("a"), bus.has_events_of("unknown")) == (True, False)


def test_a_clock_that_was_set_back_hides_no_later_event() -> None:
    bus = EventBus()
    for number, text in enumerate((5000, 5001, 1400, 1401)):
        bus.publish(event(text, "ab"[number % 2]))
    assert texts(bus.last_events(2, any_event, ["a", "b"])) == ["1400", "1401"]


def test_many_events_of_one_tunnel_displace_none_of_another() -> None:
    bus = EventBus()
    bus.publish(event(1, "quiet"))
    bus.publish(event(2, "busy", kind="state"))
    for number in range(3, MAX_EVENTS + 10):
        bus.publish(event(number, "busy"))
    assert len(bus.events_of("busy")) == MAX_EVENTS_PER_TUNNEL
    assert texts(bus.events_of("quiet")) == texts(bus.last_events(9, any_event, ["quiet"])) == ["1"]
    assert len(bus.last_events(MAX_EVENTS + 99, any_event)) == MAX_EVENTS
    assert texts(bus.last_history(9)) == ["2"]


def test_the_history_has_only_its_kinds() -> None:
    bus = EventBus()
    for number, kind in enumerate(("state", "link", "reload", "visitor", "command", "restart")):
        bus.publish(event(number, kind=kind))
    assert texts(bus.last_history(9)) == ["0", "2", "4", "5"]
    assert texts(bus.last_history(2)) == ["4", "5"]
    assert bus.last_history(0) == []


def test_events_of_the_longest_silent_tunnel_are_dropped_beyond_the_limit_of_names() -> None:
    bus = EventBus()
    limit = event_bus._MAX_TUNNELS
    for number in range(limit + 3):
        bus.publish(event(number, f"t{number}"))
        bus.publish(event(number, SUPERVISOR))
    assert not bus.has_events_of("t0")
    assert bus.has_events_of(SUPERVISOR)
    assert bus.has_events_of(f"t{limit + 2}")
    assert len(bus._by_tunnel) == limit


def test_a_subscriber_may_unsubscribe_while_an_event_is_passed_on() -> None:
    bus = EventBus()
    received: list[str] = []

    def once(event: Event) -> None:
        received.append(event.text)
        bus.unsubscribe(once)

    bus.subscribe(once)
    bus.subscribe(lambda event: received.append(f"again {event.text}"))
    bus.publish(event(1))
    bus.publish(event(2))
    assert received == ["1", "again 1", "again 2"]


def test_activity_reaches_its_subscribers_until_their_context_ends() -> None:
    bus = EventBus()
    received: list[str] = []
    with bus.subscribe_activity(received.append):
        bus.notify_activity("web")
    bus.notify_activity("db")
    assert received == ["web"]
