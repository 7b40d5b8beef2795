"""The routes of the local API as one table: the router, the OpenAPI document and the reference page come from it.

To add a route: its handler in ``handlers``, a row here, the type of its answer in ``orchestrator.status.json_types``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from orchestrator.api import handlers, parameters
from orchestrator.api.handlers import ApiRequest
from orchestrator.api.parameters import BodyField, Parameter
from orchestrator.status.json_types import (
    ChangeJson,
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
    TunnelsJson,
    TunnelTestJson,
    VisitorsJson,
)
from orchestrator.tunnel_commands import TUNNEL_COMMANDS, TunnelCommand

Handler = Callable[[ApiRequest], Awaitable[web.StreamResponse]]

_WATCH_EVENTS: Final[Mapping[str, type]] = {"status": StatusJson, "change": ChangeJson, "event": EventJson}
_FORBIDDEN, _NOT_FOUND, _CONFLICT = HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT


_MAX_BODY_BYTES: Final = 64 << 10
_MAX_CANDIDATE_BYTES: Final = 8 << 20  # of JSON: a file of 4 MiB, each character of which may need an escape of two


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answers if the request is in order."""

    summary: str
    json: type | None = None
    """type of the JSON object"""
    events: Mapping[str, type] = field(default_factory=dict)
    """types of the data of server-sent events, by the event's name"""
    text: bool = False
    """plain text"""
    status: HTTPStatus = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class Route:
    """One row: a method and a path, what the request may carry, and what the answer is."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: Answer
    parameters: tuple[Parameter[Any], ...] = ()
    body: tuple[BodyField[Any], ...] = ()
    errors: tuple[HTTPStatus, ...] = ()
    """besides those that every route of its method may answer (``common_errors``)"""
    max_body_bytes: int = _MAX_BODY_BYTES
    is_monitoring: bool = False
    """also on the address for metrics, without a token; answers HEAD and ignores unknown parameters"""

    @property
    def common_errors(self) -> tuple[HTTPStatus, ...]:
        """Statuses that do not depend on the handler: malformed, without token, overload, late or large body."""
        common = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.SERVICE_UNAVAILABLE)
        of_body = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return (*common, *of_body) if self.method == "POST" else common


def _tunnel_command_route(command: TunnelCommand) -> Route:
    return Route(
        "POST", f"/v1/tunnels/{{name}}/{command.name}", partial(handlers.send_command, verb=command.name),
        f"{command.summary} Answers before the command is completed.",
        Answer("The command is accepted; `text` describes its effect.", CommandResultJson),
        body=(
            *((parameters.TIMEOUT,) if command.takes_timeout else ()),
            *((parameters.TARGET,) if command.takes_target else ()),
            *((parameters.LINK,) if command.takes_link else ()),
        ), errors=(_FORBIDDEN, _NOT_FOUND, _CONFLICT),
    )  # fmt: skip


ROUTES: Final = (
    Route(
        "GET", "/v1/status", handlers.get_status, "The daemon and all its tunnels.",
        Answer("The status.", StatusJson),
    ),
    Route(
        "GET", "/v1/watch", handlers.watch_status, "The status, then its changes and events, until the daemon ends.",
        Answer("One `status`, then `change` and `event` as they happen.", events=_WATCH_EVENTS),
        parameters=(parameters.INTERVAL,),
    ),
    Route(
        "GET", "/v1/tunnels", handlers.list_tunnels, "All tunnels, in the order of the file.",
        Answer("The tunnels, as in the status.", TunnelsJson),
    ),
    Route(
        "GET", "/v1/tunnels/{name}", handlers.get_tunnel, "One tunnel with its settings and their places in the file.",
        Answer("The tunnel.", TunnelDetailsJson), errors=(_NOT_FOUND,),
    ),
    Route(
        "GET", "/v1/tunnels/{name}/visitors", handlers.list_visitors,
        "The visitors of one tunnel, in no order; the answer is sent while it is made.",
        Answer("The visitors.", VisitorsJson), parameters=(parameters.RATES,), errors=(_NOT_FOUND,),
    ),
    Route(
        "GET", "/v1/visitors", handlers.list_visitors, "The visitors of all tunnels, or of some.",
        Answer("The visitors, tunnel by tunnel.", VisitorsJson),
        parameters=(parameters.VISITORS_OF, parameters.RATES), errors=(_NOT_FOUND,),
    ),
    Route(
        "DELETE", "/v1/tunnels/{name}/visitors/{id}", handlers.kick_visitor, "Disconnect one visitor at once.",
        Answer("The visitor as it was.", KickJson), errors=(_FORBIDDEN, _NOT_FOUND),
    ),
    Route(
        "POST", "/v1/kick", handlers.kick_visitors, "Disconnect visitors at once, by ID, address or network.",
        Answer("The visitors as they were; none if none was meant.", KickJson),
        body=(parameters.VISITORS, parameters.KICK_TUNNELS), errors=(_FORBIDDEN, _NOT_FOUND),
    ),
    Route(
        "POST", "/v1/tunnels/{name}/test", handlers.test_tunnel,
        "Time each leg of a visitor's way, without a visitor; this takes as long as the target needs.",
        Answer("The legs.", TunnelTestJson), errors=(_FORBIDDEN, _NOT_FOUND, _CONFLICT),
    ),
    *map(_tunnel_command_route, TUNNEL_COMMANDS.values()),
    Route(
        "POST", "/v1/reload", handlers.reload, "Read the file again.", Answer("The result of each entry.", ReloadJson),
        errors=(_FORBIDDEN, _CONFLICT),
    ),
    Route("GET", "/v1/plan", handlers.get_plan, "What a reload would change.", Answer("The plan.", PlanJson)),
    Route(
        "POST", "/v1/plan", handlers.plan_candidate, "What a candidate in place of the running file would change.",
        Answer("The plan.", PlanJson),
        body=(parameters.CONTENT, parameters.NAME), max_body_bytes=_MAX_CANDIDATE_BYTES,
    ),
    Route(
        "POST", "/v1/apply", handlers.apply_candidate,
        "Write a candidate in place of the running file and apply it; an invalid one changes nothing.",
        Answer("The result of each entry.", ReloadJson),
        body=(parameters.CONTENT, parameters.NAME), errors=(_FORBIDDEN, _CONFLICT), max_body_bytes=_MAX_CANDIDATE_BYTES,
    ),
    Route(
        "GET", "/v1/logs", handlers.get_logs, "The last events of tunnels.",
        Answer("The events; with `follow` as a stream.", EventsJson, {"event": EventJson}),
        parameters=(parameters.TUNNELS, parameters.LOG_COUNT, parameters.LEVEL, parameters.FOLLOW_LOGS),
        errors=(_NOT_FOUND,),
    ),
    Route(
        "GET", "/v1/events", handlers.get_events, "State changes, reloads and commands.",
        Answer("The events.", events={"event": EventJson}),
        parameters=(parameters.EVENT_COUNT, parameters.FOLLOW_EVENTS),
    ),
    Route(
        "GET", "/v1/traffic", handlers.get_traffic, "What tunnels carried, by hour, day or month.",
        Answer("The traffic of each tunnel; a period without traffic has no row.", TrafficJson),
        parameters=(parameters.TRAFFIC_TUNNELS, parameters.STEP, parameters.DAYS), errors=(_NOT_FOUND,),
    ),
    Route(
        "POST", "/v1/shutdown", handlers.shut_down, "Drain all tunnels and end the daemon.",
        Answer("The daemon is shutting down.", ShutdownJson, status=HTTPStatus.ACCEPTED),
        body=(parameters.DRAIN,), errors=(_FORBIDDEN,),
    ),
    Route("GET", "/openapi.json", handlers.get_openapi, "This document.", Answer("The OpenAPI document.", dict)),
    Route(
        "GET", "/healthz", handlers.get_liveness, "Liveness probe.", Answer("The daemon is alive.", text=True),
        is_monitoring=True,
    ),
    Route(
        "GET", "/readyz", handlers.get_readiness, "Readiness probe: every tunnel has left the state `starting`.",

        Answer("The tunnels are started.", text=True), errors=(HTTPStatus.SERVICE_UNAVAILABLE,), is_monitoring=True,
    ),
    Route(
        "GET", "/metrics", handlers.get_metrics, "Prometheus metrics.", Answer("The metrics.", text=True),
        is_monitoring=True,
    ),
)  # fmt: skip
