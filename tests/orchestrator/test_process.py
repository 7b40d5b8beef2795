"""What a process shows of itself: no key in the process list, a log that never stands in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.process.logformat import LogWriter, as_json, as_text, printable
from orchestrator.process.process import mask_url
from tests.tunnel.strategies import recognisable_keys
from tunnel.spec import LogLevel
from tunnel.state import Event


def event(text: str, tunnel: str = "web", level: LogLevel = LogLevel.WARN) -> Event:
    return Event(ts=1767225600.0, tunnel=tunnel, level=level, kind="state", text=text, data={"attempt": 3})


def test_a_line_of_text() -> None:
    assert as_text(event("target refused")) == "2026-01-01T00:00:00.000Z WARN  web  target refused"
    assert as_text(event("x", tunnel="")) == "2026-01-01T00:00:00.000Z WARN  nodepass-orch  x"


def test_a_line_of_json() -> None:
    assert json.loads(as_json(event("target refused"))) == {
        "ts": "2026-01-01T00:00:00.000Z",
        "tunnel": "web",
        "level": "warn",
        "kind": "state",
        "text": "target refused",
        "attempt": 3,
    }


@given(st.text())
def test_an_event_is_one_line_that_moves_no_cursor(text: str) -> None:
    assert as_text(event(text, tunnel=text)).isprintable()
    assert as_json(event(text)).isprintable()
    assert json.loads(as_json(event(text)))["text"] == text
    assert printable(text).isprintable()


def test_what_is_queued_is_written_at_the_end() -> None:
    reading, writing = os.pipe()
    log = LogWriter(writing)
    for number in range(100):
        log(event(f"number {number}"))
    log.close()
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:  # noqa: PTH123  a descriptor has no path
        assert [line.rsplit(" ", 1)[1] for line in lines] == [f"{number}\n" for number in range(100)]


def test_a_reader_who_does_not_read_blocks_nobody() -> None:
    reading, writing = os.pipe()
    log = LogWriter(writing)
    for _ in range(30_000):
        log(event("x" * 100))
    os.set_blocking(reading, False)
    seen = os.read(reading, 1 << 20)
    assert seen.startswith(b"2026-01-01")
    os.close(reading)
    log.close()
    os.close(writing)


@given(key=recognisable_keys, tail=st.text(max_size=20), scheme=st.sampled_from(["server", "client", "x"]))
def test_masked_however_wrong_the_url_is(key: str, tail: str, scheme: str) -> None:
    assume(key not in tail)
    assert key not in mask_url(f"{scheme}://{key}@{tail}")
    assert key not in mask_url(f"{key}@{tail}")


def test_a_url_without_a_key_stays_as_it_is() -> None:
    assert mask_url("server://h:1/h:2?log=debug") == "server://h:1/h:2?log=debug"


def test_the_process_list_shows_no_key() -> None:
    program = """
        import os, sys
        from pathlib import Path
        from orchestrator.process.process import hide_keys
        assert hide_keys(sys.argv[1:])
        assert sys.argv[2] == "server://s3cret@h:1/h:2"
        sys.stdout.buffer.write(Path("/proc/self/cmdline").read_bytes())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), "up", "server://s3cret@h:1/h:2", "more"]
    root = Path(__file__).parent.parent.parent
    shown = subprocess.run(command, check=True, capture_output=True, timeout=20, cwd=root).stdout
    assert shown.split(b"\0")[3:5] == [b"up", b"server://***@h:1/h:2"]
    assert shown.rstrip(b"\0").endswith(b"more")
    assert b"s3cret@" not in shown.split(b"\0", 3)[3]
