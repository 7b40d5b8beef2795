"""Asks a running daemon, over its socket: for commands that come and go, so nothing heavy is imported."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

_PATIENCE: Final = 10.0  # seconds for one answer


class NoDaemonError(Exception):
    """Nobody answers at the socket; the message is a sentence."""


class RefusedError(Exception):
    """The daemon answered that it will not; the message is its sentence."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(str(self._path))


class Client:
    """The local API of the daemon at a socket. All methods raise NoDaemonError and RefusedError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def status(self) -> dict[str, Any]:
        """The object of ``ps --json``."""
        return self._ask("GET", "/v1/status")

    def tunnel(self, name: str) -> dict[str, Any]:
        """One element of its ``tunnels``."""
        return self._ask("GET", f"/v1/tunnels/{quote(name, safe='')}")

    def shutdown(self) -> dict[str, Any]:
        """Drain and end; the answer comes at once."""
        return self._ask("POST", "/v1/shutdown")

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until nobody answers any more; False after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while deadline is None or time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(_PATIENCE)
                try:
                    probe.connect(str(self.path))
                except OSError:
                    return True
            time.sleep(0.05)
        return False

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemonError(f"no daemon answers at {self.path}; start one with: nodepass-orch up") from None
        except PermissionError:
            raise NoDaemonError(f"the daemon at {self.path} belongs to another user") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            what = "in time" if isinstance(error, TimeoutError) else "as a daemon of this program does"
            raise NoDaemonError(f"the daemon at {self.path} does not answer {what}") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise RefusedError(str(answer.get("detail") or answer.get("title") or response.reason))
        return answer
