"""The Unix socket of the local API, which is created again when its file disappears.

A cleaner of temporary files, the end of a login session (XDG_RUNTIME_DIR) or a user may delete it. The listener then
still exists, but no client can reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from aiohttp import web

from orchestrator.process.socket_paths import SocketPathError, is_listening, remove_stale_socket
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.supervisor.event_bus import EventBus

Relocate = Callable[[], "Path"]
"""Returns where to create a socket that disappeared. Raises SocketPathError where there is no place."""

CHECK_INTERVAL_S: Final = 1.0

_LISTEN_BACKLOG: Final = 128


@contextlib.asynccontextmanager
async def serve_local_socket(
    runner: web.AppRunner, path: Path, bus: EventBus, relocate: Relocate
) -> AsyncIterator[None]:
    """Serve on a socket until the context ends, and remove its file then. Raises SocketPathError."""
    local = _LocalSocket(runner, path, bus, relocate)
    await local.listen()
    checking = asyncio.create_task(local.keep())
    try:
        yield
    finally:
        checking.cancel()
        await asyncio.wait({checking})
        local.unlink()


class _LocalSocket:
    def __init__(self, runner: web.AppRunner, path: Path, bus: EventBus, relocate: Relocate) -> None:
        self._runner = runner
        self._path = path
        self._bus = bus
        self._relocate = relocate
        self._site: web.SockSite | None = None
        self._inode: tuple[int, int] | None = None
        self._problem = ""

    async def listen(self) -> None:
        """Create the socket, in place of the one before. Raises SocketPathError."""
        remove_stale_socket(self._path)
        listener = _unix_listener(self._path)
        before, self._site = self._site, web.SockSite(self._runner, listener)  # the site owns the listener
        self._inode = _identify(self._path)
        await self._site.start()
        if before is not None:
            await before.stop()

    async def keep(self) -> None:
        """Create the socket again whenever its file is gone, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            found = _identify(self._path)
            if found == self._inode:
                continue
            try:
                if found is None:
                    self._path = self._relocate()
                elif is_listening(self._path):
                    raise SocketPathError(f"another process listens at {self._path}")
                await self.listen()
            except SocketPathError as error:
                self._report(str(error))
            except OSError as error:  # no descriptor, for example: a later check may have one
                self._report(f"{self._path}: {(error.strerror or str(error)).lower()}")
            else:
                self._problem = ""
                text = f"the socket was removed; a new one listens at {self._path}"
                self._bus.emit(LogLevel.WARN, EventKind.API, text)

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            text = f"the socket was removed and commands cannot reach this daemon: {problem}"
            self._bus.emit(LogLevel.ERROR, EventKind.API, text)

    def unlink(self) -> None:
        """Remove the file of the socket, unless another process has replaced it."""
        with contextlib.suppress(OSError):
            if self._inode is not None and _identify(self._path) == self._inode:
                self._path.unlink()


def _identify(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, or None if there is none or its directory is gone."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unix_listener(path: Path) -> sockets.socket:
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before listen: until then no client can connect
        listener.listen(_LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketPathError(f"cannot listen on {path}: {error.strerror or error}") from None
    return listener
