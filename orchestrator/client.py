"""Asks a running daemon, over its socket: for commands that come and go, so nothing heavy is imported."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

Json = dict[str, Any]

_PATIENCE: Final = 10.0  # seconds for one answer
_LONG_PATIENCE: Final = 60.0  # seconds for a reload of many tunnels, or for the next sign of life of a stream


_END: Final = b": end\n"  # the last line of a stream whose daemon ends; without it the daemon broke down


class NoDaemonError(Exception):
    """Nobody answers at the socket; the message is a sentence."""


class RefusedError(Exception):
    """The daemon answered that it will not; the message is its sentence."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path
        self._patience = patience

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._patience)
        self.sock.connect(str(self._path))


class Client:
    """The local API of the daemon at a socket. All methods raise NoDaemonError and RefusedError."""

    def __init__(self, path: Path, patience: float = _PATIENCE) -> None:
        self.path = path
        self._patience = patience

    def status(self) -> Json:
        """The object of ``ps --json``."""
        return self._ask("GET", "/v1/status")

    def tunnel(self, name: str) -> Json:
        """One element of its ``tunnels``, with its settings and where they are written."""
        return self._ask("GET", f"/v1/tunnels/{quote(name, safe='')}")

    def command(self, verb: str, name: str, timeout: float | None = None) -> Json:
        """start, stop, restart, drain or retry; ``timeout`` seconds is the limit of the drain."""
        body = {} if timeout is None else {"timeout": timeout}
        return self._ask("POST", f"/v1/tunnels/{quote(name, safe='')}/{verb}", body)

    def plan(self) -> Json:
        """What a reload would change."""
        return self._ask("GET", "/v1/plan", patience=_LONG_PATIENCE)

    def reload(self) -> Json:
        """Read the file again; the result per entry."""
        return self._ask("POST", "/v1/reload", {}, patience=_LONG_PATIENCE)

    def logs(self, names: Iterable[str], count: int, level: str, *, follow: bool) -> Iterator[Json]:
        """The last events of some tunnels (none: all), and with ``follow`` each new one, until the daemon ends."""
        query = [*(("tunnel", name) for name in names), ("n", count), ("level", level), ("follow", _switch(follow))]
        if follow:
            return self._stream(f"/v1/logs?{urlencode(query)}")
        return iter(self._ask("GET", f"/v1/logs?{urlencode(query)}")["lines"])

    def events(self, count: int, *, follow: bool) -> Iterator[Json]:
        """The last state changes, reloads and commands, and with ``follow`` each new one, until the daemon ends."""
        return self._stream(f"/v1/events?{urlencode([('n', count), ('follow', _switch(follow))])}")

    def shutdown(self, *, drain: bool = True) -> Json:
        """Drain and end, or end at once; the answer comes at once."""
        return self._ask("POST", "/v1/shutdown", {"drain": drain})

    def is_ready(self) -> bool:
        """Whether a daemon answers that every tunnel was started."""
        try:
            with self._answer("GET", "/readyz", None, self._patience) as response:
                return response.status == 200
        except NoDaemonError:
            return False

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until nobody answers any more; False after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while deadline is None or time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(self._patience)
                try:
                    probe.connect(str(self.path))
                except OSError:
                    return True
            time.sleep(0.05)
        return False

    def _ask(self, method: str, path: str, body: Json | None = None, *, patience: float | None = None) -> Json:
        with self._answer(method, path, body, patience or self._patience) as response:
            return _object(response)

    def _stream(self, path: str) -> Iterator[Json]:
        with self._answer("GET", path, None, _LONG_PATIENCE) as response:
            if response.status >= 400:
                _object(response)
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
                elif line == _END:
                    return
            raise NoDaemonError(f"the daemon at {self.path} is gone")

    @contextlib.contextmanager
    def _answer(self, method: str, path: str, body: Json | None, patience: float) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, patience)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), _HEADERS if body else {})
            yield connection.getresponse()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemonError(f"no daemon answers at {self.path}; start one with: nodepass-orch up") from None
        except PermissionError:
            raise NoDaemonError(f"the daemon at {self.path} belongs to another user") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            what = "in time" if isinstance(error, TimeoutError) else "as a daemon of this program does"
            raise NoDaemonError(f"the daemon at {self.path} does not answer {what}") from None
        finally:
            connection.close()


_HEADERS: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


def _object(response: http.client.HTTPResponse) -> Json:
    """The answer; raises RefusedError where it is a refusal, ValueError where it is no object."""
    answer = json.loads(response.read())
    if not isinstance(answer, dict):
        raise ValueError("no object")
    if response.status >= 400:
        raise RefusedError(str(answer.get("detail") or answer.get("title") or response.reason))
    return answer


def _switch(value: bool) -> str:  # noqa: FBT001  a value to be written, not a flag
    return "true" if value else "false"
