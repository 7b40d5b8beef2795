"""Commands over the broker: which are accepted, and why others are refused."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mqtt import payloads
from orchestrator.mqtt.commands import Command, CommandHandler, CommandRefusedError, CommandValidator
from orchestrator.mqtt.payloads import ResponsePayload, parse_timestamp
from orchestrator.mqtt.topics import HostTopics
from orchestrator.supervisor.control import CommandResult
from orchestrator.supervisor.event_bus import EventBus
from tests.support.waiting import wait_until_async
from tunnel.model.state import State

if TYPE_CHECKING:
    from orchestrator.mqtt.session import BrokerSession
    from orchestrator.mqtt.topics import OutgoingMessage
    from orchestrator.supervisor.control import ControlService

NOW = 1_800_000_000.0
GOOD = {"v": 1, "id": "c1", "op": "restart", "target": "web"}


def parse(validator: CommandValidator, command: object, **circumstances: Any) -> Command:  # noqa: ANN401  any keyword of parse
    data = command if isinstance(command, bytes) else json.dumps(command).encode()
    return validator.parse(data, **{"is_retained": False, "now": NOW, **circumstances})


def test_a_valid_command_is_accepted_once() -> None:
    validator = CommandValidator("boot-1")
    assert parse(validator, GOOD) == Command("c1", "c1", "restart", "web")
    with pytest.raises(CommandRefusedError, match="came before") as refused:
        parse(validator, GOOD)
    assert refused.value.reply == "c1"
    assert parse(validator, {**GOOD, "id": "c2", "reply": "me", "boot": "boot-1", "exp": NOW + 1}).reply == "me"
    assert parse(validator, {"v": 1, "id": "c3", "op": "reload"}).target is None
    assert (
        parse(validator, {**GOOD, "id": "c4", "timeout": 2, "exp": "2027-01-15T08:00:01Z", "from": "me"}).timeout == 2
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boot": "boot-0"}, "another run of the daemon"),
        ({"exp": NOW - 2.5}, "expired 2.5 s ago"),
        ({"exp": "2020-01-01T00:00:00Z"}, "expired"),
        ({"exp": "tomorrow"}, "neither a time"),
        ({"exp": 10**400}, "neither a time"),
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
        ({"link": "a"}, "restart takes no link"),
        ({"target_address": "a:1"}, "restart takes no target_address"),
        ({"op": "drain", "link": 7}, "link is not a text"),
        ({"op": "drain", "link": "a", "target_address": "a:1"}, "concerns one of them"),
        ({"op": "drain", "link": "a", "timeout": 3}, r"not with \* or timeout"),
        ({"op": "start", "target_address": "a:1", "target": "*"}, "goes with the name of a tunnel"),
    ],
)
def test_a_command_is_refused_with_the_reason(change: dict[str, Any], why: str) -> None:
    validator = CommandValidator("boot-1")
    with pytest.raises(CommandRefusedError, match=why) as refused:
        parse(validator, {**GOOD, **change})
    assert (refused.value.id, refused.value.reply) == ("c1", "c1")
    assert parse(validator, GOOD).id == "c1", "a refused command does not use up its id"


def test_retained_commands_and_disabled_commands_are_refused() -> None:
    validator = CommandValidator("boot-1")
    with pytest.raises(CommandRefusedError, match="retained"):
        parse(validator, GOOD, is_retained=True)
    with pytest.raises(CommandRefusedError, match="closed today"):
        parse(validator, GOOD, disabled_reason="closed today")


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b'"x"', b'{"v":1}', b'{"v":1,"id":7}', b'{"v":1,"id":"a/b"}'])
def test_a_command_without_a_usable_id_has_no_reply_topic(data: bytes) -> None:
    with pytest.raises(CommandRefusedError) as refused:
        parse(CommandValidator("boot-1"), data)
    assert refused.value.reply is None


@given(st.dictionaries(st.sampled_from(["v", "id", "op", "target", "boot", "exp", "reply", "timeout", "link"]),
                       st.one_of(st.none(), st.integers(), st.text(max_size=8), st.floats(allow_nan=False),
                                 st.lists(st.none()))))  # fmt: skip
def test_a_reply_is_one_safe_topic_level_whatever_the_command(command: dict[str, Any]) -> None:
    try:
        reply: str | None = parse(CommandValidator("boot-1"), command).reply
    except CommandRefusedError as refused:
        reply = refused.reply
    assert reply is None or (len(reply) <= 64 and not set(reply) & set("/+#\0"))


def test_the_memory_of_ids_is_bounded() -> None:
    validator = CommandValidator("boot-1", max_remembered_ids=3)
    for number in range(4):
        parse(validator, {**GOOD, "id": f"c{number}"})
    assert parse(validator, {**GOOD, "id": "c0"}).id == "c0"
    with pytest.raises(CommandRefusedError):
        parse(validator, {**GOOD, "id": "c3"})


# --- execution --------------------------------------------------------------------------------------------------------


class RecordingControl:
    """Takes the place of the control service: it executes nothing."""

    read_only = False

    def __init__(self) -> None:
        self.bus = EventBus()
        self.executed: list[str] = []

    def command_link(self, op: str, name: str, ident: str) -> CommandResult:
        return self._execute(f"{op} {name} link {ident}", name)

    def command_target(self, op: str, name: str, address: str) -> CommandResult:
        return self._execute(f"{op} {name} target {address}", name)

    def _execute(self, text: str, name: str) -> CommandResult:
        self.executed.append(text)
        return CommandResult(name, State.UP, "done")

    async def command(self, op: str, name: str, timeout: float | None) -> CommandResult:  # noqa: ASYNC109  of the drain
        self.executed.append(f"{op} {name}")
        return CommandResult(name, State.STOPPED, "done")


class RecordingSession:
    """Takes the place of a session with a broker: it keeps the responses."""

    def __init__(self) -> None:
        self.responses: list[dict[str, Any]] = []

    async def publish(self, message: OutgoingMessage) -> None:
        self.responses.append(json.loads(message.payload))


async def run_handler(handler: CommandHandler, count: int) -> list[dict[str, Any]]:
    """Connect the handler with a broker until it has answered so many commands."""
    session = RecordingSession()
    running = asyncio.create_task(handler.run(cast("BrokerSession", session)))
    await wait_until_async(lambda: len(session.responses) == count, within=5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return session.responses


def handler_of(control: RecordingControl, *, is_enabled: bool = True) -> CommandHandler:
    return CommandHandler(cast("ControlService", control), HostTopics("edge"), "boot-1", is_enabled=is_enabled)


async def test_a_command_that_expires_while_it_waits_is_not_executed() -> None:
    control = RecordingControl()
    handler = handler_of(control)
    for id_, valid_for_s in (("late", 0.02), ("timely", 60.0)):
        command = {**GOOD, "id": id_, "exp": time.time() + valid_for_s}
        handler.receive(json.dumps(command).encode(), is_retained=False)
    await asyncio.sleep(0.03)
    late, timely = await run_handler(handler, 2)
    assert (late["id"], late["ok"], timely["ok"]) == ("late", False, True)
    assert "while it waited on this host; nothing was done" in late["error"]
    assert control.executed == ["restart web"]


async def test_a_command_may_concern_one_link_or_one_target() -> None:
    control = RecordingControl()
    handler = handler_of(control)
    named: tuple[dict[str, str | None], ...] = ({"link": "a1"}, {"target_address": "db:1"}, {"link": None})
    for number, member in enumerate(named):
        command = {**GOOD, "id": str(number), "op": "drain", **member}
        handler.receive(json.dumps(command).encode(), is_retained=False)
    assert all(answer["ok"] for answer in await run_handler(handler, 3))
    assert control.executed == ["drain web link a1", "drain web target db:1", "drain web"]


async def test_a_host_that_accepts_no_commands_answers_whether_it_is_there() -> None:
    control = RecordingControl()
    handler = handler_of(control, is_enabled=False)
    for number, op in enumerate(("ping", "stop")):
        handler.receive(json.dumps({**GOOD, "id": str(number), "op": op}).encode(), is_retained=False)
    pong, refusal = await run_handler(handler, 2)
    assert abs((parse_timestamp(pong["result"]["ts"]) or 0) - time.time()) < 60
    assert not refusal["ok"]
    assert not control.executed


# --- long responses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["tunnels", "results"])
def test_a_response_about_many_tunnels_is_as_long_as_readers_accept(key: str) -> None:
    entries = {f"tunnel-{n:05}": {"name": f"tunnel-{n:05}", "ok": n != 4_999, "text": "x" * 40} for n in range(5_000)}
    whole = ResponsePayload("id", {key: entries, "generation": 7})
    assert len(payloads.encode(whole.as_json())) > payloads.MAX_PAYLOAD_BYTES
    data = payloads.encode(whole.bounded().as_json())
    read = ResponsePayload.from_json(payloads.parse_json(data) or {})
    result: Any = read.result
    assert (read.id, read.ok, result["generation"]) == ("id", True, 7)
    assert len(result[key]) + result["omitted"] == 5_000
    assert len(result[key]) > 1_000
    assert next(iter(result[key])) == "tunnel-04999", "the one that failed comes first"


@given(st.text(max_size=5), st.integers(0, 300_000), st.integers(0, 300_000))
def test_every_response_is_as_long_as_readers_accept(text: str, error: int, result: int) -> None:
    response = ResponsePayload.failed("id", text * error, {"text": "x" * result, "tunnels": {text: text * result}})
    bounded = response.bounded()
    assert len(payloads.encode(bounded.as_json())) <= payloads.MAX_PAYLOAD_BYTES
    assert (bounded.id, bounded.ok) == ("id", False)
