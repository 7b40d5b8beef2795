"""The table of ``ps`` is aligned whatever the names are, and fits the terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.status.contract import encode_snapshot
from orchestrator.status.json_types import LinkJson, TargetChecksJson, TargetJson, TunnelJson
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.table import Paint, align_columns, display_width, format_bytes, format_table, truncate
from tunnel.model.options import make_spec
from tunnel.model.snapshot import CooldownView
from tunnel.model.state import STATES, State
from tunnel.model.url import parse_url

SPEC = make_spec(parse_url("client://server-host:10101/127.0.0.1:5432"))


def tunnel(name: str, state: State, reason: str | None = None, worker: int = 0) -> TunnelJson:
    snapshot = replace(stopped_snapshot(name, SPEC), state=state, reason=reason, worker=worker)
    return encode_snapshot(replace(snapshot, cooldown=CooldownView(remaining_s=2.14)))


TUNNELS = [
    tunnel("[red]bold[/]", State.UP),
    tunnel("表の名前", State.COOLDOWN, "it refused the connection"),
    tunnel("x" * 200, State.STOPPED, "disabled in the file"),
    tunnel("two\nlines", State.FAILED, "the certificate is invalid"),
]


def test_columns_are_aligned() -> None:
    lines = format_table(TUNNELS, columns=None, paint=lambda text, _: text).split("\n")
    assert len(lines) == 5
    starts = {display_width(line[: line.index("client")]) for line in lines[1:]}
    assert starts == {display_width(lines[0][: lines[0].index("ROLE")])}
    assert "[red]bold[/]" in lines[1]
    assert "◷ cooldown 2.1s" in lines[2]
    assert lines[2].endswith("it refused the connection")


@given(st.integers(1, 250))
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    for line in format_table(TUNNELS, columns=columns, paint=lambda text, _: text).split("\n"):
        assert display_width(line) <= columns


PLAIN: Final[Paint] = lambda text, _: text  # noqa: E731  as short as it is used


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_narrow_terminal_shows_every_reason_in_full_below_its_tunnel(columns: int) -> None:
    reason = "the target 127.0.0.1:5432 cannot be reached: " + "it refused the connection again and again " * 4
    rows = [tunnel("web", State.UP), tunnel("a-name-of-thirty-two-characters-", State.COOLDOWN, reason.strip())]
    lines = format_table(rows, columns=columns, paint=PLAIN).split("\n")
    assert all(display_width(line) <= columns for line in lines)
    assert "REASON" not in lines[0]
    assert lines[1].startswith("web ")
    assert lines[2].startswith("a-name-of-thirty-two-characters-  ")
    assert " ".join(line.strip() for line in lines[3:]) == reason.strip()


def test_a_wide_terminal_shows_the_reason_in_its_column() -> None:
    row = tunnel("web", State.COOLDOWN, "it refused")
    lines = format_table([row], columns=200, paint=PLAIN).split("\n")
    assert lines[0].endswith("REASON")
    assert lines[1].endswith("it refused")


def test_refused_visitors_have_a_column_as_soon_as_there_is_one() -> None:
    row = tunnel("web", State.UP)
    assert "REFUSED" not in format_table([row], columns=None, paint=PLAIN)
    row["refused"] = {**row["refused"], "allow": 3, "rate": 4}
    lines = format_table([row], columns=None, paint=PLAIN).split("\n")
    assert lines[0].split()[-2:] == ["REFUSED", "REASON"]
    assert lines[1].split()[-1] == "7"
    del row["refused"]  # as in a fleet
    assert "REFUSED" not in format_table([row], columns=None, paint=PLAIN)


def test_rates_have_columns_while_a_tunnel_carries_something() -> None:
    row, unknown = tunnel("web", State.UP), tunnel("db", State.UP)
    row["rates"] = {"in_bps": 0, "out_bps": 0}
    assert "RATE" not in format_table([row, unknown], columns=None, paint=PLAIN)
    row["rates"] = {"in_bps": 16_000, "out_bps": 800}
    lines = [line.split() for line in format_table([row, unknown], columns=None, paint=PLAIN).split("\n")]
    assert lines[0][-6:-2] == ["RATE", "FROM", "RATE", "TO"]
    assert lines[1][-3:-1] == ["2.0K/s", "100B/s"]
    assert lines[2][-3:-1] == ["-", "-"]


@pytest.mark.parametrize(("columns", "is_wide"), [(None, False), (40, True)])
def test_without_a_terminal_or_if_wide_each_tunnel_is_one_line_in_full(
    columns: int | None,
    is_wide: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    heading, *lines = format_table(TUNNELS, columns=columns, paint=PLAIN, is_wide=is_wide).split("\n")
    assert heading.split()[-2:] == ["AUTH", "REASON"]
    assert len(lines) == len(TUNNELS)
    assert "x" * 200 in lines[2]
    assert lines[3].endswith("the certificate is invalid")


def test_a_narrow_table_still_marks_open_tunnels() -> None:
    rows: list[TunnelJson] = [{**tunnel("web", State.UP), "auth": "key"}, tunnel("open-one", State.UP)]
    assert rows[1]["auth"] == "open"
    assert "AUTH" in format_table(rows, columns=70, paint=PLAIN).split("\n")[0]
    assert "AUTH" not in format_table(rows[:1], columns=70, paint=PLAIN).split("\n")[0]


def test_a_narrow_table_keeps_what_shows_trouble_and_says_how_many_columns_it_lacks() -> None:
    row: TunnelJson = {**tunnel("web", State.UP), "auth": "key", "service": "shop", "proto": "both", "clients": 2}
    row["refused"] = {**row["refused"], "allow": 3}

    def shown(columns: int, wide_option: str = "-o wide") -> list[str]:
        return format_table([row], columns=columns, paint=PLAIN, wide_option=wide_option).split("\n")

    heading, _, hint = shown(100)
    assert {"STATE", "VISITORS", "REFUSED", "LINKS", "POOL", "TARGET", "TUNNEL"} <= set(heading.split())
    assert not {"DIRECTION", "FROM", "AUTH"} & set(heading.split())
    wide = shown(1000)
    assert len(wide) == 2
    assert hint == f"(-o wide shows {len(wide[0].split()) - 2 - 1 - len(heading.split())} more columns)"  # TO VISITORS
    heading, *_ = shown(30)
    assert heading.split() == ["NAME", "STATE", "REFUSED", "LINKS"]
    assert len(shown(100, wide_option="")) == 2


def test_a_cooldown_that_ends_now_shows_no_seconds() -> None:
    row = tunnel("web", State.COOLDOWN, "it refused")
    assert "cooldown 2.1s" in format_table([row], columns=None, paint=PLAIN)
    row["cooldown"]["remaining_s"] = 0.04
    assert "0.0s" not in format_table([row], columns=None, paint=PLAIN)


def test_the_column_of_workers_is_shown_if_a_tunnel_has_one() -> None:
    alone = format_table(TUNNELS, columns=None, paint=lambda text, _: text)
    rows = [TUNNELS[0], tunnel("表の名前", State.COOLDOWN, worker=3)]
    spread = format_table(rows, columns=None, paint=lambda text, _: text).split("\n")
    assert "WORKER" not in alone
    at = spread[0].index("WORKER")
    assert [line[at] for line in (spread[1], spread[2].replace("表の名前", "xxxxxxxx"))] == ["-", "3"]


def test_only_the_state_is_coloured() -> None:
    painted: list[tuple[str, str]] = []

    def paint(text: str, state: str) -> str:
        painted.append((text, state))
        return text

    format_table(TUNNELS, columns=None, paint=paint)
    assert [state for _, state in painted] == ["up", "cooldown", "stopped", "failed"]


@given(st.text(max_size=30), st.integers(1, 20))
def test_truncated_text_fits(text: str, columns: int) -> None:
    assert display_width(truncate(text, columns)) <= columns
    assert truncate(text, columns) == text or display_width(text) > columns


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1.0K"),
        (1536, "1.5K"),
        (102_400, "100K"),
        (84 << 20, "84.0M"),
        (1 << 60, "1024P"),
    ],
)
def test_bytes_take_at_most_five_characters(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_aligned_columns_are_as_wide_as_their_longest_cell() -> None:
    assert align_columns([("A", "B"), ("long", "x")]) == "A     B\nlong  x"


def test_a_tunnel_that_is_not_up_always_has_a_reason() -> None:
    for state in set(State) - {State.UP}:
        (_, line) = format_table([tunnel("web", state)], columns=None, paint=lambda text, _: text).split("\n")
        assert line.endswith(STATES[state].meaning)


def test_services_and_names_of_keys_have_columns_where_a_tunnel_has_them() -> None:
    plain = format_table(TUNNELS, columns=None, paint=PLAIN).split("\n")[0]
    assert not {"SERVICE", "KEY"} & set(plain.split())
    shop = tunnel("shop", State.UP)
    shop["service"], shop["key_name"] = "web", "office"
    heading, *_, last = format_table([*TUNNELS, shop], columns=20, paint=PLAIN, is_wide=True).split("\n")
    assert {"SERVICE", "KEY"} <= set(heading.split())
    assert last.split()[-2:] == ["web", "office"]


def test_a_server_with_several_clients_shows_how_many_can_serve() -> None:
    assert "LINKS" not in format_table(TUNNELS, columns=None, paint=PLAIN)
    shown = tunnel("web", State.UP)
    one: LinkJson = {
        "id": "1", "client": None, "peer": "h:1", "state": "up", "reason": None, "weight": 1, "backup": False,
        "pool": 8, "rtt_ms": None, "udp_carrier": None, "udp_reason": None, "visitors": 0, "lanes": None,
        "since": shown["since"],
    }  # fmt: skip
    shown["links"] = [one, {**one, "state": "cooldown"}]
    heading, *_, last = format_table([*TUNNELS, shown], columns=None, paint=PLAIN).split("\n")
    assert "LINKS" in heading.split()
    assert "1/2" in last
    shown["clients"] = 3
    assert "1/3" in format_table([shown], columns=None, paint=PLAIN)
    shown["key_name"], shown["links"] = "a", [{**one, "client": name} for name in ("a", "b", "a", "c")]
    assert "a +2" in format_table([shown], columns=None, paint=PLAIN)


@pytest.mark.parametrize(("clients", "shown"), [(1, None), (2, "0/2")])
def test_a_server_shows_how_many_clients_it_waits_for_if_it_may_have_several(clients: int, shown: str | None) -> None:
    spec = make_spec(parse_url(f"server://0.0.0.0:10101/0.0.0.0:8080?clients={clients}"))
    lines = format_table([encode_snapshot(stopped_snapshot("web", spec))], columns=None, paint=PLAIN).split("\n")
    assert ("LINKS" in lines[0].split()) is (shown is not None)
    assert (shown or "") in lines[1]


def test_a_tunnel_of_udp_shows_how_datagrams_travel() -> None:
    shown = tunnel("dns", State.UP)
    one: LinkJson = {
        "id": "1", "client": None, "peer": "h:1", "state": "up", "reason": None, "weight": 1, "backup": False,
        "pool": 8, "rtt_ms": None, "udp_carrier": "stream", "udp_reason": None, "visitors": 0, "lanes": None,
        "since": shown["since"],
    }  # fmt: skip
    shown["links"] = [one, {**one, "udp_carrier": "datagram"}]
    heading, *_, last = format_table([*TUNNELS, shown], columns=20, paint=PLAIN, is_wide=True).split("\n")
    assert "UDP" in heading.split()
    assert "datagram+stream" in last.split()


@pytest.mark.parametrize("proto", ["udp", "both"])
def test_what_visitors_speak_is_shown_unless_all_tunnels_are_of_tcp(proto: str) -> None:
    assert "PROTO" not in format_table(TUNNELS, columns=None, paint=PLAIN)
    shown: TunnelJson = {**tunnel("dns", State.WAITING), "proto": proto}
    heading, first, *_, last = format_table([*TUNNELS, shown], columns=None, paint=PLAIN).split("\n")
    at = heading.index("PROTO")
    assert [first[at:].split()[0], last[at:].split()[0]] == ["tcp", proto]


def test_a_client_with_several_servers_shows_how_many_of_their_links_can_serve() -> None:
    shown = tunnel("web", State.COOLDOWN)
    shown["servers"] = [
        {"address": "a:1", "state": "cooldown", "reason": "it refused", "link": None, "weight": 1, "backup": False}
    ] * 3
    heading, *_ = format_table([*TUNNELS, shown], columns=None, paint=PLAIN).split("\n")
    assert "LINKS" in heading.split()
    assert "0/3" in format_table([shown], columns=None, paint=PLAIN)


def test_a_tunnel_with_several_targets_shows_how_many_are_up() -> None:
    assert "TARGETS" not in format_table(TUNNELS, columns=None, paint=PLAIN)
    checks: TargetChecksJson = {"kind": "tcp", "failed": 0, "in_a_row": 0, "changes": 0}
    shown = tunnel("db", State.UP)
    one: TargetJson = {
        "address": "db:1", "state": "up", "reason": None, "weight": 1, "backup": False, "visitors": 0, "checks": checks,
    }  # fmt: skip
    shown["targets"] = [one, {**one, "state": "down"}, {**one, "state": "drained"}]
    heading, *_, last = format_table([*TUNNELS, shown], columns=None, paint=PLAIN).split("\n")
    assert "TARGETS" in heading.split()
    assert "1/3 up" in last
