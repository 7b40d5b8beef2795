"""The local API in its own words: an OpenAPI document, for people who generate clients and for tools that check us."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final

from orchestrator.api import queries
from orchestrator.supervisor.control import VERBS
from tunnel.model.snapshot import BytesView, Snapshot
from tunnel.model.spec import LogLevel
from tunnel.model.state import State

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
_MAYBE_WHOLE: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}
_FLAG: Final[Schema] = {"type": "boolean"}
_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}
_MAYBE_MOMENT: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
_STATE: Final[Schema] = {"type": "string", "enum": [state.value for state in State]}
_LEVEL: Final[Schema] = {"type": "string", "enum": [level.name.lower() for level in LogLevel]}
_ACTIONS: Final = ("added", "removed", "restarted", "changed", "unchanged", "rejected", "failed")
_BROKER_STATES: Final = ("off", "connecting", "online", "unreachable", "refused", "duplicate", "failed")
_PLAIN: Final[dict[object, Schema]] = {str: _TEXT, int: {"type": "integer"}, float: {"type": "number"}, bool: _FLAG}


@cache
def document(version: str) -> Schema:
    """The document, version 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nodepass-orch",
            "version": version,
            "description": "The daemon's local API. On the Unix socket no token is asked for.",
        },
        "security": [{}, {"token": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _paths() -> Schema:
    follow = _parameter("follow", _FLAG, "Keep the answer open as a stream of events.")
    lines = _parameter("n", {**_WHOLE, "maximum": queries.MOST_LINES}, "How many at the most.")
    level = _parameter("level", _LEVEL, "The least level.")
    names = _parameter("tunnel", {"type": "array", "items": _TEXT}, "Names; none: all.")
    interval = {"type": "number", "minimum": 0, "maximum": queries.LONGEST_INTERVAL}
    timeout = _object({"timeout": {"type": "number", "minimum": 0, "maximum": queries.LONGEST_TIMEOUT}}, required=())
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    answer = "Told; what it means is in ``text``."
    told = {"200": _json(answer, "Outcome"), **_problems(400, 403, 404, 409, 413)}
    paths: Schema = {
        "/v1/status": _get("The daemon and all its tunnels.", {"200": _json("The status.", "Status")}),
        "/v1/watch": _get(
            "The status, then what changes and what happens: events of the kinds status, change, event.",
            {"200": _stream("Kind status: a Status. Kind change: a Change. Kind event: an Event.")},
            _parameter("interval", interval, "Seconds between two changes; those of a reload come at once."),
        ),
        "/v1/tunnels/{name}": {
            "parameters": [name],
            **_get(
                "One tunnel with its settings and where they are written.",
                {"200": _json("The tunnel.", "Inspection"), **_problems(404)},
            ),
        },
    }
    for verb in VERBS:
        body = _EMPTY if verb in {"start", "retry"} else timeout
        paths[f"/v1/tunnels/{{name}}/{verb}"] = {"parameters": [name], **_post(f"{verb} a tunnel.", told, body)}
    results = {"200": _json("What became of it.", "Reload"), **_problems(400, 403, 409, 413)}
    paths |= {
        "/v1/reload": _post("Read the file again.", results, _EMPTY),
        "/v1/plan": _get("What a reload would change.", {"200": _json("The plan.", "Plan")}),
        "/v1/logs": _get(
            "The last events of tunnels.",
            {"200": _json_or_stream("The events.", "Lines"), **_problems(404)},
            *(names, lines, level, follow),
        ),
        "/v1/events": _get(
            "State changes, reloads and commands.", {"200": _stream("Kind event: an Event.")}, lines, follow
        ),
        "/v1/shutdown": _post(
            "End the daemon; ``drain: false`` cuts everybody off.",
            {"202": _json("It is ending.", "Ending"), **_problems(400, 403, 413)},
            _object({"drain": _FLAG}, required=()),
        ),
        "/openapi.json": _get("This document.", {"200": {"description": "It.", "content": _of({"type": "object"})}}),
        "/healthz": _get("Whether the daemon lives.", {"200": _page("It does.")}),
        "/readyz": _get(
            "Whether every tunnel that shall run was started.", {"200": _page("It was."), **_problems(503)}
        ),
        "/metrics": _get("Numbers for Prometheus.", {"200": _page("The numbers.")}),
    }
    return paths


def _schemas() -> Schema:
    broker = {
        "state": {"type": "string", "enum": list(_BROKER_STATES)},
        "reason": _MAYBE_TEXT,
        "since": _MOMENT,
        "broker": _TEXT,
        "host": _TEXT,
    }
    head = {
        "generation": _WHOLE,
        "pid": _WHOLE,
        "version": _TEXT,
        "host": _TEXT,
        "read_only": _FLAG,
        "started_at": _MOMENT,
        "config": _object(
            {
                "path": _TEXT,
                "ok": _FLAG,
                "error": _MAYBE_TEXT,
                "line": _MAYBE_WHOLE,
                "column": _MAYBE_WHOLE,
                "warnings": {"type": "array", "items": _TEXT},
                "loaded_at": _MOMENT,
            },
            closed=False,
        ),
        "mqtt": _object(broker, required=("state",)),
    }
    tunnel = _of_dataclass(Snapshot)
    fault = {"file": _MAYBE_TEXT, "line": _MAYBE_WHOLE, "column": _MAYBE_WHOLE, "message": _TEXT}
    error = {"anyOf": [_object(fault, closed=False), {"type": "null"}]}
    texts = {"type": "array", "items": _TEXT}
    result = {"action": {"type": "string", "enum": list(_ACTIONS)}, "detail": _MAYBE_TEXT, "changes": texts}
    step = _object({"name": _TEXT, "changes": texts})
    steps = {"type": "array", "items": step}
    setting = _object({"value": _MAYBE_TEXT, "source": _TEXT, "where": _MAYBE_TEXT}, closed=False)
    inspection = {"url": _TEXT, "where": _TEXT, "enabled": _FLAG, "settings": _map(setting)}
    event = {"ts": _MOMENT, "tunnel": _TEXT, "level": _LEVEL, "kind": _TEXT, "text": _TEXT}
    changed = {"ts": _MOMENT, "changed": _map({"type": "object"}), "removed": texts, "status": {"type": "object"}}
    return {
        "Status": _object({**head, "tunnels": {"type": "array", "items": _ref("Tunnel")}}, closed=False),
        "Tunnel": tunnel,
        "Inspection": _object({**tunnel["properties"], **inspection}, closed=False),
        "Change": _object(changed),
        "Event": _object(event, closed=False),
        "Lines": _object({"lines": {"type": "array", "items": _ref("Event")}}),
        "Outcome": _object({"name": _TEXT, "ok": _FLAG, "state": _STATE, "text": _TEXT}),
        "Reload": _object(
            {"generation": _WHOLE, "ok": _FLAG, "error": error, "results": _map(_object(result, closed=False))},
            closed=False,
        ),
        "Plan": _object(
            {
                "ok": _FLAG,
                "error": error,
                "add": texts,
                "remove": texts,
                "restart": steps,
                "change": steps,
                "unchanged": _WHOLE,
            },
            closed=False,
        ),
        "Ending": _object({"ok": _FLAG, "pid": _WHOLE, "active": _WHOLE}),
        "Problem": _object({"type": _TEXT, "title": _TEXT, "status": _WHOLE, "detail": _TEXT}),
    }


def _of_dataclass(kind: type) -> Schema:
    """The schema of what ``as_json`` makes of a snapshot, or of a part of one."""
    if kind is BytesView:
        return _object({"in": _WHOLE, "out": _WHOLE})
    hints = typing.get_type_hints(kind)
    properties = {field.name: _of_type(hints[field.name]) for field in fields(kind)}
    return _object({**properties, **({"since": _MOMENT, "last_error_at": _MAYBE_MOMENT} if kind is Snapshot else {})})


def _of_type(kind: Any) -> Schema:  # noqa: ANN401  types have no type of their own
    if kind is State:
        return _STATE
    if is_dataclass(kind) and isinstance(kind, type):
        return _of_dataclass(kind)
    if isinstance(kind, types.UnionType):
        (plain,) = (arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        return {"type": [_PLAIN[plain]["type"], "null"]}
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": _PLAIN[typing.get_args(kind)[0]]}
    return _PLAIN[kind]


def _object(properties: Schema, *, required: tuple[str, ...] | None = None, closed: bool = True) -> Schema:
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": not closed}


_EMPTY: Final[Schema] = {"type": "object", "additionalProperties": False}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _of(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _json(text: str, name: str) -> Schema:
    return {"description": text, "content": _of(_ref(name))}


_EVENTS: Final[Schema] = {  # the schema is that of a single event: OpenAPI 3.1 has no word for a stream of them
    "text/event-stream": {
        "schema": {"type": "object", "properties": {"event": _TEXT, "data": _TEXT}, "required": ["event", "data"]}
    }
}


def _stream(text: str) -> Schema:
    return {"description": text, "content": _EVENTS}


def _json_or_stream(text: str, name: str) -> Schema:
    return {"description": text, "content": {**_of(_ref(name)), **_EVENTS}}


def _page(text: str) -> Schema:
    return {"description": text, "content": {"text/plain": {"schema": _TEXT}}}


def _problems(*statuses: int) -> Schema:
    body = {"application/problem+json": {"schema": _ref("Problem")}}
    return {str(status): {"description": "In ``detail``, a sentence.", "content": body} for status in statuses}


def _parameter(name: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _get(summary: str, responses: Schema, *parameters: Schema) -> Schema:
    return {
        "get": {"summary": summary, "parameters": list(parameters), "responses": {**_problems(400, 401), **responses}}
    }


def _post(summary: str, responses: Schema, body: Schema) -> Schema:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"content": _of(body)},
            "responses": {**_problems(401), **responses},
        }
    }
