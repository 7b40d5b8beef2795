"""The process: no key in the process list, errors as sentences, and a log that never blocks."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.commands import background
from orchestrator.process import setup
from orchestrator.process.arguments import mask_url
from orchestrator.process.log_file import LogFile
from orchestrator.process.logformat import LogWriter, as_json, as_text, format_json_event, format_local_time
from orchestrator.process.terminal_text import printable
from orchestrator.supervisor.crash_reports import install_exception_handlers
from tests.support.files import text_of
from tests.support.process_signals import signal_while_wakeup_pipe_is_full
from tests.support.scale import GUARD_S
from tests.support.strategies import recognisable_keys
from tests.support.waiting import wait_until
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel
from tunnel.runtime.blocking_calls import ThreadShortageError


def event(text: str, tunnel: str = "web", level: LogLevel = LogLevel.WARN) -> Event:
    return Event(ts=1767225600.0, tunnel=tunnel, level=level, kind=EventKind.STATE, text=text, data={"attempt": 3})


@pytest.fixture
def _five_hours_west(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XXX5")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_five_hours_west")
def test_an_event_is_formatted_as_text_in_local_time() -> None:
    assert as_text(event("target refused")) == "2025-12-31T19:00:00.000-05:00 WARN  web  target refused"
    assert as_text(event("x", tunnel="")) == "2025-12-31T19:00:00.000-05:00 WARN  nodepass-orch  x"
    assert format_json_event(event("x").as_json()) == as_text(event("x"))
    assert format_local_time("2026-01-01T00:00:00.000Z") == "2025-12-31T19:00:00.000-05:00"
    assert format_local_time(None) == "None"


def test_an_event_is_formatted_as_json() -> None:
    assert json.loads(as_json(event("target refused"))) == {
        "ts": "2026-01-01T00:00:00.000Z",
        "tunnel": "web",
        "level": "warn",
        "kind": "state",
        "text": "target refused",
        "attempt": 3,
    }


@given(st.text())
def test_an_event_is_one_line_without_control_characters(text: str) -> None:
    assert as_text(event(text, tunnel=text)).isprintable()
    assert as_json(event(text)).isprintable()
    assert json.loads(as_json(event(text)))["text"] == text
    assert printable(text).isprintable()


def test_queued_lines_are_written_when_the_log_is_closed() -> None:
    reading, writing = os.pipe()
    log = LogWriter(writing)
    for number in range(100):
        log(event(f"number {number}"))
    log.close()
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:  # noqa: PTH123  a descriptor has no path
        assert [line.rsplit(" ", 1)[1] for line in lines] == [f"{number}\n" for number in range(100)]


def test_a_reader_that_does_not_read_blocks_no_writer() -> None:
    reading, writing = os.pipe()
    log = LogWriter(writing)
    for _ in range(30_000):
        log(event("x" * 100))
    select.select([reading], [], [], GUARD_S)
    os.set_blocking(reading, False)
    seen = os.read(reading, 1 << 20)
    assert seen.startswith(b"2026-01-01")
    os.close(reading)
    log.close()
    os.close(writing)


class Disk:
    """A descriptor that takes a few bytes, then nothing, until there is room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self.held = b""
        monkeypatch.setattr(os, "write", self.write)

    def write(self, _fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        taken = data[: self.room]
        self.held += taken
        self.room -= len(taken)
        return len(taken)


def test_lines_lost_to_a_full_disk_are_counted_and_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, reported = Disk(monkeypatch), list[str]()
    log = LogWriter(-1, form=lambda happened: happened.text)
    log.on_problem(reported.append)

    def write_line(text: str) -> None:
        lost = log._dropped
        log(event(text))
        wait_until(lambda: f"{text}\n".encode() in disk.held or log._dropped > lost, within=5, what=f"{text} was tried")

    disk.room = 10
    for text in ("first", "second", "third", "fourth"):
        write_line(text)
    assert reported == ["cannot write the log: no space left on device"]
    disk.room = 1000
    write_line("fifth")
    write_line("sixth")
    disk.room = 0
    write_line("seventh")
    disk.room = 1000
    write_line("eighth")
    log.close()
    assert disk.held.decode().splitlines() == [
        "first", "seco",
        "3 lines of this log lost: no space left on device", "fifth", "sixth",
        "1 line of this log lost: no space left on device", "eighth",
    ]  # fmt: skip
    assert len(reported) == 2


async def test_errors_of_the_event_loop_are_reported_as_sentences() -> None:
    reported: list[tuple[str, str]] = []
    install_exception_handlers(lambda topic, text: reported.append((topic, text)))
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "no more", "exception": OSError(errno.EMFILE, "x")})
    loop.call_soon(int, "one")
    await asyncio.sleep(0)
    loop.call_exception_handler({"message": "odd"})
    assert reported[0] == ("no more", "no more: this process has no file descriptors left")
    assert "internal fault: ValueError" in reported[1][1]
    assert reported[2] == ("odd", "odd")


