"""The choice of columns: hidden ones are gone at once and after the next start, and a broken file hides none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tui.conftest import OpenDashboard, screen_text, shows, wait_until_shown
from tests.tui.fake import FakeDaemon
from tui.format.columns import HIDEABLE, column_choice_line, lay_out
from tui.model.column_file import ColumnFile, default_column_file

KEYS = [column.key for column in HIDEABLE]


@given(st.integers(20, 250), st.sets(st.sampled_from(KEYS)), st.integers(0, 20))
def test_hidden_columns_are_never_shown_and_the_others_get_their_room(width: int, hidden: set[str], host: int) -> None:
    layout = lay_out(width, 12, host, hidden)
    families = [column.sort_as or column.key for column in layout.columns]
    assert not hidden & {*families}
    assert {"state", "name"} <= {*families}
    kept = {column.sort_as or column.key for column in lay_out(width, 12, host).columns} - hidden
    assert kept <= {*families}, "hiding a column hides no other one"


def test_each_column_that_can_be_hidden_has_a_line() -> None:
    lines = [column_choice_line(column, is_hidden=column.key == "rtt") for column in HIDEABLE]
    texts = ["".join(text for text, _ in line) for line in lines]
    assert [text for text in texts if "[ ]" in text] == [" [ ] RTT "]
    assert len(texts) == len(KEYS)


@given(st.sets(st.text(max_size=5)))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, hidden: set[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "new" / "columns.yaml"
    assert ColumnFile(file).save(hidden) is None
    assert ColumnFile(file).load() == hidden
    assert [path.name for path in file.parent.iterdir()] == ["columns.yaml"]


@pytest.mark.parametrize(
    "text",
    ["", "[", "hidden: 3", "- a", "hidden: [[1], 2]", "hidden: \xff", "hidden: 2020-13-45", "[" * 3000,
     "hidden: [rtt]" + " " * (64 << 10)],
)  # fmt: skip
def test_a_file_that_is_wrong_hides_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "columns.yaml"
    assert ColumnFile(file).load() == frozenset()
    file.write_bytes(text.encode("latin-1"))
    assert ColumnFile(file).load() == frozenset()


def test_a_fifo_in_place_of_the_file_hides_nothing_and_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "columns.yaml"
    os.mkfifo(file)
    assert ColumnFile(file).load() == frozenset()
    assert ColumnFile(file).save({"rtt"}) is None
    assert ColumnFile(file).load() == {"rtt"}


def test_a_choice_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem = ColumnFile(tmp_path / "file" / "columns.yaml").save({"rtt"})
    assert problem is not None
    assert "columns.yaml: File exists" in problem
    (tmp_path / "taken" / "columns.yaml").mkdir(parents=True)
    assert ColumnFile(tmp_path / "taken" / "columns.yaml").save({"rtt"}) is not None
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["columns.yaml"], "a temporary file is left"


def test_the_file_is_in_the_users_configuration_directory() -> None:
    assert default_column_file({"HOME": "/h"}) == Path("/h/.config/nodepass-orch/columns.yaml")
    assert default_column_file({"HOME": "/h", "XDG_CONFIG_HOME": "/c"}) == Path("/c/nodepass-orch/columns.yaml")
    assert default_column_file({}) == Path("/.config/nodepass-orch/columns.yaml")
    assert default_column_file({"XDG_CONFIG_HOME": "here"}) is None


async def test_chosen_columns_are_kept_for_the_next_start(
    daemon: FakeDaemon, opened: OpenDashboard, tmp_path: Path
) -> None:
    file = tmp_path / "columns.yaml"
    async with opened((160, 40), column_file=file) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "ROLE", "RTT"))
        await pilot.press("C")
        await wait_until_shown(pilot, shows(app, "[x] ROLE"))
        await pilot.press("j", *["down"] * KEYS.index("rtt"), "k", "space", "escape")
        await wait_until_shown(pilot, lambda: "RTT" not in screen_text(app))
    async with opened((160, 40), column_file=file) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "ROLE", "POOL"))
        assert "RTT" not in screen_text(app)
        await pilot.press("C", "r", "C")
        await wait_until_shown(pilot, shows(app, "RTT"))
    assert ColumnFile(file).load() == frozenset()


async def test_the_cursor_stays_visible_on_a_low_screen(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((160, 11)) as (app, pilot):
        await pilot.press("C")
        await wait_until_shown(pilot, shows(app, "[x] ROLE"))
        assert "[x] REASON" not in screen_text(app)
        await pilot.press("end")
        await wait_until_shown(pilot, shows(app, "[x] REASON"))


async def test_a_choice_that_cannot_be_saved_holds_until_the_end(
    daemon: FakeDaemon, opened: OpenDashboard, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with opened((160, 40), column_file=tmp_path / "file" / "columns.yaml") as (app, pilot):
        await wait_until_shown(pilot, shows(app, "ROLE"))
        await pilot.press("C", "space", "escape")
        await wait_until_shown(pilot, lambda: "ROLE" not in screen_text(app))
        await wait_until_shown(pilot, shows(app, "The columns are kept only until the dashboard ends"))
