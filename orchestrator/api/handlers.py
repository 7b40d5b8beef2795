"""The handlers of the local API, one for each row of ``routes``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from aiohttp import web

from orchestrator.api import metrics, parameters, stream
from orchestrator.config.candidate import Candidate
from orchestrator.history.periods import DEFAULT_DAYS
from orchestrator.json_text import json_text
from orchestrator.supervisor.control import UnknownVisitorError
from orchestrator.supervisor.event_bus import HISTORY_KINDS, SUPERVISOR
from orchestrator.supervisor.registry import UnknownTunnelError
from orchestrator.tunnel_commands import TUNNEL_COMMANDS
from tunnel.model.visitors import VisitorSelector

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from orchestrator.api.parameters import BodyField, Parameter
    from orchestrator.status.json_types import VisitorJson
    from orchestrator.supervisor.control import ControlService
    from tunnel.model.events import Event

_MAX_CANDIDATE_NAME: Final = 4096
_SLICE_SIZE: Final = 50  # visitors that are encoded in one turn of the event loop

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What the handlers of one application share."""

    control: ControlService
    describe_api: Callable[[], Mapping[str, object]]
    """returns the OpenAPI document"""
    limits: stream.StreamLimits = field(default_factory=stream.StreamLimits)
    subscriptions: stream.Subscriptions = field(default_factory=stream.Subscriptions)
    metrics_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    process_metrics: Collector = field(default_factory=metrics.process_collector)


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request whose parameters and body have only names that its route knows."""

    http: web.Request
    context: ApiContext
    body: Mapping[str, object]

    @property
    def control(self) -> ControlService:
        """The daemon's one place for commands and status."""
        return self.context.control

    @property
    def tunnel_name(self) -> str:
        """The name in the path."""
        return self.http.match_info["name"]

    def get(self, parameter: Parameter[Value]) -> Value:
        """Return the value of a query parameter. Raises ParameterError."""
        return parameter.read(self.http.query.getall(parameter.name, []))

    def get_field(self, body_field: BodyField[Value]) -> Value:
        """Return the value of a field of the body. Raises ParameterError."""
        return body_field.read(self.body)


def json_response(data: object, status: int = HTTPStatus.OK) -> web.Response:
    """Return an answer of type ``application/json``."""
    return web.json_response(data, status=status, dumps=json_text)


def problem_response(status: int, detail: str) -> web.Response:
    """Return an error as RFC 9457 defines it."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    return web.json_response(body, status=status, content_type="application/problem+json", dumps=json_text)


async def get_status(request: ApiRequest) -> web.StreamResponse:
    """Answer the whole status, as ``ps --json`` prints it."""
    return json_response(await request.control.status())


async def watch_status(request: ApiRequest) -> web.StreamResponse:
    """Stream the status and its changes."""
    interval_s = request.get(parameters.INTERVAL)
    context = request.context
    return await stream.watch_status(request.http, context.control, interval_s, context.subscriptions, context.limits)


async def list_tunnels(request: ApiRequest) -> web.StreamResponse:
    """Answer all tunnels, as they are in the status."""
    return json_response({"tunnels": (await request.control.status())["tunnels"]})


async def get_tunnel(request: ApiRequest) -> web.StreamResponse:
    """Answer one tunnel with its settings."""
    return json_response(request.control.tunnel(request.tunnel_name))


async def list_visitors(request: ApiRequest) -> web.StreamResponse:
    """Answer visitors: of the tunnel in the path, of those in the query, or of all."""
    match = request.http.match_info
    names = (match["name"],) if "name" in match else request.get(parameters.VISITORS_OF)
    visitors = request.control.visitors(names, request.get(parameters.RATES))
    parts = [",".join(map(json_text, some)) async for some in visitors if some]  # first all: an error has a status
    return await stream.send_list(request.http, "visitors", parts, request.context.limits)


async def kick_visitors(request: ApiRequest) -> web.StreamResponse:
    """Disconnect the visitors that the body names."""
    request.control.check_writable()
    selector = request.get_field(parameters.VISITORS)
    if selector is None:
        raise parameters.ParameterError("visitors is missing in the body: an ID, an address or a network")
    names = request.get_field(parameters.KICK_TUNNELS)
    kicked = await request.control.kick(selector, names)
    return await _answer_kicked(request, kicked)


async def kick_visitor(request: ApiRequest) -> web.StreamResponse:
    """Disconnect the visitor of one tunnel that the path names."""
    name, ident = request.tunnel_name, request.http.match_info["id"]
    kicked = await request.control.kick(VisitorSelector(ident), (name,))
    if not kicked:
        raise UnknownVisitorError(name, ident)
    return await _answer_kicked(request, kicked)


async def _answer_kicked(request: ApiRequest, kicked: list[VisitorJson]) -> web.StreamResponse:
    slices = (kicked[start : start + _SLICE_SIZE] for start in range(0, len(kicked), _SLICE_SIZE))
    parts = (",".join(map(json_text, some)) for some in slices)
    return await stream.send_list(request.http, "kicked", parts, request.context.limits)


async def test_tunnel(request: ApiRequest) -> web.StreamResponse:
    """Answer how long each leg of a visitor's way takes."""
    return json_response(await request.control.test(request.tunnel_name))


