"""Every input of the corpus, and mutations of it, keep the properties of the targets; the command works."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import main
from tests.fuzz.seeds import CORPUS, seeds
from tests.fuzz.targets import MAX_INPUT_BYTES, TARGETS

FILES = sorted(path for path in CORPUS.glob("*/*"))
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


def command(*words: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_an_input_of_the_corpus_keeps_the_properties(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


def test_every_target_has_a_corpus_within_its_input_size() -> None:
    assert set(TARGETS) == set(MAX_INPUT_BYTES) == {file.parent.name for file in FILES}
    assert all(file.stat().st_size <= MAX_INPUT_BYTES[file.parent.name] for file in FILES)


def test_the_corpus_matches_the_current_encoders() -> None:
    for target, name, data in seeds():
        kept = (CORPUS / target / name).read_bytes()
        assert kept == data, f"{target}/{name} is out of date: python -m tests.fuzz.seeds"


@given(st.data())
def test_mutations_of_the_corpus_keep_the_properties(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TARGETS)))
    own = st.sampled_from([file for file in FILES if file.parent.name == name]).map(Path.read_bytes)
    one, other = data.draw(own), data.draw(own)
    cut, resume = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, len(other)))
    TARGETS[name](one[:cut] + data.draw(st.binary(max_size=4)) + other[resume:])


def test_an_input_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frames", "--replay", str(CORPUS / "frames" / "all-in-one")]) == 0
    assert capsys.readouterr().err == ""
    assert main(["frames", "--replay", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_target_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["farmes"])
    assert ended.value.code == 2
    assert "is not one of frames" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_ATHERIS, reason="needs atheris: make fuzz installs it")
def test_a_few_seconds_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    done = command("preface", "--seconds", "2", "--crashes", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout


@pytest.mark.skipif(HAS_ATHERIS, reason="atheris is installed")
def test_without_atheris_the_command_prints_one_sentence() -> None:
    done = command("preface")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install '.[fuzz]'" in done.stderr
