"""The status contract: what is written can be read again, and what is wrong is named with its place."""

from __future__ import annotations

import enum
import json
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.status import json_types
from orchestrator.status.contract import (
    BrokerInfo,
    ConfigStatus,
    DaemonInfo,
    DaemonStatus,
    StatusFormatError,
    are_valid_changes,
    complete_changes,
    complete_snapshot,
    decode_snapshot,
    encode_info,
    encode_snapshot,
    encode_status,
    share_values,
)
from tests.orchestrator.test_status_store import INFO, PLAIN, snapshots
from tunnel.model.snapshot import (
    BytesView,
    CountersView,
    LinkView,
    QuotaView,
    RateLimitsView,
    Snapshot,
    TargetChecksView,
    TargetView,
    TrafficRatesView,
)
from tunnel.model.state import State
from tunnel.model.targets import TargetState

FULL = replace(
    PLAIN,
    tags=("prod", "eu"),
    rtt_ms=1.5,
    link="00ff",
    reason="it waits",
    peer="10.0.0.1:1",
    quota=QuotaView(used=5, limit=10, until="2026-12-01T00:00:00+01:00"),
    rates=TrafficRatesView(in_bps=8_000, out_bps=16_000),
    rate_limits=RateLimitsView(rate_bps=8_000, paused_in_s=0.5),
    targets=(
        TargetView(address="a:1", state=TargetState.UP),
        TargetView(address="b:1", state=TargetState.DOWN, checks=TargetChecksView(kind="tcp")),
    ),
    links=(LinkView(id="00ff", peer="10.0.0.1:1", state="up", since=PLAIN.since),),
)
TYPES: dict[type, Any] = {
    Snapshot: json_types.TunnelJson,
    DaemonInfo: json_types.DaemonJson,
    ConfigStatus: json_types.ConfigJson,
    BrokerInfo: json_types.BrokerJson,
}


@given(snapshots(), st.sampled_from(["off", "online"]), st.sampled_from([None, "no such file"]))
def test_what_is_encoded_is_decoded_as_it_was(tunnels: tuple[Snapshot, ...], state: str, error: str | None) -> None:
    config = replace(INFO.config, ok=error is None, error=error, warnings=("one",))
    info = replace(INFO, mqtt=BrokerInfo(state=state), config=config)
    shown = json.loads(json.dumps(encode_status(DaemonStatus(info, tunnels))))
    assert tuple(map(decode_snapshot, shown.pop("tunnels"))) == tunnels
    assert shown == json.loads(json.dumps(encode_info(info)))


def test_bytes_are_named_from_the_point_of_view_of_visitors() -> None:
    counted = replace(PLAIN, bytes=BytesView(from_visitors=1, to_visitors=2))
    assert encode_snapshot(counted)["bytes"] == {"in": 1, "out": 2}
    assert decode_snapshot(counted.as_json()) == counted


def test_a_reader_ignores_unknown_fields_and_completes_missing_ones() -> None:
    data = {**PLAIN.as_json(), "of_a_later_version": [1]}
    del data["rtt_ms"], data["restarts"], data["tags"]
    assert decode_snapshot(data) == replace(PLAIN, rtt_ms=None, restarts=0, tags=())


def test_a_daemon_without_a_broker_says_so_and_nothing_more() -> None:
    assert encode_info(INFO)["mqtt"] == {"state": "off"}


def test_changes_replace_whole_fields() -> None:
    now = replace(PLAIN, state=State.UP, pool=replace(PLAIN.pool, idle=3))
    assert complete_changes({"state": "up", "pool": now.pool.as_json()}) == encode_snapshot(now, ["state", "pool"])


