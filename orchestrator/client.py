"""A client of the local API over the Unix socket, for commands that run briefly: it imports nothing heavy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeVar, cast
from urllib.parse import quote, urlencode

from orchestrator.errors import OrchestratorError
from orchestrator.process.socket_paths import is_listening
from orchestrator.status.json_types import (
    CommandResultJson,
    EventJson,
    EventsJson,
    KickJson,
    PlanJson,
    ReloadJson,
    ShutdownJson,
    StatusJson,
    TrafficJson,
    TunnelDetailsJson,
    TunnelTestJson,
    VisitorsJson,
)

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.process.running_daemon import RunningDaemon

Answer = TypeVar("Answer")

ANSWER_TIMEOUT_S: Final = 10.0
MAX_NAMED_TUNNELS: Final = 50
"""Of more tunnels the visitors are selected here: a request line has at most 8,190 bytes."""
_TEST_TIMEOUT_S: Final = 30.0  # for a target that does not answer
_SLOW_ANSWER_TIMEOUT_S: Final = 60.0  # for a reload of many tunnels, or for the next heartbeat of a stream
_POLL_INTERVAL_S: Final = 0.05
_SOCKET_TIMEOUT_S: Final = 3.0  # for the socket of a daemon that runs: it starts, or creates a removed socket again
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_HEADERS: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
_END_OF_STREAM: Final = b": end\n"  # the last line of a stream that the daemon ended; missing if the daemon crashed


class NoDaemonError(OrchestratorError):
    """No daemon answers at the socket; the message is a sentence."""


class RequestRefusedError(OrchestratorError):
    """The daemon refused the request; the message is the sentence of its answer."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))

    def peer_pid(self) -> int:
        """The process that listens at the socket; 0 if it is not visible here (another container)."""
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[0])


def _advise_start() -> str:
    return "start one with: nodepass-orch up"


