"""The table of ``ps``: aligned whatever the names are, clipped to the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.table import align_columns, display_width, format_bytes, format_table, truncate
from tunnel.model.options import make_spec
from tunnel.model.snapshot import CooldownView
from tunnel.model.state import State
from tunnel.model.url import parse_url

SPEC = make_spec(parse_url("client://server-host:10101/127.0.0.1:5432"))
TUNNELS = [
    replace(stopped_snapshot(name, SPEC), state=state, reason=reason, cooldown=CooldownView(remaining_s=2.14)).as_json()
    for name, state, reason in [
        ("[red]bold[/]", State.UP, None),
        ("表の名前", State.COOLDOWN, "it refused the connection"),
        ("x" * 200, State.STOPPED, "disabled in the file"),
        ("two\nlines", State.FAILED, "the certificate is not one"),
    ]
]


def test_columns_stand_below_each_other() -> None:
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


def test_workers_are_shown_where_there_are_any() -> None:
    alone = format_table(TUNNELS, columns=None, paint=lambda text, _: text)
    spread = format_table([TUNNELS[0], {**TUNNELS[1], "worker": 3}], columns=None, paint=lambda text, _: text).split(
        "\n"
    )
    assert "WORKER" not in alone
    at = spread[0].index("WORKER")
    assert [line[at] for line in (spread[1], spread[2].replace("表の名前", "xxxxxxxx"))] == ["-", "3"]


def test_only_the_state_is_painted() -> None:
    painted: list[tuple[str, str]] = []

    def paint(text: str, state: str) -> str:
        painted.append((text, state))
        return text

    format_table(TUNNELS, columns=None, paint=paint)
    assert [state for _, state in painted] == ["up", "cooldown", "stopped", "failed"]


@given(st.text(max_size=30), st.integers(1, 20))
def test_clipped_text_fits(text: str, columns: int) -> None:
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
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_align() -> None:
    assert align_columns([("A", "B"), ("long", "x")]) == "A     B\nlong  x"