def test_errors_outside_the_event_loop_are_printed_as_sentences() -> None:
    program = """if True:
    import logging, threading
    from orchestrator.supervisor.crash_reports import suppress_tracebacks
    suppress_tracebacks()
    class Odd:
        def __del__(self): int("cleared away")
    Odd()
    thread = threading.Thread(target=int, args=("in a thread",))
    thread.start()
    thread.join()
    try:
        int("in a library")
    except ValueError:
        logging.getLogger("library").exception("it said")
    logging.getLogger("library").warning("a warning")
    last = Odd()
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 5, done.stderr
    for line, what in zip(lines, ("cleared away", "in a thread", "it said", "a warning", "cleared away"), strict=True):
        assert line.startswith("nodepass-orch: "), line
        assert what in line
        assert ("internal fault: ValueError" in line) == (what != "a warning")


@given(key=recognisable_keys, tail=st.text(max_size=20), scheme=st.sampled_from(["server", "client", "x"]))
def test_the_key_of_a_malformed_url_is_masked(key: str, tail: str, scheme: str) -> None:
    assume(key not in tail)
    assert key not in mask_url(f"{scheme}://{key}@{tail}")
    assert key not in mask_url(f"{key}@{tail}")


def test_a_url_without_a_key_is_not_changed() -> None:
    assert mask_url("server://h:1/h:2?log=debug") == "server://h:1/h:2?log=debug"


def test_the_process_list_shows_no_key() -> None:
    program = """
        import os, sys
        from pathlib import Path
        from orchestrator.process.arguments import hide_keys_in_arguments
        assert hide_keys_in_arguments(sys.argv[1:])
        assert sys.argv[2] == "server://s3cret@h:1/h:2"
        sys.stdout.buffer.write(Path("/proc/self/cmdline").read_bytes())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), "up", "server://s3cret@h:1/h:2", "more"]
    root = Path(__file__).parent.parent.parent
    shown = subprocess.run(command, check=True, capture_output=True, timeout=20, cwd=root).stdout
    assert shown.split(b"\0")[3:5] == [b"up", b"server://***@h:1/h:2"]
    assert shown.rstrip(b"\0").endswith(b"more")
    assert b"s3cret@" not in shown.split(b"\0", 3)[3]


def test_a_process_ends_while_a_library_waits_for_a_dead_name_server() -> None:
    program = """
import asyncio, threading
from orchestrator.process.setup import run_event_loop
async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    return "the result"
assert run_event_loop(main()) == "the result"
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=20, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Cycle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_pause_of_the_garbage_collector_leaves_out_is_searched_before_the_next_one() -> None:
    cycle = Cycle()
    is_alive = weakref.ref(cycle)
    try:
        with setup.garbage_collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled()
        del cycle
        gc.collect()
        assert is_alive(), "present objects are left out"
        with setup.garbage_collector_paused():
            assert not is_alive()
            with setup.garbage_collector_paused():
                pass
            assert not gc.isenabled(), "the outer block decides"
    finally:
        gc.unfreeze()


LOG_PROGRAM = """
    import sys, time
    from pathlib import Path
    from orchestrator.process.log_file import LogFile
    from orchestrator.process.logformat import LogWriter
    from tunnel.model.events import Event, EventKind
    from tunnel.model.spec import LogLevel
    file = LogFile(Path(sys.argv[1]), max_bytes=1000)
    file.open()
    log = LogWriter(file=file)
    log.on_problem(lambda problem: print(problem, flush=True))
    for line in sys.stdin:
        if line.strip() == "reopen":
            log.reopen()
        log(Event(ts=0.0, tunnel="t", level=LogLevel.INFO, kind=EventKind.LOG, text=line.strip()))
    log.close()
    print("the end", flush=True)
