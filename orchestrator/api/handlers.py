"""The local API: HTTP, JSON and server-sent events, for the commands, the dashboard and whoever likes curl."""

from __future__ import annotations

import asyncio
import hmac
import json
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.registry import Collector

from orchestrator.api import metrics, openapi, queries, stream
from orchestrator.api.queries import QueryError
from orchestrator.supervisor.control import VERBS, CommandConflictError, ControlService, ReadOnlyError
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.event_bus import HISTORY_KINDS, SUPERVISOR
from orchestrator.supervisor.supervisor import UnknownTunnelError
from tunnel.model.events import Event
from tunnel.model.spec import LogLevel

_CONTROL: Final = web.AppKey("desk", ControlService)
_PROCESS: Final = web.AppKey("process", Collector)
_SUBSCRIPTIONS: Final = web.AppKey("subscriptions", stream.Subscriptions)
_LARGEST_BODY: Final = 64 << 10
_LINES: Final = 200
_EVENTS: Final = 100
_INTERVAL: Final = 0.25
_STATUS_OF: Final[dict[type[Exception], HTTPStatus]] = {
    QueryError: HTTPStatus.BAD_REQUEST,
    ReadOnlyError: HTTPStatus.FORBIDDEN,
    UnknownTunnelError: HTTPStatus.NOT_FOUND,
    CommandConflictError: HTTPStatus.CONFLICT,
}


def api_application(control: ControlService, token: str | None = None) -> web.Application:
    """The API of a daemon; with a token, for its bearers alone."""
    checks = [_problems] if token is None else [_problems, _bearers_of(token)]
    app = web.Application(middlewares=checks, client_max_size=_LARGEST_BODY)
    app[_CONTROL] = control
    app[_SUBSCRIPTIONS] = stream.Subscriptions()
    app[_PROCESS] = metrics.process_collector()
    app.on_shutdown.append(_end_streams)
    verbs = "|".join(VERBS)
    app.add_routes(
        [
            _get("/v1/status", _status),
            _get("/v1/watch", _watch, "interval"),
            _get("/v1/tunnels/{name}", _tunnel),
            web.post(f"/v1/tunnels/{{name}}/{{verb:{verbs}}}", _command),
            web.post("/v1/reload", _reload),
            _get("/v1/plan", _plan),
            _get("/v1/logs", _logs, "tunnel", "n", "level", "follow"),
            _get("/v1/events", _events, "n", "follow"),
            web.post("/v1/shutdown", _shutdown),
            _get("/openapi.json", _openapi),
            *_MACHINES,
        ]
    )
    return app


def monitoring_application(control: ControlService) -> web.Application:
    """What monitoring may see without a token."""
    app = web.Application(middlewares=[_problems])
    app[_CONTROL] = control
    app[_PROCESS] = metrics.process_collector()
    app.add_routes(_MACHINES)
    return app


def _get(path: str, handler: Handler, *parameters: str) -> web.RouteDef:
    async def checked(request: web.Request) -> web.StreamResponse:
        queries.check_names(request.query, parameters, "parameter")
        return await handler(request)

    return web.get(path, checked, allow_head=False)


