"""When a path for datagrams is usable, at the client and at the server, on a clock of the test."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.datagram_messages import Probe
from tunnel.protocol.path_probing import (
    ACTIVE_INTERVAL_S,
    KEEPALIVE_INTERVAL_S,
    SEARCH_INTERVAL_S,
    SERVER_SILENT_S,
    SERVER_UNPROBED_S,
    SLOW_SEARCH_INTERVAL_S,
    SUSPECT_AFTER_S,
    SUSPECTED_S,
    UNANSWERED_S,
    PathProber,
    PathResponder,
)

FULL = 1368


class Client:
    """A prober that is driven as its owner drives it: probes when they are due, and expiry before that."""

    def __init__(self) -> None:
        self.prober = PathProber()
        self.now = 0.0
        self.probes: list[Probe] = []
        self.changes: list[tuple[float, bool]] = []
        self._probe()

    def _probe(self) -> None:
        self.probes.append(self.prober.create_probe(self.now, FULL))

    def answer(self, number: int | None = None) -> None:
        if self.prober.note_answer(self.probes[-1].number if number is None else number, self.now):
            self.changes.append((self.now, True))
            self._probe()

    def run(self, until: float, *, answers: bool, traffic: bool) -> None:
        """Advance in steps of 10 ms."""
        while self.now < until:
            self.now += 0.01
            if traffic:
                self.prober.note_traffic()
            if self.prober.expire(self.now):
                self.changes.append((self.now, False))
                self._probe()
            elif self.now >= self.prober.next_probe_at:
                self._probe()
                if answers:
                    self.answer()


def usable_client() -> Client:
    client = Client()
    client.answer()
    client.answer()
    assert client.prober.is_usable
    assert client.changes == [(0.0, True)]
    return client


def test_the_first_answer_opens_the_path_and_the_server_learns_it_at_once() -> None:
    client = usable_client()
    assert client.probes == [Probe(0, is_usable=False, size=FULL), Probe(1, is_usable=True, size=0)]
    assert client.prober.round_trip_s == 0.0


def test_an_idle_path_has_few_probes() -> None:
    client = usable_client()
    client.run(60.0, answers=True, traffic=False)
    assert len(client.probes) <= 3 + 60 / KEEPALIVE_INTERVAL_S
    assert client.prober.is_usable


def test_a_path_with_traffic_falls_back_within_two_seconds_of_silence() -> None:
    client = usable_client()
    client.run(5.0, answers=True, traffic=True)
    client.run(7.0, answers=False, traffic=True)
    assert not client.prober.is_usable
    assert client.changes[-1][0] <= 5.0 + 2.0
    assert not client.probes[-1].is_usable
    assert client.probes[-1].size == FULL


@given(st.floats(0.1, 20.0))
def test_traffic_on_an_idle_path_that_is_broken_falls_back_within_two_seconds(idle_s: float) -> None:
    client = usable_client()
    client.run(idle_s, answers=False, traffic=False)
    start = client.now
    client.run(start + 2.0, answers=False, traffic=True)
    assert not client.prober.is_usable


def test_a_broken_path_returns_soon_after_it_works_again() -> None:
    client = usable_client()
    client.run(120.0, answers=False, traffic=True)
    assert not client.prober.is_usable
    probes = len(client.probes)
    client.run(150.0, answers=False, traffic=True)
    assert len(client.probes) - probes <= 1 + 30 / SLOW_SEARCH_INTERVAL_S
    client.run(150.0 + SLOW_SEARCH_INTERVAL_S + 2 * SEARCH_INTERVAL_S + 0.1, answers=True, traffic=True)
    assert client.prober.is_usable


def test_one_answer_does_not_open_a_path_that_has_failed() -> None:
    client = usable_client()
    client.run(5.0, answers=False, traffic=True)
    client.answer()
    client.run(client.now + 1.5, answers=False, traffic=True)
    client.answer()
    assert not client.prober.is_usable


def test_four_lost_probes_in_a_row_do_not_end_a_path() -> None:
    client = usable_client()
    for _ in range(20):
        before = len(client.probes)
        while len(client.probes) < before + 5:
            client.run(client.now + 0.01, answers=False, traffic=True)
        client.answer()
    assert client.prober.is_usable


def test_a_long_way_is_usable() -> None:
    client = usable_client()
    waiting: list[tuple[float, int]] = []
    while client.now < 20.0:
        before = len(client.probes)
        client.run(client.now + 0.01, answers=False, traffic=True)
        waiting += [(client.now + 0.9, probe.number) for probe in client.probes[before:]]
        while waiting and waiting[0][0] <= client.now:
            client.answer(waiting.pop(0)[1])
    assert client.prober.is_usable
    assert client.prober.round_trip_s is not None
    assert 0.85 < client.prober.round_trip_s < 1.0


def test_an_answer_that_is_overtaken_or_from_before_a_failure_changes_nothing() -> None:
    client = usable_client()
    client.run(1.0, answers=False, traffic=True)
    latest = client.probes[-1].number
    client.answer(latest)
    client.answer(latest - 1)
    client.run(10.0, answers=False, traffic=True)
    for number in range(latest + 1, latest + 6):
        client.answer(number)
    assert not client.prober.is_usable


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.booleans(), st.booleans()), max_size=12))
def test_a_client_never_uses_a_path_that_was_silent_for_two_seconds_of_traffic(
    phases: list[tuple[float, bool, bool]],
) -> None:
    client = usable_client()
    for length_s, answers, traffic in phases:
        client.run(client.now + length_s, answers=answers, traffic=traffic)
        if traffic and not answers and length_s >= 2.0:
            assert not client.prober.is_usable
        assert client.prober.next_probe_at <= client.now + KEEPALIVE_INTERVAL_S


def test_the_server_follows_what_probes_say() -> None:
    server = PathResponder()
    assert not server.note_probe(Probe(0, is_usable=False, size=FULL), 1.0)
    assert server.note_probe(Probe(1, is_usable=True, size=0), 1.1)
    assert server.is_usable
    assert not server.note_probe(Probe(2, is_usable=True, size=0), 1.2)
    assert server.note_probe(Probe(3, is_usable=False, size=FULL), 1.3)
    assert not server.expire(100.0)


def test_the_server_stops_when_what_it_sends_brings_no_probe() -> None:
    server = PathResponder()
    server.note_probe(Probe(0, is_usable=True, size=0), 1.0)
    assert server.deadline == 1.0 + SERVER_SILENT_S
    assert server.note_sent(5.0)
    assert not server.note_sent(5.5)
    assert server.deadline == 5.0 + SERVER_UNPROBED_S <= 5.0 + 2.0
    assert not server.expire(5.0 + UNANSWERED_S)
    assert server.expire(5.0 + SERVER_UNPROBED_S)
    assert not server.expire(8.0)
    assert server.note_probe(Probe(1, is_usable=True, size=0), 9.0)
    assert server.deadline == 9.0 + SERVER_SILENT_S


def test_the_server_stops_when_the_client_is_silent() -> None:
    server = PathResponder()
    server.note_probe(Probe(0, is_usable=True, size=0), 1.0)
    assert not server.expire(SERVER_SILENT_S)
    assert server.expire(1.0 + SERVER_SILENT_S)
    assert ACTIVE_INTERVAL_S < SERVER_UNPROBED_S


def test_a_client_suspects_a_path_that_the_server_has_left() -> None:
    client = usable_client()
    client.run(1.5, answers=False, traffic=False)
    assert client.prober.suspect(client.now)
    client._probe()
    assert not client.prober.suspect(client.now), "it is suspected already"
    client.run(3.0, answers=False, traffic=False)
    [*_, (fell_at, is_usable)] = client.changes
    assert not is_usable
    assert 0 <= fell_at - 1.5 - SUSPECTED_S < 0.03


def test_an_answer_ends_the_suspicion() -> None:
    client = usable_client()
    client.run(1.5, answers=False, traffic=False)
    assert client.prober.suspect(client.now)
    client._probe()
    client.answer()
    assert not client.prober.suspect(client.now + SUSPECT_AFTER_S / 2), "the answer is recent"
    client.run(9.0, answers=True, traffic=False)
    assert client.prober.is_usable


def test_a_server_suspects_a_path_that_the_client_has_left() -> None:
    responder = PathResponder()
    responder.note_probe(Probe(0, is_usable=True, size=0), 0.0)
    assert not responder.suspect(SUSPECT_AFTER_S / 2), "the probe is recent"
    assert responder.suspect(2.0)
    assert not responder.suspect(2.1)
    assert responder.deadline == 2.0 + SUSPECTED_S
    responder.note_probe(Probe(1, is_usable=True, size=0), 2.2)
    assert not responder.expire(2.0 + SUSPECTED_S)
    assert responder.suspect(4.0)
    assert responder.expire(4.0 + SUSPECTED_S)
    assert not responder.suspect(9.0), "it is not used"
