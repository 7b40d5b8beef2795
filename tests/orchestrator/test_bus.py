"""Events are kept for those who ask later, and told to those who listen; neither without bound."""

from __future__ import annotations

from orchestrator.supervisor import bus as module
from orchestrator.supervisor.bus import HOUSE, KEPT, KEPT_IN_ALL, Bus
from tunnel.model.events import Event
from tunnel.model.spec import LogLevel


def event(number: float, tunnel: str = "web", kind: str = "link", level: LogLevel = LogLevel.INFO) -> Event:
    return Event(ts=number, tunnel=tunnel, level=level, kind=kind, text=str(number))


def texts(events: list[Event] | tuple[Event, ...]) -> list[str]:
    return [event.text for event in events]


def anything(_: Event) -> bool:
    return True


def test_the_last_of_one_of_some_of_all() -> None:
    bus = Bus()
    for number in range(9):
        bus.publish(event(number, "abc"[number % 3]))
    assert texts(bus.last(2, anything, ["a"])) == ["3", "6"]
    assert texts(bus.last(3, anything, ["a", "c"])) == ["5", "6", "8"]
    assert texts(bus.last(4, anything)) == ["5", "6", "7", "8"]
    assert texts(bus.last(2, lambda event: int(event.text) < 5)) == ["3", "4"]
    assert bus.last(0, anything) == bus.last(3, anything, ["nobody"]) == []
    assert (bus.knows("a"), bus.knows("nobody")) == (True, False)


def test_a_clock_that_was_put_back_hides_nothing_new() -> None:
    bus = Bus()
    for number, text in enumerate((5000, 5001, 1400, 1401)):
        bus.publish(event(text, "ab"[number % 2]))
    assert texts(bus.last(2, anything, ["a", "b"])) == ["1400", "1401"]


def test_a_talkative_tunnel_pushes_nobody_out() -> None:
    bus = Bus()
    bus.publish(event(1, "quiet"))
    bus.publish(event(2, "loud", kind="state"))
    for number in range(3, KEPT_IN_ALL + 10):
        bus.publish(event(number, "loud"))
    assert len(bus.recent("loud")) == KEPT
    assert texts(bus.recent("quiet")) == texts(bus.last(9, anything, ["quiet"])) == ["1"]
    assert len(bus.last(KEPT_IN_ALL + 99, anything)) == KEPT_IN_ALL
    assert texts(bus.history(9)) == ["2"]


def test_the_history_is_of_its_kinds() -> None:
    bus = Bus()
    for number, kind in enumerate(("state", "link", "reload", "visitor", "command", "restart")):
        bus.publish(event(number, kind=kind))
    assert texts(bus.history(9)) == ["0", "2", "4", "5"]
    assert texts(bus.history(2)) == ["4", "5"]
    assert bus.history(0) == []


def test_names_that_come_and_go_are_forgotten() -> None:
    bus = Bus()
    most = module._MOST_TUNNELS
    for number in range(most + 3):
        bus.publish(event(number, f"t{number}"))
        bus.publish(event(number, HOUSE))
    assert not bus.knows("t0")
    assert bus.knows(HOUSE)
    assert bus.knows(f"t{most + 2}")
    assert len(bus._rings) == most


def test_listeners_come_and_go_while_events_are_told() -> None:
    bus = Bus()
    heard: list[str] = []

    def once(event: Event) -> None:
        heard.append(event.text)
        bus.unsubscribe(once)

    bus.subscribe(once)
    bus.subscribe(lambda event: heard.append(f"again {event.text}"))
    bus.publish(event(1))
    bus.publish(event(2))
    assert heard == ["1", "again 1", "again 2"]