class ApiClient:
    """The local API of the daemon at a socket. All methods raise NoDaemonError and RequestRefusedError."""

    def __init__(
        self,
        path: Path,
        timeout_s: float = ANSWER_TIMEOUT_S,
        *,
        locate: Callable[[], RunningDaemon | None] = lambda: None,
        advise: Callable[[], str] = _advise_start,
    ) -> None:
        """``locate`` returns the daemon that ought to answer, if it runs; ``advise`` what to do if none does."""
        self.path = path
        self._timeout_s = timeout_s
        self._locate = locate
        self._advise = advise
        self._process: tuple[int, int] | None = None  # the daemon's process id and its descriptor (pidfd_open(2))

    def status(self) -> StatusJson:
        """Return the object of ``ps --json``."""
        return self._request(StatusJson, "GET", "/v1/status")

    def tunnel(self, name: str) -> TunnelDetailsJson:
        """Return one element of its ``tunnels`` with the settings and their places in the file."""
        return self._request(TunnelDetailsJson, "GET", f"/v1/tunnels/{_quote(name)}")

    def visitors(self, names: Iterable[str] = (), rates_s: float = 0.0) -> VisitorsJson:
        """Return the visitors of some tunnels (none: all); their rates are measured for ``rates_s`` seconds."""
        names = set(names)
        named = sorted(names) if len(names) <= MAX_NAMED_TUNNELS else []
        query = [*(("tunnel", name) for name in named), *([("rates", f"{rates_s:g}")] if rates_s else [])]
        path = f"/v1/visitors?{urlencode(query, errors='surrogateescape')}" if query else "/v1/visitors"
        answer = self._request(VisitorsJson, "GET", path)
        if names and not named:
            return {"visitors": [one for one in answer["visitors"] if one["tunnel"] in names]}
        return answer

    def kick(self, which: str, names: Iterable[str] = ()) -> KickJson:
        """Disconnect the visitors of some tunnels (none: all) by ID, address or network; return them."""
        return self._request(KickJson, "POST", "/v1/kick", {"visitors": which, "tunnels": list(names)})

    def test(self, name: str) -> TunnelTestJson:
        """Time each leg of a visitor's way through a tunnel."""
        return self._request(TunnelTestJson, "POST", f"/v1/tunnels/{_quote(name)}/test", {}, timeout_s=_TEST_TIMEOUT_S)

    def command(
        self,
        verb: str,
        name: str,
        timeout_s: float | None = None,
        *,
        target: str | None = None,
        link: str | None = None,
    ) -> CommandResultJson:
        """Send start, stop, restart, drain or retry; ``timeout_s`` limits the drain.

        ``target`` and ``link`` mean one of several targets or links instead of the tunnel.
        """
        given = {"timeout": timeout_s, "target": target, "link": link}
        body: dict[str, object] = {name: value for name, value in given.items() if value is not None}
        return self._request(CommandResultJson, "POST", f"/v1/tunnels/{_quote(name)}/{verb}", body)

    def plan(self) -> PlanJson:
        """Return what a reload would change."""
        return self._request(PlanJson, "GET", "/v1/plan", timeout_s=_SLOW_ANSWER_TIMEOUT_S)

    def plan_candidate(self, content: str, name: str) -> PlanJson:
        """Return what a candidate in place of the running file would change; faults call the candidate ``name``."""
        body = {"content": content, "name": name}
        return self._request(PlanJson, "POST", "/v1/plan", body, timeout_s=_SLOW_ANSWER_TIMEOUT_S)

    def apply_candidate(self, content: str, name: str) -> ReloadJson:
        """Put a candidate in place of the running file. Returns the result per entry."""
        body = {"content": content, "name": name}
        return self._request(ReloadJson, "POST", "/v1/apply", body, timeout_s=_SLOW_ANSWER_TIMEOUT_S)

    def reload(self) -> ReloadJson:
        """Read the file again. Returns the result per entry."""
        return self._request(ReloadJson, "POST", "/v1/reload", {}, timeout_s=_SLOW_ANSWER_TIMEOUT_S)

    def logs(self, names: Iterable[str], count: int, level: str, *, follow: bool) -> Iterator[EventJson]:
        """Yield the last events of some tunnels (none: all); with ``follow`` each new one, until the daemon ends."""
        query = [*(("tunnel", name) for name in names), ("n", count), ("level", level), ("follow", _flag(value=follow))]
        path = f"/v1/logs?{urlencode(query, errors='surrogateescape')}"
        return self._stream(path) if follow else iter(self._request(EventsJson, "GET", path)["lines"])

    def events(self, count: int, *, follow: bool) -> Iterator[EventJson]:
        """Yield the last state changes, reloads and commands; with ``follow`` each new one, until the daemon ends."""
        return self._stream(f"/v1/events?{urlencode([('n', count), ('follow', _flag(value=follow))])}")

    def traffic(self, names: Iterable[str], step: str, days: int | None) -> TrafficJson:
        """Return what tunnels carried (names and patterns; none: all) by hour, day or month."""
        query = [*(("tunnel", name) for name in names), ("by", step), *([("days", days)] if days else [])]
        path = f"/v1/traffic?{urlencode(query, errors='surrogateescape')}"
        return self._request(TrafficJson, "GET", path, timeout_s=_SLOW_ANSWER_TIMEOUT_S)

    def shutdown(self, *, drain: bool = True) -> ShutdownJson:
        """Drain and end the daemon, or end it at once. Returns before it has ended."""
        return self._request(ShutdownJson, "POST", "/v1/shutdown", {"drain": drain})

    def is_ready(self) -> bool:
        """Whether a daemon answers that no enabled tunnel is starting."""
        try:
            with self._open_response("GET", "/readyz", None, self._timeout_s) as response:
                return response.status == 200
        except NoDaemonError:
            return False

    def wait_until_ended(self, timeout_s: float | None = None) -> bool:
        """Wait until the process of the daemon has ended that answered last. Returns False after ``timeout_s``.

        A daemon whose process is not visible here has ended when its socket refuses connections and its lock is free.
        """
        if self._process is not None:
            poller = select.poll()
            poller.register(self._process[1], select.POLLIN)
            return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while is_listening(self.path) or self._locate() is not None:
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_POLL_INTERVAL_S)
        return True

    def _request(
        self,
        answer_type: type[Answer],
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        with self._open_response(method, path, body, timeout_s or self._timeout_s) as response:
            return _parse_answer(answer_type, response)

    def _stream(self, path: str) -> Iterator[EventJson]:
        with self._open_response("GET", path, None, _SLOW_ANSWER_TIMEOUT_S) as response:
            if response.status >= 400:
                _parse_answer(EventJson, response)
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
                elif line == _END_OF_STREAM:
                    return
            raise NoDaemonError(f"the daemon at {self.path} is gone")

    @contextlib.contextmanager
    def _open_response(
        self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connect(timeout_s)
        try:
            data = None if body is None else json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
            connection.request(method, path, data, _HEADERS if body else {})
            yield connection.getresponse()
        except TimeoutError:
            raise NoDaemonError(f"the daemon at {self.path} does not answer in time") from None
        except (OSError, http.client.HTTPException, ValueError):
            raise NoDaemonError(f"the process at {self.path} does not answer as a nodepass-orch daemon") from None
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> _UnixConnection:
        """Connect, and wait where the daemon runs but cannot be reached yet."""
        started_at = time.monotonic()
        while True:
            connection = _UnixConnection(self.path, timeout_s)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                self._check_can_retry(error, time.monotonic() - started_at, timeout_s)
            else:
                self._remember_process(connection.peer_pid())
                return connection
            time.sleep(_POLL_INTERVAL_S)

    def _check_can_retry(self, error: OSError, waited_s: float, timeout_s: float) -> None:
        """Raise NoDaemonError unless another attempt may succeed."""
        match error:
            case FileNotFoundError() | ConnectionRefusedError():
                self._find_moved_socket(waited_s)
            case BlockingIOError():  # connect(2): the backlog of a Unix socket is full
                if waited_s > timeout_s:
                    text = f"the daemon at {self.path} does not answer in time: too many connections wait for it"
                    raise NoDaemonError(text) from None
            case PermissionError():
                raise NoDaemonError(f"the daemon at {self.path} belongs to another user") from None
            case TimeoutError():
                raise NoDaemonError(f"the daemon at {self.path} does not answer in time") from None
            case _:
                raise NoDaemonError(f"cannot connect to {self.path}: {error.strerror or error}") from None

    def _find_moved_socket(self, waited_s: float) -> None:
        """Use the socket of the daemon that runs. Raises NoDaemonError where none runs, or after a time."""
        daemon = self._locate()
        if daemon is None:
            raise NoDaemonError(f"no daemon answers at {self.path}; {self._advise()}") from None
        if daemon.is_foreign:
            raise NoDaemonError(f"{daemon} belongs to another user") from None
        if waited_s > _SOCKET_TIMEOUT_S:
            end = f"; end it with: kill {daemon.pid}" if daemon.pid else ""
            text = f"{daemon} runs, but nothing listens at its socket {self.path}; it tries to create it again{end}"
            raise NoDaemonError(text) from None
        self.path = daemon.socket or self.path

    def _remember_process(self, pid: int) -> None:
        if self._process is not None:
            if self._process[0] == pid:
                return
            os.close(self._process[1])
            self._process = None
        if pid > 0 and pid != os.getpid():
            with contextlib.suppress(OSError):  # an old kernel, or a filter of system calls
                self._process = pid, os.pidfd_open(pid)


def _parse_answer(_: type[Answer], response: http.client.HTTPResponse) -> Answer:
    """Return the JSON object of an answer. Raises RequestRefusedError, and ValueError if the body is no object.

    The fields are not checked: the daemon at the socket is a part of this program.
    """
    answer = json.loads(response.read())
    if not isinstance(answer, dict):
        raise ValueError("no object")
    if response.status >= 400:
        raise RequestRefusedError(str(answer.get("detail") or answer.get("title") or response.reason))
    return cast("Answer", answer)


def _quote(name: str) -> str:
    return quote(name, safe="", errors="surrogateescape")  # an argument of the command line may be any bytes


def _flag(*, value: bool) -> str:
    return "true" if value else "false"
