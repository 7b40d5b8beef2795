"""Where the local API is to be found: the Unix socket, a TCP address for bearers of a token, an address for metrics."""

from __future__ import annotations

import contextlib
import logging
import os
import socket as sockets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from aiohttp import web

from orchestrator.api import handlers as api
from orchestrator.process.paths import SocketPathError
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.config.schema import SupervisorSettings
    from orchestrator.supervisor.desk import Desk
    from tunnel.model.spec import Address

_FAREWELL: Final = 1.0  # seconds for answers under way when the doors close
_BACKLOG: Final = 128
_SHORTEST_TOKEN: Final = 16
_LARGEST_TOKEN: Final = 4096


@contextlib.asynccontextmanager
async def opened(desk: Desk, path: Path, settings: SupervisorSettings) -> AsyncIterator[None]:
    """Answer at the socket, and wherever the settings say, until the context ends. Raises SocketPathError."""
    async with contextlib.AsyncExitStack() as stack:
        runner = await stack.enter_async_context(_running(api.application(desk)))
        await web.SockSite(runner, _unix_listener(path)).start()  # the site owns the listener from here on
        if settings.api.listen is not None:
            app = api.application(desk, token=_token(settings.api.token_file))
            runner = await stack.enter_async_context(_running(app))
            await _listen(runner, settings.api.listen, desk, "the API is")
            if not settings.api.listen.is_loopback:
                text = f"the API's token crosses the network to {settings.api.listen} as it is; put TLS before it"
                desk.bus.tell(LogLevel.WARN, "api", text)
        if settings.metrics is not None:
            runner = await stack.enter_async_context(_running(api.for_machines(desk)))
            await _listen(runner, settings.metrics, desk, "metrics are")
        yield


@contextlib.asynccontextmanager
async def _running(app: web.Application) -> AsyncIterator[web.AppRunner]:
    runner = web.AppRunner(app, access_log=None, logger=_silence(), shutdown_timeout=_FAREWELL)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


def _silence() -> logging.Logger:
    """For aiohttp, which shows a traceback for each request that is no HTTP; the API tells its own faults."""
    logger = logging.getLogger("orchestrator.doors")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _unix_listener(path: Path) -> sockets.socket:
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before listen: until then nobody can connect
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketPathError(f"cannot listen at {path}: {error.strerror or error}") from None
    return listener


async def _listen(runner: web.AppRunner, address: Address, desk: Desk, what: str) -> None:
    try:
        await web.TCPSite(runner, address.host or None, address.port, backlog=_BACKLOG).start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise SocketPathError(f"cannot listen on {address}, where {what} to be: {reason}") from None
    port = runner.addresses[0][1]
    desk.bus.tell(LogLevel.INFO, "api", f"{what} at {type(address)(address.host, port)}")


def _token(path: Path | None) -> str:
    if path is None:
        raise SocketPathError("on TCP nobody is let in without a token; name a token_file")
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(_LARGEST_TOKEN + 1).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain ASCII text"
        raise SocketPathError(f"cannot read token_file {path}: {reason}") from None
    if not _SHORTEST_TOKEN <= len(token) <= _LARGEST_TOKEN or not token.isprintable() or " " in token:
        shape = f"one line of {_SHORTEST_TOKEN} to {_LARGEST_TOKEN} characters without spaces"
        raise SocketPathError(f"token_file {path} must hold {shape}; nodepass-orch keygen makes one")
    return token
