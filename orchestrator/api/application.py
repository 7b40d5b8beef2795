"""Builds the aiohttp applications from the table of routes: checks requests, turns errors into problem documents."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from orchestrator.api import openapi
from orchestrator.api.handlers import ApiContext, ApiRequest, problem_response
from orchestrator.api.parameters import ParameterError, check_names, parse_body
from orchestrator.api.routes import ROUTES, Route
from orchestrator.history.database import HistoryError
from orchestrator.history.recorder import TooManyCellsError
from orchestrator.process.http_connections import TooManyRequestsError, connection_of, count_answers
from orchestrator.supervisor.control import CommandConflictError, ReadOnlyError, UnknownVisitorError
from orchestrator.supervisor.crash_reports import EngineSilentError, describe_crash
from orchestrator.supervisor.registry import UnknownTunnelError
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from orchestrator.api.stream import StreamLimits
    from orchestrator.supervisor.control import ControlService

_CONTEXT: Final = web.AppKey("context", ApiContext)
_BODY_TIMEOUT_S: Final = 10.0
_ANY_NAME: Final = "{name:[^/]+}"  # a slash in a name arrives encoded; aiohttp's own ``{name}`` excludes braces too

ERROR_STATUSES: Final[Mapping[type[Exception], HTTPStatus]] = {
    ParameterError: HTTPStatus.BAD_REQUEST,
    ReadOnlyError: HTTPStatus.FORBIDDEN,
    UnknownTunnelError: HTTPStatus.NOT_FOUND,
    UnknownVisitorError: HTTPStatus.NOT_FOUND,
    CommandConflictError: HTTPStatus.CONFLICT,
    EngineSilentError: HTTPStatus.SERVICE_UNAVAILABLE,
    TooManyCellsError: HTTPStatus.BAD_REQUEST,
    HistoryError: HTTPStatus.SERVICE_UNAVAILABLE,
    TooManyRequestsError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The HTTP status of each exception that a handler may raise."""


def api_application(
    control: ControlService, token: str | None = None, limits: StreamLimits | None = None
) -> web.Application:
    """Return the whole API; with a token, every request must carry it."""
    middlewares: list[Middleware] = [_catch_errors, *([] if token is None else [_require_token(token)]), count_answers]
    return _application(control, ROUTES, middlewares, limits)


def monitoring_application(control: ControlService) -> web.Application:
    """Return the part of the API that monitoring may read without a token."""
    return _application(
        control, (route for route in ROUTES if route.is_monitoring), [_catch_errors, count_answers], None
    )


def _application(
    control: ControlService, routes: Iterable[Route], middlewares: list[Middleware], limits: StreamLimits | None
) -> web.Application:
    def describe_api() -> Mapping[str, object]:
        return openapi.document(ROUTES, control.info().version)

    app = web.Application(middlewares=middlewares)
    context = ApiContext(control, describe_api, limits) if limits else ApiContext(control, describe_api)
    app[_CONTEXT] = context
    app.on_shutdown.append(_close_streams)
    for route in routes:
        path = route.path.replace("{name}", _ANY_NAME)
        if route.method == "GET":
            app.router.add_get(path, _checked(route), allow_head=route.is_monitoring)
        else:
            app.router.add_route(route.method, path, _checked(route))
    return app


async def _close_streams(app: web.Application) -> None:
    app[_CONTEXT].subscriptions.close_all()


def _checked(route: Route) -> Handler:
    """Return the aiohttp handler of a route: it checks all names before the route's handler runs."""
    names = [parameter.name for parameter in route.parameters]
    fields = [field.name for field in route.body]

    async def handle(request: web.Request) -> web.StreamResponse:
        if not route.is_monitoring:
            check_names(request.query, names, "parameter")
        body: Mapping[str, object] = {}
        if route.method == "POST":
            body = parse_body(await _read_body(request.clone(client_max_size=route.max_body_bytes)), fields)
        return await route.handler(ApiRequest(request, request.app[_CONTEXT], body))

    return handle


async def _read_body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason=f"the body is not complete after {_BODY_TIMEOUT_S:g} s") from None


def _require_token(token: str) -> Middleware:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        given = f"{scheme.capitalize()} {credentials.strip()}".encode(errors="surrogateescape")
        connection = connection_of(request)
        if connection is not None:
            await connection.guard.door.wait_to_verify(connection.origin)
        if hmac.compare_digest(given, expected):
            if connection is not None:
                connection.guard.door.note_authenticated(connection.origin)
            return await handler(request)
        if connection is not None:
            connection.guard.door.note_wrong_proof(connection.origin)
        detail = "the token is missing or wrong; send Authorization: Bearer TOKEN"
        answer = problem_response(HTTPStatus.UNAUTHORIZED, detail)
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    return check


@web.middleware
async def _catch_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except tuple(ERROR_STATUSES) as error:
        return problem_response(ERROR_STATUSES[type(error)], str(error))
    except web.HTTPException as error:
        answer = problem_response(error.status, f"{request.method} {request.path[:200]}: {error.reason}")
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception as error:  # noqa: BLE001  a defect in one answer must neither end the daemon nor show its internals
        request.app[_CONTEXT].control.bus.emit(LogLevel.ERROR, EventKind.API, describe_crash(error))
        return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal fault; see the daemon's log")
