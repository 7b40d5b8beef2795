"""The JSON Schema by which editors complete and check a file; derived from the registry of options and the models."""

from __future__ import annotations

from typing import Final, cast

from orchestrator.config.member_list import WEIGHT
from orchestrator.config.named_keys import MAX_NAMED_KEYS
from orchestrator.config.publish_rules import MAX_RULES, rule_schema
from orchestrator.config.schema_parts import BOOLEAN, MAX_NAME_LENGTH, VERSION, with_variable
from orchestrator.config.supervisor_settings import SupervisorSettings
from tunnel.model.option_types import ANY_SCALAR, JsonSchema
from tunnel.model.options import OPTIONS, Option, OptionPlace, names_for
from tunnel.model.servers import MAX_SERVERS
from tunnel.model.targets import MAX_TARGETS

_NULL: Final[JsonSchema] = {"type": "null"}
_NAME: Final[JsonSchema] = {**ANY_SCALAR, "minLength": 1, "maxLength": MAX_NAME_LENGTH}
_URL: Final[JsonSchema] = {
    "type": "string",
    "description": "server|client://[KEY@]TUNNEL_ADDR[,…]/TARGET_ADDR[,…][?name=value&…]",
    "anyOf": [
        {"pattern": "^([sS][eE][rR][vV][eE][rR]|[cC][lL][iI][eE][nN][tT])://.+/.+"},
        {"pattern": "^([sS][eE][rR][vV][eE][rR]|[cC][lL][iI][eE][nN][tT])://[^/]+/?$"},
        {"pattern": r"\$\{"},
    ],
}


def _member_list(description: str, maximum: int) -> JsonSchema:
    """Return the schema of a list of targets or servers."""
    return {
        "type": "array",
        "description": description,
        "minItems": 1,
        "maxItems": maximum,
        "items": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {
                        "address": {"type": "string", "description": "host:port"},
                        "weight": {
                            **with_variable(WEIGHT.json_schemas()),
                            "description": "its share of the visitors; 0: no new ones (default 1)",
                        },
                        "backup": {**BOOLEAN, "description": "used only while all others are down (default false)"},
                    },
                    "required": ["address"],
                    "additionalProperties": False,
                },
            ]
        },
    }


_TARGETS: Final = _member_list("the targets that are dialled, in place of the one of the URL", MAX_TARGETS)
_SERVERS: Final = _member_list("the servers of a client, in place of the tunnel address of the URL", MAX_SERVERS)


def json_schema() -> JsonSchema:
    """Return the JSON Schema (draft 2020-12) of the file, in which numbers and booleans are those of YAML."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nodepass-orch",
        "description": "A file of tunnels. A file named by include: contains only version, defaults and tunnels.",
        **_closed(
            {
                "version": with_variable(({"const": int(VERSION)}, {"const": VERSION})),
                "supervisor": {"anyOf": [_NULL, _reference("supervisor")]},
                "defaults": {"anyOf": [_NULL, _reference("defaults")]},
                "include": {"anyOf": [_NULL, ANY_SCALAR, {"type": "array", "items": ANY_SCALAR}]},
                "tunnels": _reference("tunnels"),
            }
        ),
        "required": ["version"],
        "$defs": {**_supervisor_definitions(), **_tunnel_definitions()},
    }


def _supervisor_definitions() -> JsonSchema:
    section = SupervisorSettings.model_json_schema(ref_template="#/$defs/{model}")
    definitions = section.pop("$defs")
    section["properties"]["api"] = {"anyOf": [ANY_SCALAR, _reference("ApiSettings"), _NULL]}
    return {**definitions, "supervisor": section}


def _tunnel_definitions() -> JsonSchema:
    entry: JsonSchema = {
        **_option_properties(OptionPlace.ENTRY),
        "url": _reference("url"),
        "enabled": BOOLEAN,
        "tags": {"type": ["array", "null"], "items": ANY_SCALAR},
        "targets": _TARGETS,
        "servers": _SERVERS,
        "publish": _publish_schema(),
        "keys": {
            "type": "object",
            "description": "the keys that a server accepts, each with the name of a client; instead of key",
            "propertyNames": {"minLength": 1, "maxLength": MAX_NAME_LENGTH},
            "additionalProperties": ANY_SCALAR,
            "minProperties": 1,
            "maxProperties": MAX_NAMED_KEYS,
        },
    }
    mapping = {
        "type": "object",
        "propertyNames": {"minLength": 1, "maxLength": MAX_NAME_LENGTH},
        "additionalProperties": {"anyOf": [_reference("url"), _reference("entry")]},
    }
    return {
        "url": _URL,
        "rule": rule_schema(),
        "defaults": _closed(_option_properties(OptionPlace.DEFAULTS)),
        "entry": {**_closed(entry), "required": ["url"]},
        "named": {**_closed({**entry, "name": _NAME}), "required": ["name", "url"]},
        "tunnels": {"anyOf": [_NULL, mapping, {"type": "array", "items": _reference("named")}]},
    }


def _publish_schema() -> JsonSchema:
    """Return the schema of the port that a client asks for, or of the rules of a server."""
    rules: JsonSchema = {"type": "array", "items": _reference("rule"), "minItems": 1, "maxItems": MAX_RULES}
    port = OPTIONS["publish"]
    schemas = with_variable(port.type.json_schemas())["anyOf"]
    return {
        "anyOf": [*cast("list[JsonSchema]", schemas), _reference("rule"), rules],
        "description": port.doc,
    }


def _option_properties(place: OptionPlace) -> JsonSchema:
    return {name: _option_schema(OPTIONS[name]) for name in names_for(place)}


def _option_schema(option: Option) -> JsonSchema:
    default = "" if option.is_secret or option.is_file or not option.default else f" (default {option.default})"
    return {**with_variable(option.type.json_schemas()), "description": f"{option.doc}{default}"}


def _closed(properties: JsonSchema) -> JsonSchema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _reference(name: str) -> JsonSchema:
    return {"$ref": f"#/$defs/{name}"}
