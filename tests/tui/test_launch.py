"""The commands that open the dashboard, run as processes with and without a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from tests.support.fork_server import DASHBOARD_MODULE, can_fork, fork_server, run_forked
from tests.support.scale import GUARD_S
from tests.tui.fake import FakeDaemon
from tui.web import require_token

ROOT = Path(__file__).parents[2]


@pytest.fixture
def daemon_thread(socket: Path) -> Iterator[FakeDaemon]:
    """Run a fake daemon in a thread, for commands in other processes."""
    fake = FakeDaemon(socket)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(fake.start(), loop).result(GUARD_S)
    yield fake
    asyncio.run_coroutine_threadsafe(_stop(fake), loop).result(GUARD_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(GUARD_S)
    loop.close()


async def _stop(fake: FakeDaemon) -> None:
    await fake.stop()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class Terminal:
    """Runs a command on a terminal of 100 columns and 30 lines, which controls it: it gets SIGHUP when that closes."""

    def __init__(self, *arguments: str, environ: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        environ = {**environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        assert can_fork(environ)
        self.process = fork_server(DASHBOARD_MODULE).start(
            arguments, cwd=ROOT, env=environ, streams=(slave, slave, slave), on_terminal=True
        )
        self._slave, self._is_open = slave, True
        self.output = ""

    def wait_until_shown(self, text: str, seconds: float = 2 * GUARD_S) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline, f"{text!r} was not printed in {self.output[-3000:]!r}"
            self._read()

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.1)[0]:
            return True
        try:
            self.output += os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # the command has closed its end
            return False
        return True

    def wait_for_state(self, letter: str, seconds: float = GUARD_S) -> None:
        """Wait until the process has a state of the kernel: T is stopped."""
        deadline = time.monotonic() + seconds
        while (state := Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]) != letter:
            assert time.monotonic() < deadline, f"it is {state}"
            self._read()

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def hang_up(self) -> None:
        os.close(self._slave)
        os.close(self._master)
        self._is_open = False

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_exit(self, seconds: float = 2 * GUARD_S) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        code = self.process.wait(GUARD_S)
        while self._read() and select.select([self._master], [], [], 0)[0]:
            pass
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._is_open:
            self.hang_up()


@contextmanager
def run_on_terminal(*arguments: str, **environ: str) -> Iterator[Terminal]:
    opened = Terminal(*arguments, environ={**os.environ, **environ})
    try:
        yield opened
    finally:
        opened.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ)
    return run_forked(arguments, cwd=ROOT, env=environ, timeout_s=2 * GUARD_S, module=DASHBOARD_MODULE)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--mqtt", "http://broker"), "--mqtt: this is not a broker's URL"),
        (("--mqtt", "mqtt://broker", "--socket", "np.sock"), "cannot be used with --socket"),
        (("--username", "me"), "add --mqtt URL"),
        (("--mqtt", "mqtt://127.0.0.1:1"), "the dashboard requires a terminal"),
    ],
)
def test_options_that_do_not_fit_a_fleet_are_reported(arguments: tuple[str, ...], why: str) -> None:
    done = run("top", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


def test_top_reports_a_broker_that_does_not_answer() -> None:
    with run_on_terminal("top", "--mqtt", "mqtt://me:geheim@127.0.0.1:1") as opened:
        assert opened.wait_exit() == 4
        assert "the broker mqtt://127.0.0.1:1 does not answer: it refused the connection" in opened.output
        assert "geheim" not in opened.output


def stop_read_only_daemon(socket: Path) -> None:
    """Stop a daemon that rejects commands, if it runs."""
    status = run("ps", "--json", "--socket", str(socket))
    if status.stdout:
        os.kill(json.loads(status.stdout)["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 2 * GUARD_S
        while run("ps", "--socket", str(socket)).returncode != 4:
            assert time.monotonic() < deadline, "it does not end"


def test_top_reports_that_no_daemon_answers(socket: Path) -> None:
    done = run("top", "--socket", str(socket))
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"nodepass-orch: no daemon answers at {socket}; start one with: nodepass-orch up\n"


def test_top_requires_a_terminal(daemon_thread: FakeDaemon) -> None:
    done = run("top", "--socket", str(daemon_thread.socket))
    assert done.returncode == 2
    assert "requires a terminal" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--api", "ftp://x"), "is not an address such as"),
        (("--token-file", "/nowhere/token", "--api", "http://127.0.0.1:1"), "cannot read the token"),
        (("--web-listen", "here", "--web", "--api", "http://127.0.0.1:1"), "is not an address such as 127.0.0.1:8000"),
    ],
)
def test_a_wrong_option_is_reported_with_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    done = run("top", *arguments)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_fault_in_the_key_file_is_reported_with_its_place(daemon_thread: FakeDaemon, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("restrat: f5\n")
    with run_on_terminal("top", "--socket", str(daemon_thread.socket), "--keys", str(keys)) as shown:
        assert shown.wait_exit() == 2
        assert "keys.yaml:1:1: no action is named 'restrat'; did you mean 'restart'?" in shown.output


@pytest.mark.parametrize("how", ["q", "\x03", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_top_restores_the_terminal_however_it_ends(daemon_thread: FakeDaemon, how: str | signal.Signals) -> None:
    with run_on_terminal("top", "--socket", str(daemon_thread.socket)) as shown:
        before = shown.attributes()
        shown.wait_until_shown("db-east")
        assert shown.attributes() != before
        if isinstance(how, str):
            shown.press(how)
        else:
            shown.process.send_signal(how)
        assert shown.wait_exit() == 0
        assert shown.attributes() == before
        assert "\x1b[?1049l" in shown.output  # leaves the alternate screen
        assert "\x1b[?25h" in shown.output  # shows the cursor
        assert "Traceback" not in shown.output
    assert daemon_thread.commands == []


def test_top_ends_when_its_terminal_hangs_up(daemon_thread: FakeDaemon) -> None:
    with run_on_terminal("top", "--socket", str(daemon_thread.socket)) as shown:
        shown.wait_until_shown("db-east")
        shown.hang_up()
        assert shown.process.wait(GUARD_S) == 0


def test_top_can_be_suspended_and_continued(daemon_thread: FakeDaemon) -> None:
    with run_on_terminal("top", "--socket", str(daemon_thread.socket)) as shown:
        before = shown.attributes()
        shown.wait_until_shown("db-east")
        shown.press("\x1a")
        shown.wait_until_shown("\x1b[?1049l")
        shown.wait_for_state("T")
        assert shown.attributes() == before
        shown.output = ""
        os.killpg(shown.process.pid, signal.SIGCONT)
        shown.wait_until_shown("db-east")
        shown.press("q")
        assert shown.wait_exit() == 0


@pytest.mark.parametrize(
    ("keys", "left_running"), [("\x1b[C\r", True), pytest.param("\x1b[C\x1b[C\r", False, marks=pytest.mark.slow)]
)
def test_up_on_a_terminal_starts_a_daemon_and_shows_it(
    tmp_path: Path,
    keys: str,
    left_running: bool,  # noqa: FBT001  as the list above gives it
) -> None:
    file = tmp_path / "tunnels.yaml"
    file.write_text("version: 1\ntunnels:\n  alone: client://127.0.0.1:9/127.0.0.1:10\n")
    socket, state = tmp_path / "up.sock", str(tmp_path / "state")
    try:
        with run_on_terminal("up", "--read-only", str(file), "--socket", str(socket), XDG_STATE_HOME=state) as shown:
            shown.wait_until_shown("alone")
            shown.press("q")
            shown.wait_until_shown("Quit the dashboard?")
            shown.press(keys)
            assert shown.wait_exit() == 0
            assert "Traceback" not in shown.output
            assert ("the tunnels keep running" if left_running else "the tunnels have ended") in shown.output
            assert ("end them with: kill " in shown.output) is left_running  # the daemon rejects commands
        assert run("ps", "--socket", str(socket)).returncode == (3 if left_running else 4)
    finally:
        stop_read_only_daemon(socket)


def test_up_on_a_terminal_reports_that_another_client_stopped_the_daemon(tmp_path: Path) -> None:
    file = tmp_path / "tunnels.yaml"
    file.write_text("version: 1\ntunnels:\n  alone: client://127.0.0.1:9/127.0.0.1:10\n")
    socket, state = tmp_path / "up.sock", str(tmp_path / "state")
    try:
        with run_on_terminal("up", str(file), "--socket", str(socket), XDG_STATE_HOME=state) as shown:
            shown.wait_until_shown("alone")
            assert run("down", "--wait", "--socket", str(socket)).returncode == 0
            shown.wait_until_shown("stale")
            shown.press("q")
            assert shown.wait_exit() == 0
            assert "the daemon has ended, and so have its tunnels" in shown.output
            assert "keep running" not in shown.output
    finally:
        stop_read_only_daemon(socket)


def test_the_demonstration_prints_its_summary_when_the_dashboard_is_closed() -> None:
    with run_on_terminal("demo") as shown:
        shown.wait_until_shown("shop-client")
        shown.wait_until_shown("cooldown")
        shown.press("q")
        assert shown.wait_exit() == 0
        assert "requests were answered" in shown.output


def test_the_dashboard_of_the_demonstration_closes_after_its_duration() -> None:
    with run_on_terminal("demo", "--duration", "3") as shown:
        assert shown.wait_exit() == 0
        assert "requests were answered" in shown.output


def test_other_commands_import_no_dashboard() -> None:
    program = (
        "import sys; sys.argv = ['x', 'ps', '--socket', '/nowhere.sock']; from tui.cli import main; main();"
        "print([m for m in ('textual', 'aiohttp', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


async def test_the_browser_needs_the_token_once_and_a_cookie_afterwards() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="the dashboard")

    async def index(_: web.Request) -> web.Response:
        return web.Response(text="<html><head></head></html>", content_type="text/html")

    app = web.Application(middlewares=[require_token("secret")])
    app.add_routes([web.get("/", index), web.get("/ws", page)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        base = f"http://localhost:{runner.addresses[0][1]}"
        async with ClientSession(base) as browser:
            for wrong in ("/", "/ws", "/?token=", "/?token=Secret"):
                async with browser.get(wrong) as answer:
                    assert answer.status == 403
            async with browser.get("/?token=secret") as answer:
                assert (answer.status, answer.url.query_string) == (200, "")
                assert "overflow: hidden" in await answer.text(), "no scrollbar may cover the last columns"
            for path in ("//localhost:1/?token=secret", "///x?token=secret", "/%5Clocalhost:1/?token=secret"):
                async with browser.get(URL(f"{base}{path}", encoded=True), allow_redirects=False) as answer:
                    assert answer.headers.get("Location", "/") == "/", "never another host"
            async with browser.get("/ws") as answer:
                assert await answer.text() == "the dashboard"
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            async with browser.get("/ws", headers={"Origin": base}) as answer:
                assert answer.status == 200
            async with browser.get("/ws", headers={"Origin": "http://localhost:1"}) as answer:
                assert answer.status == 403
            name = next(iter(browser.cookie_jar)).key
        port = runner.addresses[0][1]
        for header in (f"Cookie: {name}=\xff\xfe", "Origin: \xff", "Authorization: \xff", "Host: \xff"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /?token=%ff HTTP/1.0\r\n{header}\r\n\r\n".encode("latin-1"))
            assert (await reader.readline()).split()[1] in {b"403", b"400"}, header
            writer.close()
    finally:
        await runner.cleanup()
