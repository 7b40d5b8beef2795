from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.process.messages import print_message
from orchestrator.process.terminal_text import dump_json_line, load_printable_json, printable_lines
from orchestrator.table import display_width, truncate

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)


@given(JSON_VALUES, st.booleans())
def test_a_received_json_value_has_no_control_character(value: object, is_ascii: bool) -> None:  # noqa: FBT001  hypothesis
    received = load_printable_json(json.dumps(value, ensure_ascii=is_ascii, separators=(",", ":")))
    assert json.dumps(received, ensure_ascii=False).isprintable()
    if json.dumps(value, ensure_ascii=False).isprintable() and "\\" not in json.dumps(value):
        assert received == value


@given(JSON_VALUES)
def test_a_printed_json_line_is_printable_and_keeps_the_value(value: object) -> None:
    line = dump_json_line(value)
    assert line.isprintable()
    assert json.loads(line) == value


def test_a_message_keeps_its_lines_and_no_other_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_message("one\x1b[31m\ntwo\x9b31m\r")
    assert capsys.readouterr().err == "nodepass-orch: one\\x1b[31m\ntwo\\x9b31m\\r\n"
    assert printable_lines("a\n\n\tb") == "a\n\n\\tb"


@given(st.text(), st.integers(1, 20))
def test_a_text_is_cut_to_its_columns(text: str, columns: int) -> None:
    cut = truncate(text, columns)
    assert cut == text or (cut.endswith("…") and text.startswith(cut[:-1]))
    assert display_width(cut) <= columns


def test_a_text_as_long_as_a_broker_delivers_is_cut_at_once() -> None:
    assert truncate("x" * 250_000, 10) == "xxxxxxxxx…"
