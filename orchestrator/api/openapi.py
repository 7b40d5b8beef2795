"""The OpenAPI document, derived from the table of routes and from the types of the status contract."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypedDict

from orchestrator.status.json_types import (
    BrokerJson,
    ChangeJson,
    CommandResultJson,
    ConfigJson,
    DaemonJson,
    EntryResultJson,
    EventJson,
    FaultJson,
    PlanJson,
    ReloadJson,
    SettingJson,
    StatusJson,
    TunnelDetailsJson,
    TunnelJson,
    TunnelTestJson,
    VisitorJson,
)
from tunnel.model.spec import LogLevel, Proto
from tunnel.model.state import State
from tunnel.model.visitors import VISITOR_STATES

if TYPE_CHECKING:
    from orchestrator.api.parameters import Parameter, Schema
    from orchestrator.api.routes import Answer, Route


class ProblemJson(TypedDict):
    """An error (RFC 9457); ``detail`` is a sentence."""

    type: str
    title: str
    status: int
    detail: str


_PLAIN: Final[Mapping[object, Schema]] = {
    str: {"type": "string"},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    types.NoneType: {"type": "null"},
}
_DATE_TIMES: Final = frozenset({"ts", "since", "started_at", "loaded_at", "last_error_at"})
_STATE: Final = tuple(state.value for state in State)
_ENUMS: Final[Mapping[tuple[type, str], Sequence[str]]] = {
    (TunnelJson, "state"): _STATE,
    (TunnelDetailsJson, "state"): _STATE,
    (CommandResultJson, "state"): _STATE,
    (BrokerJson, "state"): ("off", "connecting", "online", "unreachable", "refused", "duplicate", "failed"),
    (VisitorJson, "state"): VISITOR_STATES,
    (VisitorJson, "proto"): tuple(proto.value for proto in Proto.BOTH.parts),
    (TunnelTestJson, "proto"): tuple(proto.value for proto in Proto),
    (EventJson, "level"): tuple(level.name.lower() for level in LogLevel),
    (EntryResultJson, "action"): ("added", "removed", "restarted", "changed", "unchanged", "rejected", "failed"),
}
"""Values of fields that the types know as text."""

_COMPLETE: Final = frozenset({TunnelJson, DaemonJson, StatusJson})
"""Types of which an answer has every field; only a change has some of them."""

_PARTIAL: Final[Mapping[tuple[type, str], Schema]] = {
    (ChangeJson, "changed"): {"type": "object", "additionalProperties": {"type": "object"}},
    (ChangeJson, "status"): {"type": "object"},
}
"""Fields that hold some fields of a complete type, each whole."""

_OPEN: Final = frozenset(
    {
        ConfigJson,
        EntryResultJson,
        EventJson,
        FaultJson,
        PlanJson,
        ReloadJson,
        SettingJson,
        StatusJson,
        TunnelDetailsJson,
    }
)
"""Types that get further fields, of a kind of event or of a later version."""

_EVENT_STREAM: Final[Schema] = {  # the schema of a single event: OpenAPI 3.1 cannot describe a stream of them
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}


def document(routes: Sequence[Route], version: str) -> Mapping[str, object]:
    """Return the document, OpenAPI version 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nodepass-orch",
            "version": version,
            "description": "The daemon's local API. The Unix socket requires no token.",
        },
        "security": [{}, {"token": []}],
        "paths": _paths(routes),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {schema_name(kind): object_schema(kind) for kind in answer_types(routes)},
        },
    }


def answer_types(routes: Iterable[Route]) -> list[type]:
    """Return the types of all JSON objects that the routes answer, with those inside of them, sorted by name."""
    found: set[type] = {ProblemJson}
    waiting = [kind for route in routes for kind in (route.answer.json, *route.answer.events.values()) if kind]
    while waiting:
        kind = waiting.pop()
        if typing.is_typeddict(kind) and kind not in found:
            found.add(kind)
            waiting += (inner for hint in typing.get_type_hints(kind).values() for inner in _inner_types(hint))
    return sorted(found, key=schema_name)