async def send_command(request: ApiRequest, *, verb: str) -> web.StreamResponse:
    """Give a tunnel, or one of its targets or links, one command."""
    command, name = TUNNEL_COMMANDS[verb], request.tunnel_name
    target = request.get_field(parameters.TARGET) if command.takes_target else None
    link = request.get_field(parameters.LINK) if command.takes_link else None
    if target is not None and link is not None:
        raise parameters.ParameterError("the body names a target and a link; a command concerns one of them")
    if target is not None:
        outcome = request.control.command_target(verb, name, target)
    elif link is not None:
        outcome = request.control.command_link(verb, name, link)
    else:
        outcome = await request.control.command(verb, name, request.get_field(parameters.TIMEOUT))
    return json_response(outcome.as_json())


async def reload(request: ApiRequest) -> web.StreamResponse:
    """Read the configuration file again."""
    return json_response((await request.control.reload()).as_json())


async def get_plan(request: ApiRequest) -> web.StreamResponse:
    """Answer what a reload would change."""
    return json_response((await request.control.plan()).as_json())


async def plan_candidate(request: ApiRequest) -> web.StreamResponse:
    """Answer what a candidate in place of the file would change."""
    return json_response((await request.control.plan(_candidate(request))).as_json())


async def apply_candidate(request: ApiRequest) -> web.StreamResponse:
    """Put a candidate in place of the file and apply it."""
    request.control.check_commands_allowed()
    return json_response((await request.control.apply_candidate(_candidate(request))).as_json())


def _candidate(request: ApiRequest) -> Candidate:
    content = request.get_field(parameters.CONTENT)
    if content is None:
        raise parameters.ParameterError("content is missing in the body: the text of the candidate")
    return Candidate(content.encode(errors="surrogatepass"), request.get_field(parameters.NAME)[:_MAX_CANDIDATE_NAME])


async def get_logs(request: ApiRequest) -> web.StreamResponse:
    """Answer or stream the last events of some tunnels."""
    control = request.control
    bus = control.bus
    min_level = request.get(parameters.LEVEL)
    names = request.get(parameters.TUNNELS)
    count = request.get(parameters.LOG_COUNT)
    present = {SUPERVISOR, *control.supervisor.names()}
    for name in names:
        if name not in present and not bus.has_events_of(name):
            raise UnknownTunnelError(name)

    def is_wanted(event: Event) -> bool:
        return event.level >= min_level and (not names or event.tunnel in names)

    if not request.get(parameters.FOLLOW_LOGS):
        return json_response({"lines": [event.as_json() for event in bus.last_events(count, is_wanted, names)]})
    context = request.context
    with stream.EventSubscription(bus, is_wanted, context.subscriptions) as subscription:
        history = bus.last_events(count, is_wanted, names)
        return await stream.follow_events(request.http, subscription, history, context.limits)


async def get_events(request: ApiRequest) -> web.StreamResponse:
    """Stream the last state changes, reloads and commands."""
    bus, context = request.control.bus, request.context
    count = request.get(parameters.EVENT_COUNT)
    if not request.get(parameters.FOLLOW_EVENTS):
        return await stream.replay_events(request.http, bus.last_history(count), context.limits)
    with stream.EventSubscription(
        bus, lambda event: event.kind in HISTORY_KINDS, context.subscriptions
    ) as subscription:
        return await stream.follow_events(request.http, subscription, bus.last_history(count), context.limits)


async def get_traffic(request: ApiRequest) -> web.StreamResponse:
    """Answer what tunnels carried; rendered in a thread."""
    step = request.get(parameters.STEP)
    days = request.get(parameters.DAYS) or DEFAULT_DAYS[step]
    names = request.get(parameters.TRAFFIC_TUNNELS)
    report = await request.control.traffic(step, days, names)
    text = await asyncio.to_thread(lambda: json_text(report.as_json()))
    return web.Response(text=text, content_type="application/json")


async def shut_down(request: ApiRequest) -> web.StreamResponse:
    """Begin the end of the daemon."""
    drain = request.get_field(parameters.DRAIN)
    return json_response(request.control.shutdown(drain=drain), HTTPStatus.ACCEPTED)


async def get_openapi(request: ApiRequest) -> web.StreamResponse:
    """Answer the OpenAPI document."""
    return json_response(request.context.describe_api())


async def get_liveness(_: ApiRequest) -> web.StreamResponse:
    """Answer the liveness probe."""
    return web.Response(text="ok\n")


async def get_readiness(request: ApiRequest) -> web.StreamResponse:
    """Answer the readiness probe: 503 until no tunnel is ``starting``, and while the daemon ends."""
    if request.control.supervisor.is_ready:
        return web.Response(text="ready\n")
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, "the tunnels are starting or draining")


async def get_metrics(request: ApiRequest) -> web.StreamResponse:
    """Answer the page of metrics; rendered in a thread."""
    control = request.control
    accept = request.http.headers.get("Accept", "")
    tasks = len(asyncio.all_tasks())
    await control.refresh(everything=True)
    history = control.history.status() if control.history is not None else None
    reading = metrics.DaemonReading(control.info(), tasks, history=history, access_log=control.access_log_status())
    async with request.context.metrics_turn:  # each page in work needs several times its size
        page, content_type = await asyncio.to_thread(
            metrics.render, reading, control.store.snapshots(), accept, request.context.process_metrics
        )
    return web.Response(body=page, headers={"Content-Type": content_type})
