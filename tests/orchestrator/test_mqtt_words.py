"""What is said on the broker, and what is taken from it: topics, pace, outbox, commands, rivals. No broker needed."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.openapi import document
from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import Broker, BrokerError, Dialer
from orchestrator.mqtt.identity import identity, state_directory
from orchestrator.mqtt.orders import Gate, Order, OrderRefusedError
from orchestrator.mqtt.outbox import Message, Outbox
from orchestrator.mqtt.pacing import GAP, REPEAT, SETTLING, STATS_EVERY, Pacing
from orchestrator.mqtt.payloads import Origin
from orchestrator.mqtt.publisher import publish_all
from orchestrator.mqtt.rivals import RETURN, SILENCE, Presence, RivalError, Verdict
from orchestrator.mqtt.standing import BrokerState, Record
from orchestrator.mqtt.topics import HostTopics, Spot, parse
from orchestrator.supervisor.runner import stopped_snapshot
from tests.support.scale import GUARD_S
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.state import State
from tunnel.model.url import parse_url

NOW = 1_800_000_000.0
OURS = Origin("b-instance", "boot-1")
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)


def snapshot(name: str = "web", **changes: Any) -> Snapshot:  # noqa: ANN401  any field
    return replace(stopped_snapshot(name, make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080"))), **changes)


# --- topics -----------------------------------------------------------------------------------------------------------


@given(names)
def test_a_topic_carries_any_name(name: str) -> None:
    topic = HostTopics("edge-1").state_of(name)
    assert topic.count("/") == 5
    assert not set(topic) & set("+# \0")
    assert parse(topic) == Spot("edge-1", "state", name)


@pytest.mark.parametrize(
    "topic",
    ["", "nodepass-orch/v1", "nodepass-orch/v1/", "nodepass-orch/v2/a/status", "nodepass-orch/v1//status",
     "nodepass-orch/v1/a/t/web", "nodepass-orch/v1/a/t//state", "nodepass-orch/v1/a/rsp/", "nodepass-orch/v1/a/x"],
)  # fmt: skip
def test_other_topics_mean_nothing(topic: str) -> None:
    assert parse(topic) is None


@given(st.binary(max_size=200) | st.text(max_size=50))
def test_whatever_comes_in_is_a_payload_or_none(data: bytes | str) -> None:
    found = payloads.decode(data)
    assert found is None or found["v"] == payloads.VERSION


@given(st.one_of(st.none(), st.booleans(), st.text(), st.lists(st.none()), st.floats()))
def test_a_moment_is_a_moment_or_none(value: object) -> None:
    found = payloads.moment(value)
    assert found is None or isinstance(found, float)


def test_moments_as_people_write_them() -> None:
    assert payloads.moment("2027-01-15T08:00:00Z") == payloads.moment("2027-01-15T09:00:00+01:00") == NOW
    assert payloads.moment("2027-01-15T08:00:00") is None, "of which time zone?"
    assert payloads.moment(10**400) is None


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_json_does_not_have(number: bytes) -> None:
    assert payloads.parsed(b'{"v": 1, "exp": ' + number + b"}") is None


# --- commands ---------------------------------------------------------------------------------------------------------

GOOD = {"v": 1, "id": "c1", "op": "restart", "target": "web"}


def admit(gate: Gate, order: object, **circumstances: Any) -> Order:  # noqa: ANN401  any keyword of admit
    data = order if isinstance(order, bytes) else json.dumps(order).encode()
    return gate.admit(data, **{"is_retained": False, "now": NOW, **circumstances})


def test_a_good_command_is_taken_once() -> None:
    gate = Gate("boot-1")
    assert admit(gate, GOOD) == Order("c1", "c1", "restart", "web")
    with pytest.raises(OrderRefusedError, match="given before") as refused:
        admit(gate, GOOD)
    assert refused.value.reply == "c1"
    assert admit(gate, {**GOOD, "id": "c2", "reply": "me", "boot": "boot-1", "exp": NOW + 1}).reply == "me"
    assert admit(gate, {"v": 1, "id": "c3", "op": "reload"}).target is None
    assert admit(gate, {**GOOD, "id": "c4", "timeout": 2, "exp": "2027-01-15T08:00:01Z", "from": "me"}).timeout == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boot": "boot-0"}, "another life of the daemon"),
        ({"exp": NOW - 2.5}, "expired 2.5 s ago"),
        ({"exp": "2020-01-01T00:00:00Z"}, "expired"),
        ({"exp": "tomorrow"}, "neither a moment"),
        ({"exp": 10**400}, "neither a moment"),
        ({"op": "toggle"}, "unknown op 'toggle'; known: start, stop"),
        ({"op": "restrat"}, "did you mean 'restart'"),
        ({"op": None}, "unknown op"),
        ({"target": None}, "needs a target"),
        ({"target": ""}, "needs a target"),
        ({"target": 7}, "needs a target"),
        ({"op": "reload"}, "takes no target"),
        ({"v": 2}, "not of version 1"),
        ({"timeout": -1}, "not a number of seconds"),
        ({"timeout": True}, "not a number of seconds"),
    ],
)
def test_a_command_is_refused_with_the_reason(change: dict[str, Any], why: str) -> None:
    gate = Gate("boot-1")
    with pytest.raises(OrderRefusedError, match=why) as refused:
        admit(gate, {**GOOD, **change})
    assert (refused.value.id, refused.value.reply) == ("c1", "c1")
    assert admit(gate, GOOD).id == "c1", "a refused command does not use up its id"


def test_retained_commands_and_closed_gates() -> None:
    gate = Gate("boot-1")
    with pytest.raises(OrderRefusedError, match="retained"):
        admit(gate, GOOD, is_retained=True)
    with pytest.raises(OrderRefusedError, match="closed today"):
        admit(gate, GOOD, closed="closed today")


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b'"x"', b'{"v":1}', b'{"v":1,"id":7}', b'{"v":1,"id":"a/b"}'])
def test_nobody_is_answered_who_cannot_be_named(data: bytes) -> None:
    with pytest.raises(OrderRefusedError) as refused:
        admit(Gate("boot-1"), data)
    assert refused.value.reply is None


@given(st.dictionaries(st.sampled_from(["v", "id", "op", "target", "boot", "exp", "reply", "timeout"]),
                       st.one_of(st.none(), st.integers(), st.text(max_size=8), st.floats(allow_nan=False),
                                 st.lists(st.none()))))  # fmt: skip
def test_no_command_breaks_the_gate_or_answers_elsewhere(order: dict[str, Any]) -> None:
    try:
        reply: str | None = admit(Gate("boot-1"), order).reply
    except OrderRefusedError as refused:
        reply = refused.reply
    assert reply is None or (len(reply) <= 64 and not set(reply) & set("/+#\0"))


def test_only_so_many_ids_are_remembered() -> None:
    gate = Gate("boot-1", remembered=3)
    for number in range(4):
        admit(gate, {**GOOD, "id": f"c{number}"})
    assert admit(gate, {**GOOD, "id": "c0"}).id == "c0"
    with pytest.raises(OrderRefusedError):
        admit(gate, {**GOOD, "id": "c3"})


# --- outbox -----------------------------------------------------------------------------------------------------------

kinds = st.sampled_from([(1, True), (1, False), (0, False)])


@given(st.lists(st.tuples(st.sampled_from("abc"), kinds)), st.integers(1, 5))
def test_the_newest_word_wins_and_memory_is_bounded(puts: list[tuple[str, tuple[int, bool]]], most: int) -> None:
    outbox = Outbox(held=4)
    newest: dict[tuple[str, tuple[int, bool]], bytes] = {}
    for number, (topic, kind) in enumerate(puts):
        outbox.put(Message(topic, b"%d" % number, *kind))
        newest[topic, kind] = b"%d" % number
        assert len(outbox) <= 3 + 3 + 4
    taken: list[Message] = []
    while batch := outbox.take(most):
        assert len(batch) <= most
        taken += batch
    events = [message for message in taken if message.is_event]
    assert [m.payload for m in events] == [b"%d" % n for n, (_, kind) in enumerate(puts) if kind == (1, False)][-4:]
    assert outbox.dropped == max(0, sum(kind == (1, False) for _, kind in puts) - 4)
    for message in taken:
        if not message.is_event:
            assert message.payload == newest[message.topic, (message.qos, message.retain)]
    order = [0 if m.retain else 1 if m.is_event else 2 for m in taken]
    assert order == sorted(order)


async def test_unconfirmed_events_are_said_again_in_their_place() -> None:
    outbox = Outbox(held=3)
    for number in range(3):
        outbox.put(Message("event", b"%d" % number))
    batch = outbox.take(2)
    outbox.put(Message("t/a/state", b"s", retain=True))
    outbox.put_back(batch)
    outbox.forget()
    assert [m.payload for m in outbox.take(9)] == [b"0", b"1", b"2"]
    waiting = asyncio.create_task(outbox.filled())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.put(Message("event", b"3"))
    await asyncio.wait_for(waiting, GUARD_S)


async def test_of_a_batch_each_leaves_in_a_turn_of_its_own_and_all_are_confirmed_together() -> None:
    turn = 0
    left: list[tuple[str, int]] = []
    all_left = asyncio.Event()

    class Far:
        async def publish(self, message: Message) -> None:
            left.append((message.topic, turn))
            if len(left) == 20:
                all_left.set()
            async with asyncio.timeout(GUARD_S):
                await all_left.wait()  # nobody's confirmation is waited for before
            if message.topic == "1":
                raise BrokerError("lost")

    async def count() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    far: Any = Far()
    counting = asyncio.create_task(count())
    with pytest.raises(BrokerError, match="lost"):
        await publish_all(far, [Message(str(number), b"") for number in range(20)])
    counting.cancel()
    assert [topic for topic, _ in left] == [str(number) for number in range(20)]
    assert len({at for _, at in left}) == 20


# --- pace -------------------------------------------------------------------------------------------------------------


def test_state_on_change_and_again_numbers_only_when_they_changed() -> None:
    pacing = Pacing(lambda low, high: (low + high) / 2)
    quiet = snapshot()
    busy = replace(quiet, connections=replace(quiet.connections, active=1, total=1))
    assert pacing.next([quiet], 0).states == (quiet,)
    assert not pacing.next([quiet], 1).states
    assert not pacing.next([busy], 1.5).stats, "at most every two seconds"
    settled = pacing.next([busy], SETTLING)
    assert (settled.states, settled.stats) == ((busy,), ()), "once more, when its numbers came to rest"
    assert pacing.next([busy], SETTLING + 0.1).stats == (busy,), "for those who read nothing but statistics"
    assert not pacing.next([busy], SETTLING + STATS_EVERY + 0.1).stats
    noise = replace(busy, rtt_ms=7.0, cooldown=replace(busy.cooldown, remaining_s=3.0))
    assert not pacing.next([noise], SETTLING + 3).stats, "a clock that goes by is no change"
    assert pacing.next([quiet], SETTLING + 4).stats == (quiet,)
    up = replace(quiet, state=State.UP)
    assert pacing.next([up], SETTLING + 5).states == (up,)
    assert pacing.next([], SETTLING + 6).removed == ("web",)
    pacing.forget()
    assert pacing.next([up], SETTLING + 6).states == (up,)


def test_a_tunnel_that_fails_again_and_again_is_no_flood() -> None:
    pacing = Pacing(lambda _, high: high)
    flapping = [snapshot(state=state) for state in (State.CONNECTING, State.COOLDOWN)]
    told = sum(len(pacing.next([flapping[tick % 2]], tick / 10).states) for tick in range(101))
    assert 10 <= told <= 10 / GAP + 1


@given(st.lists(st.tuples(st.floats(0.05, 20), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_a_reader_is_never_further_behind_than_promised(steps: list[tuple[float, int, int]]) -> None:
    pacing = Pacing(lambda low, _: low)
    now, told_at, told_stats_at, shown = 0.0, -1e9, -1e9, None
    base = snapshot()
    for wait, restarts, active in steps:
        now += wait
        seen = replace(base, restarts=restarts, connections=replace(base.connections, active=active))
        due = pacing.next([seen], now)
        assert len(due.states) + len(due.stats) <= 1
        if due.states:
            assert now >= told_at + GAP or shown is None
            told_at, shown = now, seen
        if due.stats:
            assert now >= told_stats_at + STATS_EVERY
            told_stats_at = now
        assert now <= told_at + REPEAT
        assert shown is not None
        assert shown.restarts == seen.restarts or now < told_at + GAP


# --- rivals -----------------------------------------------------------------------------------------------------------


def word(origin: Origin, *, online: bool = True) -> dict[str, Any]:
    return payloads.status(origin, "2027-01-15T08:00:00Z", online=online)


def hear(
    presence: Presence, told: dict[str, Any], *, kind: str = "status", now: float = 0, old: bool = False
) -> Verdict:
    return presence.heard("edge-1", kind, told, now, is_retained=old)


def test_our_own_words_and_earlier_lives_are_no_rivals() -> None:
    presence = Presence(OURS)
    earlier = Origin(OURS.instance, "boot-0")
    assert hear(presence, word(earlier), old=True) is Verdict.NOTHING
    assert hear(presence, word(OURS), old=True) is Verdict.NOTHING
    presence.check("edge-1")
    assert hear(presence, word(OURS)) is Verdict.ECHO
    assert hear(presence, word(earlier, online=False)) is Verdict.CONTRADICTED, "a will that comes late"
    assert hear(presence, word(OURS, online=False)) is Verdict.CONTRADICTED


def test_who_was_there_first_stays_until_it_is_gone_or_silent() -> None:
    presence = Presence(OURS)
    other = Origin("z-instance", "boot-9")
    hear(presence, word(other), old=True)
    with pytest.raises(RivalError, match=r"edge-1.*another name"):
        presence.check("edge-1")
    presence.watch(0.0)
    hear(presence, word(other), old=True)
    assert presence.is_occupied(SILENCE - 1)
    hear(presence, {"v": 1, "boot": "boot-9"}, kind="info", now=SILENCE - 1)
    assert presence.is_occupied(SILENCE + 1)
    hear(presence, word(other, online=False), now=SILENCE + 2)
    assert not presence.is_occupied(SILENCE + 2)


def test_a_word_that_nobody_stands_behind_is_outlived() -> None:
    presence = Presence(OURS)
    other = Origin("a-instance", "boot-9")
    presence.watch(0.0)
    hear(presence, word(other), old=True)
    assert not presence.is_occupied(SILENCE)
    presence.begin()
    hear(presence, word(other), old=True)
    presence.check("edge-1")


def test_a_copy_of_ours_is_watched_like_any_other() -> None:
    presence = Presence(OURS)
    its = Origin(OURS.instance, "boot-2", NOW)
    hear(presence, word(its), old=True)
    presence.check("edge-1")  # an earlier life, as far as anyone can know
    presence.born()
    presence.begin()
    with pytest.raises(RivalError, match="copied"):
        hear(presence, word(its, online=False), old=True)  # our own coming sent it away
    presence.watch(0.0)
    hear(presence, word(its, online=False), old=True)
    assert presence.is_occupied(RETURN - 1), "it will be back"
    hear(presence, word(its), now=RETURN - 1)
    hear(presence, {"v": 1, "boot": "boot-2"}, kind="info", now=RETURN + 60)
    assert presence.is_occupied(RETURN + 80)
    hear(presence, word(its, online=False), now=RETURN + 81)
    assert not presence.is_occupied(RETURN + 81)
    presence.begin()
    hear(presence, word(its, online=False), old=True)
    presence.check("edge-1")


def test_what_the_broker_remembers_of_an_earlier_life_is_no_copy() -> None:
    presence = Presence(replace(OURS, started_at=NOW))
    presence.born()
    presence.begin()
    hear(presence, word(Origin(OURS.instance, "boot-0", NOW - 1)), old=True)
    presence.check("edge-1")


def test_of_two_who_come_at_once_exactly_one_yields() -> None:
    first, second = Origin("a-instance", "boot-a"), Origin("b-instance", "boot-b")
    assert hear(Presence(first), word(second)) is Verdict.CHALLENGED
    with pytest.raises(RivalError):
        hear(Presence(second), word(first))


# --- brokers and identity ---------------------------------------------------------------------------------------------


def test_a_brokers_url() -> None:
    broker = Broker.from_url("mqtts://edge%2F1:p%40ss%3A@broker")
    assert (broker.host, broker.port, broker.is_tls) == ("broker", 8883, True)
    assert (broker.username, broker.password) == ("edge/1", "p@ss:")
    assert "p@ss" not in f"{broker} {broker!r}"
    assert str(broker) == "mqtts://broker:8883"
    assert str(Broker.from_url("mqtt://[::1]")) == "mqtt://[::1]:1883"
    assert Broker.from_url("mqtt://u@b", username="other", password="p").username == "u"


@pytest.mark.parametrize("url", ["", "broker", "http://b", "mqtt://", "mqtt://b:0", "mqtt://b:x", "mqtt://b/path",
                                 "mqtt://b?x=1", "mqtt://u:p@ss/word@b"])  # fmt: skip
def test_what_is_no_brokers_url(url: str) -> None:
    with pytest.raises(ValueError, match="write mqtt://") as error:
        Broker.from_url(url)
    assert "p@ss" not in str(error.value)


def test_a_brokers_files(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret\n")
    assert Broker(host="b", port=1, password_file=tmp_path / "pw").secrets() == ("s3cret", None)
    (tmp_path / "own.pem").write_text("")
    for broken, sentence in (
        (Broker(host="b", port=1, password_file=tmp_path / "no"), "cannot read password_file .*/no: No such file"),
        (Broker(host="b", port=1, is_tls=True, ca=tmp_path / "pw"), "cannot use the broker's ca .*/pw: "),
        (Broker(host="b", port=1, is_tls=True, cert=tmp_path / "no"), "cert .*/no: there is no such file"),
        (
            Broker(host="b", port=1, is_tls=True, cert=tmp_path / "own.pem", cert_key=tmp_path / "no"),
            "cert_key .*/no: there is no such file",
        ),
    ):
        with pytest.raises(BrokerError, match=sentence) as error:
            broken.secrets()
        assert error.value.state is BrokerState.FAILED


def test_the_files_section_names_the_broker(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(
        "version: 1\nsupervisor: {mqtt: {url: 'mqtts://b', username: u, password_file: pw, ca: ca.pem, cert: c.pem, "
        "cert_key: k.pem}}\n"
    )
    settings = load(file, {}).supervisor.mqtt
    assert settings is not None
    broker = Broker.from_settings(settings, {"NODEPASS_ORCH_MQTT_PASSWORD": "unused"})
    assert (broker.username, broker.password, broker.ca) == ("u", None, tmp_path / "ca.pem")
    assert (broker.cert, broker.cert_key) == (tmp_path / "c.pem", tmp_path / "k.pem")
    without = settings.model_copy(update={"password_file": None})
    assert Broker.from_settings(without, {"NODEPASS_ORCH_MQTT_PASSWORD": "used"}).password == "used"


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("url: mqtts://b, cert_key: k.pem", "cert_key: needs cert: beside it"),
        ("url: mqtt://b, password_file: p", "password_file: needs username: beside it"),
        ("url: mqtt://b, cert: c.pem", "cert: is for TLS, and mqtt://b is not; write mqtts://"),
        ("url: mqtt://b, discovery_prefix: nodepass-orch/x", "a prefix for discovery is a topic as homeassistant"),
        ("url: mqtt://b, discovery_prefix: a/#", "no wildcards"),
        ("url: mqtt://b, discovery: perhaps", "write true or false"),
    ],
)
def test_a_section_that_makes_no_sense_is_a_fault_with_its_place(tmp_path: Path, section: str, why: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(f"version: 1\nsupervisor:\n  mqtt: {{{section}}}\n")
    with pytest.raises(ConfigError) as error:
        load(file, {})
    (fault,) = error.value.faults
    assert why in fault.message
    assert fault.place.line == 3


async def test_a_broker_that_hangs_up_once_is_not_taken_for_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.mqtt.broker._PATIENCE", 10 * GUARD_S)
    versions: list[int] = []
    greeting = b""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        versions.append((await reader.readexactly(9))[8])
        if greeting:
            writer.write(greeting)
            await reader.read()
        writer.close()

    async def meet(times: int) -> None:
        for _ in range(times):
            with pytest.raises(BrokerError, match="no greeting") as error:
                async with dialer.session():
                    pass
            assert error.value.state is BrokerState.REFUSED

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        dialer = Dialer(Broker(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        began = time.monotonic()
        await meet(4)
        assert versions == [5, 5, 4, 5]
        greeting = b"\x20\x03\x00\x00\x00"
        async with dialer.session():
            pass
        greeting = b""
        await meet(4)
        assert versions[5:] == [5, 5, 5, 5], "it is known to speak the newer version"
    assert time.monotonic() - began < GUARD_S, "each is noticed at once, not after the patience for a greeting"


def test_how_it_stands_and_since_when() -> None:
    now = [NOW]
    record = Record(lambda: now[0])
    first = record.as_json()
    assert (first["state"], first["reason"]) == ("connecting", None)
    now[0] += 5
    assert record.enter(BrokerState.REFUSED, "not you")
    assert not record.enter(BrokerState.REFUSED, "not you")
    now[0] += 5
    assert record.enter(BrokerState.REFUSED, "neither")
    shown = record.as_json()
    assert (shown["state"], shown["reason"]) == ("refused", "neither")
    assert payloads.moment(shown["since"]) == NOW + 5, "another reason is no other state"
    assert record.enter(BrokerState.ONLINE)
    assert record.is_online
    described = document("0")["components"]["schemas"]["Status"]["properties"]["mqtt"]["properties"]["state"]["enum"]
    assert described == ["off", *(state.value for state in BrokerState)]


def test_an_installation_keeps_its_id(tmp_path: Path) -> None:
    first = identity(tmp_path / "a.yaml", tmp_path / "state")
    assert identity(tmp_path / "a.yaml", tmp_path / "state") == first
    assert first.problem is None
    assert len(first.client_id("edge-1")) == 23
    assert first.client_id("edge-1") != first.client_id("edge-2"), "machines are copied"
    assert identity(tmp_path / "b.yaml", tmp_path / "state").instance != first.instance
    (next((tmp_path / "state").iterdir())).write_text("rubbish")
    assert identity(tmp_path / "a.yaml", tmp_path / "state").problem is None
    (tmp_path / "file").write_text("")
    lost = identity(tmp_path / "a.yaml", tmp_path / "file" / "below")
    assert lost.problem is not None
    assert "cannot keep" in lost.problem


def test_where_the_id_is_kept() -> None:
    assert state_directory({"STATE_DIRECTORY": "/s:/t", "XDG_STATE_HOME": "/x"}, 0) == Path("/s")
    assert state_directory({"XDG_STATE_HOME": "/x"}, 0) == Path("/x/nodepass-orch")
    assert state_directory({"HOME": "/h"}, 0) == Path("/var/lib/nodepass-orch")
    assert state_directory({"HOME": "/h"}, 1000) == Path("/h/.local/state/nodepass-orch")