"""


def run_log_program(path: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", textwrap.dedent(LOG_PROGRAM), str(path)]
    return subprocess.Popen(program, stdin=subprocess.PIPE, text=True)


def test_a_log_that_was_renamed_is_reopened_on_request(tmp_path: Path) -> None:
    log, renamed = tmp_path / "log", tmp_path / "log.old"
    with run_log_program(log) as program:
        assert program.stdin is not None
        program.stdin.write("first\n")
        program.stdin.flush()
        wait_until(lambda: "first" in text_of(log))
        log.rename(renamed)
        program.stdin.write("still\nreopen\nnew\n")
        program.stdin.close()
        assert program.wait(GUARD_S) == 0
    assert "first" in renamed.read_text()
    assert "new" in log.read_text()
    assert "the end" in log.read_text(), "standard output follows"
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_has_a_bounded_size(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_log_program(log) as program:
        assert program.stdin is not None
        for number in range(20):
            program.stdin.write(f"{number} " + "x" * 200 + "\n")
            program.stdin.flush()
            wait_until(lambda number=number: any(f"  {number} x" in text_of(f) for f in tmp_path.iterdir()))  # type: ignore[misc]  # of a default
        program.stdin.close()
        assert program.wait(GUARD_S) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"log", "log.1"}
    assert all(file.stat().st_size < 2000 for file in tmp_path.iterdir())


def test_a_log_that_cannot_be_renamed_is_reported_once_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "log.1").mkdir()
    with run_log_program(log) as program:
        assert program.stdin is not None
        for number in range(10):
            program.stdin.write(f"{number} " + "x" * 200 + "\n")
            program.stdin.flush()
            wait_until(lambda number=number: f"  {number} x" in text_of(log))  # type: ignore[misc]  # of a default
        program.stdin.close()
        assert program.wait(GUARD_S) == 0
    assert log.read_text().count("the log is too large and cannot be renamed: ") == 1


def test_a_daemon_starts_although_its_large_log_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MAX_LOG_BYTES", 10)
    log = tmp_path / "log"
    log.write_text("x" * 11)
    (tmp_path / "log.1").mkdir()
    assert background._prepare_log(log) == 11
    (tmp_path / "log.1").rmdir()
    assert background._prepare_log(log) == 0
    assert (log.read_text(), (tmp_path / "log.1").read_text()) == ("", "x" * 11)


@pytest.mark.parametrize("path", ["missing/log", "."])
def test_a_log_file_that_cannot_be_opened_is_an_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011  the system's own text
        LogFile(tmp_path / path).open()


def test_a_log_without_a_thread_is_an_error_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ThreadShortageError, match="may start no further thread for the log; raise its pids limit"):
        LogWriter()


def test_a_denied_limit_of_descriptors_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deny(*_: int) -> tuple[int, int]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resource, "getrlimit", deny)
    setup.raise_descriptor_limit()
    assert "cannot raise the limit of file descriptors" in capsys.readouterr().err


EARLY = """
    import signal, sys
    from orchestrator.process import early_signals
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test run under nohup passes on that it is ignored
    early_signals.install(sys.argv[1:])
    print("installed", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        (["up", "--no-tui"], signal.SIGTERM, 0),
        (["up", "--no-tui"], signal.SIGINT, 0),
        (["demo"], signal.SIGTERM, 0),
        (["client://a:1/b:2"], signal.SIGTERM, 0),
        (["client://a:1/b:2"], signal.SIGHUP, -signal.SIGHUP),
        (["up", "-d"], signal.SIGTERM, -signal.SIGTERM),
        (["ps", "--watch"], signal.SIGINT, -signal.SIGINT),
        (["ps", "--watch"], signal.SIGHUP, -signal.SIGHUP),
    ],
)
@pytest.mark.parametrize("is_process_1", [False, True])
def test_a_process_signal_during_imports_ends_the_process_with_the_code_of_its_command(
    arguments: list[str], number: int, code: int, *, is_process_1: bool
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(EARLY), *arguments]
    if is_process_1:
        if os.getuid() or number == signal.SIGHUP:
            pytest.skip("a process namespace needs root; the kernel discards SIGHUP there")
        command = ["unshare", "--pid", "--fork", "--kill-child", *command]
        code = code if code >= 0 else 128 + number
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"installed\n"
        pid = process.pid
        if is_process_1:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        os.kill(pid, number)
        assert process.wait(GUARD_S) == code


def test_sighup_during_imports_does_not_end_a_daemon() -> None:
    command = [sys.executable, "-c", textwrap.dedent(EARLY), "up", "--no-tui"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.communicate()
        assert process.returncode == 0


LEAVES_SIGNALS = """
    import os, signal, sys
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""


def test_blocked_signals_and_an_ignored_sigchld_of_the_parent_are_reset() -> None:
    program = textwrap.dedent(EARLY).replace('"installed"', "signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL")
    command = [sys.executable, "-c", textwrap.dedent(LEAVES_SIGNALS), program, "up", "--no-tui"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        process.terminate()
        assert process.wait(GUARD_S) == 0


async def test_a_signal_is_handled_while_the_pipe_that_wakes_the_loop_is_full() -> None:
    received: asyncio.Future[str] = asyncio.Future()
    place = contextvars.ContextVar("place", default="elsewhere")
    token = place.set("where it was registered")
    setup.handle_signal(signal.SIGUSR2, lambda: received.set_result(place.get()))
    place.reset(token)
    try:
        signal_while_wakeup_pipe_is_full(signal.SIGUSR2)
        assert await asyncio.wait_for(received, GUARD_S) == "where it was registered"
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)
