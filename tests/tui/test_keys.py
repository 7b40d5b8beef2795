"""The key file and the table of actions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tui.model.keys import ACTIONS, KeyFileError, all_keys, display_keys, load_keys
from tui.screens.main import MainScreen


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_chosen_keys_replace_the_default_ones(tmp_path: Path) -> None:
    keys = load_keys(written(tmp_path, "restart: f5\ndrain: [d, /]\nfilter: ctrl+f\n"))
    assert keys["restart"] == "f5"
    assert keys["drain"] == "d,slash"
    assert keys["filter"] == "ctrl+f"
    assert keys["quit"] == "q"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_keys(written(tmp_path, "# nothing yet\n")) == all_keys({})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("restrat: f5", "keys.yaml:1:1: no action is named 'restrat'; did you mean 'restart'?"),
        ("sort: o\nrestart: q", "keys.yaml:2:1: q is already the key of quit; change that too"),
        ("restart: j", "keys.yaml:1:1: j is reserved for navigation; choose another key"),
        ("restart: []", "keys.yaml:1:1: a key is expected"),
        ("restart: {a: b}", "keys.yaml:1:1: a key is expected"),
        ("- restart", "keys.yaml:1:1: lines like `restart: f5` are expected"),
        ("restart: [f5", "keys.yaml:"),
    ],
)
def test_an_error_is_a_sentence_with_its_place(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        load_keys(written(tmp_path, text))
    assert wanted in str(caught.value)


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        load_keys(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(KeyFileError, match="UTF-8"):
        load_keys(tmp_path / "bytes.yaml")
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(KeyFileError, match=r"cannot read .*fifo\.yaml: it is a FIFO, not a regular file"):
        load_keys(tmp_path / "fifo.yaml")
    with pytest.raises(KeyFileError, match="not YAML"):
        load_keys(written(tmp_path, "[" * 3000))


def test_default_keys_are_unique_and_each_action_has_a_method() -> None:
    keys = [key for action in ACTIONS for key in action.keys.split(",")]
    assert len(set(keys)) == len(keys)
    for action in ACTIONS:
        assert callable(getattr(MainScreen, f"action_{action.name}"))


def test_keys_are_displayed_as_on_a_keyboard() -> None:
    assert display_keys("slash") == "/"
    assert display_keys("ctrl+p,colon") == "^p :"
    assert display_keys("enter") == "enter"
