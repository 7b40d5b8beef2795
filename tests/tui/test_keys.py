"""The file of keys: what it may say, and what is said about what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tui.keys import DEEDS, KeysError, all_keys, load_keys, shown_keys
from tui.screens.main import MainScreen


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_chosen_keys_take_the_place_of_ours(tmp_path: Path) -> None:
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
        ("restrat: f5", "keys.yaml:1:1: nothing is called 'restrat'; did you mean 'restart'?"),
        ("sort: o\nrestart: q", "keys.yaml:2:1: q is the key of quit; give that another one"),
        ("restart: j", "keys.yaml:1:1: j always moves or chooses; take another key"),
        ("restart: []", "keys.yaml:1:1: a key is expected"),
        ("restart: {a: b}", "keys.yaml:1:1: a key is expected"),
        ("- restart", "keys.yaml:1:1: lines like `restart: f5` are expected"),
        ("restart: [f5", "keys.yaml:"),
    ],
)
def test_faults_are_sentences_with_their_place(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(KeysError) as caught:
        load_keys(written(tmp_path, text))
    assert wanted in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot read"):
        load_keys(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(KeysError, match="UTF-8"):
        load_keys(tmp_path / "bytes.yaml")


def test_our_own_keys_do_not_clash_and_all_of_them_do_something() -> None:
    keys = [key for deed in DEEDS for key in deed.keys.split(",")]
    assert len(set(keys)) == len(keys)
    for deed in DEEDS:
        assert callable(getattr(MainScreen, f"action_{deed.name}"))


def test_keys_as_people_call_them() -> None:
    assert shown_keys("slash") == "/"
    assert shown_keys("ctrl+p,colon") == "^p :"
    assert shown_keys("enter") == "enter"