def _bearers_of(token: str) -> Middleware:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        shown = f"{scheme.capitalize()} {given.strip()}".encode(errors="surrogateescape")
        if hmac.compare_digest(shown, expected):
            return await handler(request)
        answer = problem(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong; send Authorization: Bearer TOKEN")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    return check


async def _end_streams(app: web.Application) -> None:
    app[_SUBSCRIPTIONS].close_all()


async def _status(request: web.Request) -> web.Response:
    return _json(await request.app[_CONTROL].status())


async def _watch(request: web.Request) -> web.StreamResponse:
    interval = queries.seconds(request.query, "interval", _INTERVAL)
    return await stream.watch_status(request, request.app[_CONTROL], interval, request.app[_SUBSCRIPTIONS])


async def _tunnel(request: web.Request) -> web.Response:
    return _json(request.app[_CONTROL].tunnel(request.match_info["name"]))


async def _command(request: web.Request) -> web.Response:
    verb = request.match_info["verb"]
    body = await _body(request, {} if verb in {"start", "retry"} else {"timeout": float})
    outcome = await request.app[_CONTROL].command(verb, request.match_info["name"], body.get("timeout"))
    return _json(outcome.as_json())


async def _reload(request: web.Request) -> web.Response:
    await _body(request, {})
    return _json(await request.app[_CONTROL].reload())


async def _plan(request: web.Request) -> web.Response:
    return _json(await request.app[_CONTROL].plan())


async def _logs(request: web.Request) -> web.StreamResponse:
    bus, query = request.app[_CONTROL].bus, request.query
    least = queries.level(query, "level", LogLevel.INFO)
    names = frozenset(query.getall("tunnel", []))
    present = {SUPERVISOR, *(snapshot.name for snapshot in request.app[_CONTROL].supervisor.snapshots())}
    for name in names:
        if name not in present and not bus.has_events_of(name):
            raise UnknownTunnelError(name)

    def wanted(event: Event) -> bool:
        return event.level >= least and (not names or event.tunnel in names)

    count = queries.whole(query, "n", _LINES)
    if not queries.switch(query, "follow", default=False):
        return _json({"lines": [event.as_json() for event in bus.last_events(count, wanted, names)]})
    with stream.EventSubscription(bus, wanted, request.app[_SUBSCRIPTIONS]) as subscription:
        return await stream.follow_events(request, subscription, bus.last_events(count, wanted, names))


async def _events(request: web.Request) -> web.StreamResponse:
    bus = request.app[_CONTROL].bus
    count = queries.whole(request.query, "n", _EVENTS)
    if not queries.switch(request.query, "follow", default=True):
        return await stream.replay_events(request, bus.last_history(count))
    with stream.EventSubscription(
        bus, lambda event: event.kind in HISTORY_KINDS, request.app[_SUBSCRIPTIONS]
    ) as subscription:
        return await stream.follow_events(request, subscription, bus.last_history(count))


async def _shutdown(request: web.Request) -> web.Response:
    body = await _body(request, {"drain": bool})
    return _json(request.app[_CONTROL].shutdown(drain=body.get("drain", True)), HTTPStatus.ACCEPTED)


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _ready(request: web.Request) -> web.Response:
    if request.app[_CONTROL].supervisor.is_ready:
        return web.Response(text="ready\n")
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the tunnels are being started, or drained")


async def _metrics(request: web.Request) -> web.Response:
    control, process = request.app[_CONTROL], request.app[_PROCESS]
    accept = request.headers.get("Accept", "")
    tasks = len(asyncio.all_tasks())
    snapshots = await control.supervisor.look()
    page, content_type = await asyncio.to_thread(metrics.render, control.head(), snapshots, tasks, accept, process)
    return web.Response(body=page, headers={"Content-Type": content_type})


async def _openapi(request: web.Request) -> web.Response:
    return _json(openapi.document(request.app[_CONTROL].head()["version"]))


_MACHINES: Final = (_get("/healthz", _healthy), _get("/readyz", _ready), _get("/metrics", _metrics))


async def _body(request: web.Request, known: dict[str, type]) -> dict[str, Any]:
    queries.check_names(request.query, (), "parameter")
    return queries.body(await request.read(), known)


def _json(data: object, status: int = HTTPStatus.OK) -> web.Response:
    return web.json_response(
        data, status=status, dumps=lambda value: json.dumps(value, ensure_ascii=False, default=str)
    )


def problem(status: int, detail: str) -> web.Response:
    """An error as RFC 9457 wants it."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json")


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except tuple(_STATUS_OF) as error:
        return problem(_STATUS_OF[type(error)], str(error))
    except web.HTTPException as error:
        answer = problem(error.status, f"{request.method} {request.path[:200]}: {error.reason}")
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception as error:  # noqa: BLE001  a defect of one answer must neither end the daemon nor show its inside
        request.app[_CONTROL].bus.emit(LogLevel.ERROR, "api", describe_crash(error))
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal fault; the daemon's log has more")
