import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.processes import BenchError
from tests.bench.terminal import TerminalScreen, run_on_terminal
from tests.support.scale import GUARD_S

PROGRAM = """
import os, sys
columns, rows = os.get_terminal_size()
assert sys.stdin.isatty()
print(f"\\x1b[2J\\x1b[1;1H{columns}x{rows}", end="", flush=True)
while (key := os.read(0, 1)) != b"q":
    os.write(1, b"\\x1b[2;3H\\x1b[1;32mpressed " + key + b"\\x1b[0m\\x1b[K")
print("\\x1b[3;1Hgoodbye", end="", flush=True)
sys.exit(3)
"""


def screen_of(data: bytes, rows: int = 3, columns: int = 8) -> list[str]:
    terminal_screen = TerminalScreen(rows, columns)
    terminal_screen.feed(data)
    return [row.rstrip() for row in terminal_screen.screen()]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"one\r\ntwo", ["one", "two", ""]),
        (b"\x1b[2;3Hab\x1b[Hc", ["c", "  ab", ""]),
        (b"\x1b[38;2;1;2;3mred\x1b[0m", ["red", "", ""]),
        (b"abcdef\x1b[1;3H\x1b[K", ["ab", "", ""]),
        (b"gone\x1b[2J\x1b[3;1Hhere", ["", "", "here"]),
        (b"\x1b[?2026h\x1b[>1u\x1b[?25lx\x1b[?2026l", ["x", "", ""]),
        (b"\x1b]0;a title\x07\x1bP+q544e\x1b\\y", ["y", "", ""]),
        (b"wider than it is", ["wider th", "", ""]),
        (b"\x1b[99;99Hz", ["", "", "       z"]),
        (b"ab\x1b[Dc\x1b[B\x1b[Cd\x1b[Ae", ["ac  e", "   d", ""]),
        ("\u25cf up".encode(), ["\u25cf up", "", ""]),
    ],
)
def test_output_appears_on_the_screen(data: bytes, rows: list[str]) -> None:
    assert screen_of(data) == rows


@given(st.lists(st.integers(min_value=0, max_value=40), max_size=5))
def test_an_escape_sequence_may_be_split_anywhere(cuts: list[int]) -> None:
    data = "\x1b[2;2H\u25cf up\x1b[1;31m!\x1b]0;t\x07\x1b[H\x1b[Kok\x1b[3;1Hend".encode()
    terminal_screen = TerminalScreen(3, 8)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        terminal_screen.feed(data[begin:end])
    assert terminal_screen.screen() == ["ok      ", " \u25cf up!  ", "end     "]


@given(st.binary(max_size=200))
def test_random_output_keeps_the_size_of_the_screen(data: bytes) -> None:
    terminal_screen = TerminalScreen(4, 10)
    terminal_screen.feed(data)
    assert [len(row) for row in terminal_screen.screen()] == [10] * 4


async def test_a_program_runs_on_a_terminal_and_its_keys_are_timed(tmp_path: Path) -> None:
    command = (sys.executable, "-c", PROGRAM)

    def has(text: str) -> Callable[[Sequence[str]], bool]:
        def wanted(screen: Sequence[str]) -> bool:
            return any(text in row for row in screen)

        return wanted

    async with run_on_terminal("program", command, directory=tmp_path, env=os.environ, rows=5, columns=30) as terminal:
        await terminal.wait_shown(has("30x5"), "its size", within=GUARD_S)
        assert 0 < await terminal.press_and_wait("a", has("pressed a"), "the key", within=GUARD_S) < GUARD_S
        with pytest.raises(BenchError, match="shows the key before 'a' is pressed"):
            await terminal.press_and_wait("a", has("pressed a"), "the key")
        with pytest.raises(BenchError, match=r"program did not show a miracle within 0\.05 s"):
            await terminal.wait_shown(has("miracle"), "a miracle", within=0.05)
        await terminal.press_and_wait("q", has("goodbye"), "its end", within=GUARD_S)
        await terminal.program.process.wait()
        with pytest.raises(BenchError, match="program ended with code 3: 30x5 / pressed a / goodbye"):
            terminal.check()
