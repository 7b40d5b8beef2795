"""Commands over the broker: which are accepted, and why others are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mqtt.commands import Command, CommandRefusedError, CommandValidator

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


@given(st.dictionaries(st.sampled_from(["v", "id", "op", "target", "boot", "exp", "reply", "timeout"]),
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
