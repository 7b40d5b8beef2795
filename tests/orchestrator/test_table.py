"""The table of ``ps`` is aligned whatever the names are, and fits the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.status.contract import encode_snapshot
from orchestrator.status.json_types import TunnelJson
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.table import align_columns, display_width, format_bytes, format_table, truncate
from tunnel.model.options import make_spec
from tunnel.model.snapshot import CooldownView
from tunnel.model.state import State
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
