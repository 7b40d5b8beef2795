"""Standard streams as other programs leave them: closed, or non-blocking and read slowly."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.process import early_signals
from orchestrator.process.logformat import LogWriter
from orchestrator.process.standard_streams import _usable_stream
from tests.support.scale import GUARD_S
from tests.support.shell import COMMAND, ROOT
from tests.support.waiting import wait_until
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel

PIPE_BYTES = 4096
SHOWS_STREAMS = """
import os, sys
from pathlib import Path
from orchestrator.process.standard_streams import prepare_standard_streams
prepare_standard_streams()
sys.stderr.write("dropped")
sys.stderr.flush()
shown = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
Path(sys.argv[1]).write_text(" ".join([*shown, str(os.open("/", os.O_RDONLY) > 2)]))
"""


@pytest.fixture
def narrow_pipe() -> Iterator[tuple[int, int]]:
    """A small pipe whose writing end is non-blocking, as a parent leaves it that shares the open file."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(writer, False)
    yield reader, writer
    os.close(reader)


def read_slowly(reader: int) -> bytes:
    data = b""
    while part := os.read(reader, PIPE_BYTES):
        data += part
        time.sleep(0.001)  # the writer finds the pipe full
    return data


def test_no_socket_gets_the_number_of_a_closed_standard_stream(tmp_path: Path) -> None:
    command = [
        "sh",
        "-c",
        'exec "$0" -c "$1" "$2" <&- >&- 2>&-',
        sys.executable,
        SHOWS_STREAMS,
        str(tmp_path / "shown"),
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=GUARD_S)
    assert (done.returncode, (tmp_path / "shown").read_text()) == (0, "/dev/null /dev/null /dev/null True")


def test_a_closed_stream_that_cannot_be_opened_stays_closed() -> None:
    closed = os.open("/", os.O_RDONLY)
    os.close(closed)
    assert _usable_stream(None, closed) is None


def test_a_command_without_standard_output_fails_with_a_sentence() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "keygen"]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=GUARD_S, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "nodepass-orch: cannot write the output: Bad file descriptor\n")


def test_the_output_of_a_command_waits_for_the_reader_of_a_non_blocking_pipe(narrow_pipe: tuple[int, int]) -> None:
    reader, writer = narrow_pipe
    with subprocess.Popen([*COMMAND, "schema"], cwd=ROOT, stdout=writer) as process:
        os.close(writer)
        data = read_slowly(reader)
        assert process.wait(GUARD_S) == 0
    assert len(data) > 2 * PIPE_BYTES
    json.loads(data)


def test_the_log_waits_for_the_reader_of_a_non_blocking_pipe(narrow_pipe: tuple[int, int]) -> None:
    reader, writer = narrow_pipe
    log = LogWriter(writer, form=lambda happened: happened.text)
    lines = [f"{number:099}" for number in range(200)]
    for line in lines:
        log(Event(ts=0.0, tunnel="t", level=LogLevel.INFO, kind=EventKind.LOG, text=line))
    found = list[bytes]()
    reading = threading.Thread(target=lambda: found.append(read_slowly(reader)))
    reading.start()
    wait_until(lambda: not log._lines)
    log.close()
    os.close(writer)
    reading.join(GUARD_S)
    assert found[0].decode().splitlines() == lines


def test_too_little_memory_is_an_error_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(sys, "argv", ["nodepass-orch", "ps"])
    monkeypatch.setattr(early_signals, "install", lambda _: None)
    monkeypatch.setattr(cli, "prepare_standard_streams", lambda: None)
    assert cli.main(fail) == 1
    assert capfd.readouterr().err.startswith("nodepass-orch: the process may not use enough memory")
