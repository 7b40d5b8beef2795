"""The local API: HTTP on a Unix socket that only its owner may open."""

from __future__ import annotations

import contextlib
import json
import os
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from orchestrator.keeper import describe_defect
from orchestrator.paths import SocketPathError
from orchestrator.supervisor import Supervisor, UnknownTunnelError
from tunnel.spec import LogLevel

if TYPE_CHECKING:
    from pathlib import Path

_SUPERVISOR: Final = web.AppKey("supervisor", Supervisor)
_LARGEST_BODY: Final = 64 << 10
_FAREWELL: Final = 1.0  # seconds for answers under way when the API ends

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serve(supervisor: Supervisor, path: Path) -> AsyncIterator[None]:
    """Answer at the socket until the context ends. Raises SocketPathError where it cannot be made."""
    runner = web.AppRunner(application(supervisor), access_log=None, shutdown_timeout=_FAREWELL)
    await runner.setup()
    try:
        await web.SockSite(runner, _listener(path)).start()  # the site owns the listener from here on
        yield
    finally:
        await runner.cleanup()


def _listener(path: Path) -> sockets.socket:
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before listen: until then nobody can connect
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SocketPathError(f"cannot listen at {path}: {error.strerror or error}") from None
    return listener


def application(supervisor: Supervisor) -> web.Application:
    """The API of a supervisor."""
    app = web.Application(middlewares=[_problems], client_max_size=_LARGEST_BODY)
    app[_SUPERVISOR] = supervisor
    app.add_routes(
        [
            web.get("/v1/status", _status),
            web.get("/v1/tunnels/{name:.+}", _tunnel),
            web.post("/v1/shutdown", _shutdown),
            web.get("/healthz", _healthy),
            web.get("/readyz", _ready),
        ]
    )
    return app


async def _status(request: web.Request) -> web.Response:
    return _json(request.app[_SUPERVISOR].status())


async def _tunnel(request: web.Request) -> web.Response:
    try:
        return _json(request.app[_SUPERVISOR].snapshot(request.match_info["name"]).as_json())
    except UnknownTunnelError as error:
        return problem(HTTPStatus.NOT_FOUND, str(error))


async def _shutdown(request: web.Request) -> web.Response:
    supervisor = request.app[_SUPERVISOR]
    active = sum(snapshot.connections.active for snapshot in supervisor.snapshots())
    supervisor.shutdown()
    return _json({"ok": True, "pid": os.getpid(), "active": active}, HTTPStatus.ACCEPTED)


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _ready(request: web.Request) -> web.Response:
    if request.app[_SUPERVISOR].is_ready:
        return web.Response(text="ready\n")
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the tunnels are being started, or drained")


def _json(data: object, status: int = HTTPStatus.OK) -> web.Response:
    return web.json_response(data, status=status, dumps=lambda value: json.dumps(value, ensure_ascii=False))


def problem(status: int, detail: str) -> web.Response:
    """An error as RFC 9457 wants it."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json")


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        answer = problem(error.status, f"{request.method} {request.path[:200]}: {error.reason}")
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception as error:  # noqa: BLE001  a defect of one answer must neither end the daemon nor show its inside
        request.app[_SUPERVISOR].bus.tell(LogLevel.ERROR, "api", describe_defect(error))
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal fault; the daemon's log has more")