def test_what_is_missing_inside_a_group_is_completed() -> None:
    data = PLAIN.as_json()
    del data["pool"]["idle"], data["cooldown"]["attempt"], data["refused"]["silent"], data["worker"]
    completed = complete_snapshot({**data, "of_a_later_version": [1]})
    assert completed == {**PLAIN.as_json(), "of_a_later_version": [1]}
    assert complete_changes({"pool": data["pool"]}) == {"pool": PLAIN.pool.as_json()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": {"idle": "3", "min": 1, "max": 2}}, "tunnel.pool.idle is not of type int: '3'"),
        ({"pool": {"idle": True, "min": 1, "max": 2}}, "tunnel.pool.idle is not of type int: True"),
        ({"pool": {"idle": 3}}, "tunnel.pool.min is missing"),
        ({"pool": None}, "tunnel.pool is no JSON object: None"),
        ({"tags": "prod"}, "tunnel.tags is no JSON array: 'prod'"),
        ({"tags": [1]}, "tunnel.tags is not of type str: 1"),
        ({"targets": [1]}, "tunnel.targets is no JSON object: 1"),
        ({"targets": [{"address": "a:1"}]}, "tunnel.targets.state is missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StatusFormatError) as caught:
        decode_snapshot({**PLAIN.as_json(), **changes})
    assert str(caught.value) == message


@given(st.data())
def test_a_quick_check_accepts_nothing_that_the_thorough_one_refuses(data: st.DataObject) -> None:
    tunnel: dict[str, Any] = json.loads(json.dumps(data.draw(st.sampled_from([PLAIN, FULL])).as_json()))
    assert dict(share_values(tunnel) or {}) == tunnel
    assert are_valid_changes({key: tunnel[key] for key in ("pool", "bytes", "cooldown", "rtt_ms")})
    groups = [value for value in (*tunnel.values(), *tunnel["targets"], *tunnel["links"]) if isinstance(value, dict)]
    place = data.draw(st.sampled_from([tunnel, *groups]))
    key = data.draw(st.sampled_from(sorted(place)))
    odd = (
        st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.floats(allow_nan=False) | st.text(max_size=3)
    )
    place[key] = data.draw(odd | st.lists(odd, max_size=2) | st.dictionaries(st.text(max_size=3), odd, max_size=2))
    if (shared := share_values(tunnel)) is not None:
        assert json.dumps(shared, sort_keys=True) == json.dumps(tunnel, sort_keys=True)
        assert json.loads(json.dumps(decode_snapshot(tunnel).as_json())) == tunnel
    if are_valid_changes(tunnel):
        assert complete_changes(tunnel).items() <= complete_snapshot(tunnel).items()


def test_tunnels_share_their_keys_and_equal_numbers() -> None:
    text = json.dumps(FULL.as_json())
    first, second = (share_values(json.loads(text)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert first["pool"] is second["pool"]
    mixed = json.loads(text)
    mixed["quota"] = {**mixed["quota"], "used": 5.0}
    assert share_values(mixed) is None


def test_fields_of_a_later_version_stay() -> None:
    later = {**json.loads(json.dumps(FULL.as_json())), "mood": "good"}
    later["pool"] = {**later["pool"], "mood": 1}
    assert share_values(later) == later


def test_a_state_of_a_later_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StatusFormatError, match=r"tunnel\.state is none of starting, .*: 'flying'"):
        decode_snapshot({**PLAIN.as_json(), "state": "flying"})


@pytest.mark.parametrize("data", [None, [], "tunnel", {}])
def test_what_is_no_tunnel_is_refused(data: object) -> None:
    with pytest.raises(StatusFormatError, match="tunnel"):
        decode_snapshot(data)


@pytest.mark.parametrize("kind", TYPES)
def test_the_types_of_the_json_objects_follow_the_dataclasses(kind: type) -> None:
    assert_same_shape(kind, TYPES[kind])


def group_in(hint: Any, is_group: Callable[[Any], bool] = is_dataclass) -> Any:  # noqa: ANN401  types have no type
    """Return the class of an object in a hint, alone, optional or in a list; None for a hint of plain values."""
    return next((kind for kind in (hint, *typing.get_args(hint)) if is_group(kind)), None)


def assert_same_shape(kind: type, described: type) -> None:
    ours, theirs = typing.get_type_hints(kind), typing.get_type_hints(described)
    names = {field.name: field.metadata.get("json", field.name) for field in fields(kind)}
    assert list(theirs) == list(names.values())
    for name, json_name in names.items():
        if ours[name] is CountersView:  # readers show all counters that they receive
            assert theirs[json_name] == dict[str, int]
        elif (group := group_in(ours[name])) is not None:
            assert_same_shape(group, group_in(theirs[json_name], typing.is_typeddict))
        else:
            assert theirs[json_name] == in_json(ours[name]), f"{kind.__name__}.{name}"


def in_json(hint: object) -> object:
    if typing.get_origin(hint) is tuple:
        return list[str]
    return str if isinstance(hint, type) and issubclass(hint, enum.Enum) else hint