def _inner_types(hint: Any) -> Iterator[type]:  # noqa: ANN401  type hints have no common type
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _inner_types(argument)


def schema_name(kind: type) -> str:
    """Return the name of a type in the document."""
    return kind.__name__.removesuffix("Json")


def object_schema(kind: type) -> Schema:
    """Return the schema of a TypedDict."""
    properties = {name: _field_schema(kind, name, hint) for name, hint in typing.get_type_hints(kind).items()}
    return {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0].replace("``", "`"),
        "properties": properties,
        "required": sorted(_required_fields(kind)),
        "additionalProperties": kind in _OPEN,
    }


def _required_fields(kind: type) -> Iterable[str]:
    if kind in _COMPLETE:
        return typing.get_type_hints(kind)
    if kind is TunnelDetailsJson:
        return typing.get_type_hints(TunnelJson)
    return ("state",) if kind is BrokerJson else vars(kind)["__required_keys__"]


def _field_schema(kind: type, name: str, hint: Any) -> Schema:  # noqa: ANN401  as in _inner_types
    if (kind, name) in _PARTIAL:
        return _PARTIAL[kind, name]
    if (kind, name) in _ENUMS:
        return {"type": "string", "enum": list(_ENUMS[kind, name])}
    schema = _type_schema(hint)
    return {**schema, "format": "date-time"} if name in _DATE_TIMES else schema


def _type_schema(hint: Any) -> Schema:  # noqa: ANN401  as in _inner_types
    if hint in _PLAIN:
        return _PLAIN[hint]
    if typing.is_typeddict(hint):
        return {"$ref": f"#/components/schemas/{schema_name(hint)}"}
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _type_schema(arguments[0])}
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1])}
    if isinstance(hint, types.UnionType) and all(argument in _PLAIN for argument in arguments):
        joined = {key: value for argument in arguments for key, value in _PLAIN[argument].items()}
        return {**joined, "type": [_PLAIN[argument]["type"] for argument in arguments]}
    if isinstance(hint, types.UnionType):
        return {"anyOf": [_type_schema(argument) for argument in arguments]}
    return {"type": "object"}


# --- paths ------------------------------------------------------------------------------------------------------------


def _paths(routes: Iterable[Route]) -> Mapping[str, object]:
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        item = paths.setdefault(route.path, {})
        if names := re.findall(r"{(\w+)}", route.path):
            schema = {"type": "string", "minLength": 1}
            item["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
        item[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Route) -> Mapping[str, object]:
    errors = {str(int(status)): _problem(status) for status in sorted({*route.common_errors, *route.errors})}
    operation: dict[str, object] = {
        "summary": route.summary,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
        "responses": {str(int(route.answer.status)): _answer(route.answer), **errors},
    }
    if route.method == "POST":
        properties = {field.name: {**field.schema, "description": field.summary} for field in route.body}
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation


def _parameter(parameter: Parameter[Any]) -> Mapping[str, object]:
    return {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.summary,
        "schema": parameter.schema,
    }


def _answer(answer: Answer) -> Mapping[str, object]:
    content: dict[str, object] = {}
    if answer.json is not None:
        content["application/json"] = {"schema": _type_schema(answer.json)}
    if answer.events:
        content["text/event-stream"] = {"schema": _EVENT_STREAM}
    if answer.text:
        content["text/plain"] = {"schema": _PLAIN[str]}
    events = "; ".join(f"`{name}`: {schema_name(kind)}" for name, kind in answer.events.items())
    return {"description": f"{answer.summary} Events: {events}." if events else answer.summary, "content": content}


def _problem(status: HTTPStatus) -> Mapping[str, object]:
    schema = {"$ref": f"#/components/schemas/{schema_name(ProblemJson)}"}
    return {"description": f"{status.phrase}.", "content": {"application/problem+json": {"schema": schema}}}
