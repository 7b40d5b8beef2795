"""Serves the local API: on the Unix socket, on a TCP address with a token, and on an address for metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from aiohttp import web

from orchestrator.api.application import api_application, monitoring_application
from orchestrator.api.local_socket import Relocate, serve_local_socket
from orchestrator.process.http_connections import LOCAL_LIMITS, TCP_LIMITS, ConnectionGuard, GuardedRunner
from orchestrator.process.socket_paths import SocketPathError
from tunnel.model.events import EventKind
from tunnel.model.files import FileError, read_secret
from tunnel.model.spec import LogLevel
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.api.stream import StreamLimits
    from orchestrator.config.supervisor_settings import SupervisorSettings
    from orchestrator.supervisor.control import ControlService
    from tunnel.model.address import Address

_SHUTDOWN_GRACE_S: Final = 1.0  # for requests in progress
_ACCEPT_TURNS: Final = 3  # of the event loop, until a connection just accepted is known to the runner, which closes it
_MIN_TOKEN_LENGTH: Final = 16
_MAX_TOKEN_LENGTH: Final = 4096


@contextlib.asynccontextmanager
async def serve_api(
    control: ControlService,
    path: Path,
    settings: SupervisorSettings,
    limits: StreamLimits | None = None,
    relocate: Relocate | None = None,
) -> AsyncIterator[None]:
    """Serve on the socket and on the addresses of the settings until the context ends. Raises SocketPathError.

    ``limits`` replaces the usual times of streams. ``relocate`` returns the path for the socket after it disappeared.
    """
    async with contextlib.AsyncExitStack() as stack:
        local = stack.enter_context(contextlib.closing(ConnectionGuard(LOCAL_LIMITS)))
        remote = stack.enter_context(contextlib.closing(ConnectionGuard(TCP_LIMITS)))
        runner = await stack.enter_async_context(_running(api_application(control, limits=limits), local))
        await stack.enter_async_context(serve_local_socket(runner, path, control.bus, relocate or (lambda: path)))
        if settings.api.listen is not None:
            app = api_application(control, token=_read_token(settings.api.token_file), limits=limits)
            runner = await stack.enter_async_context(_running(app, remote))
            await _listen(runner, settings.api.listen, control, "the API")
            if not settings.api.listen.is_loopback:
                text = f"the API on {settings.api.listen} sends its token unencrypted; put a TLS proxy in front of it"
                control.bus.emit(LogLevel.WARN, EventKind.API, text)
        if settings.metrics is not None:
            runner = await stack.enter_async_context(_running(monitoring_application(control), remote))
            await _listen(runner, settings.metrics, control, "metrics")
        yield


@contextlib.asynccontextmanager
async def _running(app: web.Application, guard: ConnectionGuard) -> AsyncIterator[GuardedRunner]:
    runner = GuardedRunner(app, guard, _silent_logger(), _SHUTDOWN_GRACE_S)
    await runner.setup()
    try:
        yield runner
    finally:
        for site in tuple(runner.sites):
            await site.stop()
        await runner.close_listeners()
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
        await runner.cleanup()


def _silent_logger() -> logging.Logger:
    """Return a silent logger: aiohttp logs a traceback for each malformed request; the API reports its own faults."""
    logger = logging.getLogger("orchestrator.api.server")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


async def _listen(runner: GuardedRunner, address: Address, control: ControlService, service: str) -> None:
    try:
        port = await runner.listen(address, service)
    except NetError as error:
        raise SocketPathError(str(error)) from None
    control.bus.emit(LogLevel.INFO, EventKind.API, f"listening for {service} on {type(address)(address.host, port)}")


def _read_token(path: Path | None) -> str:
    if path is None:
        raise SocketPathError("the API on TCP requires a token; set token_file")
    try:
        token = read_secret(path)
    except FileError as error:
        raise SocketPathError(f"cannot read token_file {path}: {error}") from None
    if (
        not _MIN_TOKEN_LENGTH <= len(token) <= _MAX_TOKEN_LENGTH
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        format_ = f"one line of {_MIN_TOKEN_LENGTH} to {_MAX_TOKEN_LENGTH} characters, plain ASCII without spaces"
        raise SocketPathError(f"token_file {path} must hold {format_}; nodepass-orch keygen prints one")
    return token
