"""The file's shape: the supervisor's own settings, and the JSON Schema by which editors complete and check a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema, model_validator

from tunnel.model.address import Address, parse_address
from tunnel.model.errors import UrlError
from tunnel.model.options import OPTION_NAMES
from tunnel.model.settings import Settings
from tunnel.model.spec import LogLevel
from tunnel.model.times import format_duration, parse_duration

VERSION: Final = "1"
MAX_NAME_LENGTH: Final = 200

_MOST_WORKERS: Final = 256
_SWITCH: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
_TEXT: Final = {"type": ["string", "number", "boolean"]}
_DURATION_PATTERN: Final = r"^\s*(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)\s*$"
_DURATION: Final = {"anyOf": [{"const": 0}, {"type": "string", "pattern": _DURATION_PATTERN}, _VARIABLE]}


def _whole(lowest: int, highest: int) -> dict[str, Any]:
    text = {"type": "string", "pattern": r"^\s*\+?[0-9]{1,12}\s*$"}
    return {"anyOf": [{"type": "integer", "minimum": lowest, "maximum": highest}, text, _VARIABLE]}


def _words(*names: str | int) -> dict[str, Any]:
    spelled = "|".join("".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in str(n)) for n in names)
    return {"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": f"^({spelled})$"}, _VARIABLE]}


_SWITCH_SCHEMA: Final = {"anyOf": [{"type": "boolean"}, *_words(*_SWITCH)["anyOf"][1:]]}


# What follows takes what the document holds: texts (never numbers), rows and blocks.


def _text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("one text is expected here")


def parse_bool(value: object) -> bool:
    """True or false, as YAML has always let people write it. Raises ValueError."""
    word = value.lower() if isinstance(value, str) else ""
    if word not in _SWITCH:
        raise ValueError("write true or false")
    return _SWITCH[word]


def _duration(value: object) -> float:
    return parse_duration(_text(value).strip())


def _workers(value: object) -> int:
    text = _text(value).strip()
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= _MOST_WORKERS):
        raise ValueError(f"{text[:20]!r} is not a whole number from 0 to {_MOST_WORKERS}")
    return int(text)


def _address(value: object) -> Address:
    try:
        return parse_address(_text(value))
    except UrlError as error:
        raise ValueError(str(error)) from None


def _file(value: object, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    return base / Path(_text(value)).expanduser()


def _broker(value: object) -> str:
    text = _text(value)
    shape = "write mqtt://HOST[:PORT], or mqtts:// for TLS"
    try:
        parts = urlsplit(text)
        is_sound = parts.scheme in {"mqtt", "mqtts"} and parts.hostname and parts.port != 0
    except ValueError:
        is_sound, parts = False, urlsplit("")
    if not is_sound or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"this is not a broker's URL; {shape}")
    if "@" in parts.netloc:
        raise ValueError("a broker's URL holds no user or password here; write username: and password_file:")
    return text


def _host(value: object) -> str:
    text = _text(value)
    if len(text) > MAX_NAME_LENGTH or not text.isprintable() or set(text) & set("/+#"):
        raise ValueError(f"a host's name is a printable text without / + #, of at most {MAX_NAME_LENGTH} characters")
    return text


def parse_discovery_prefix(value: object) -> str:
    """Below what discovery is published: topic levels without wildcards, outside our own tree. Raises ValueError."""
    text = _text(value)
    levels = text.split("/")
    is_sound = all(levels) and text.isprintable() and not set(text) & set("+#") and not text.startswith("$")
    if not is_sound or levels[0] == "nodepass-orch" or len(text) > MAX_NAME_LENGTH:
        raise ValueError(
            "a prefix for discovery is a topic as homeassistant: no wildcards, and not below nodepass-orch/"
        )
    return text


_TextT = Annotated[str, BeforeValidator(_text), WithJsonSchema(_TEXT)]
_FileT = Annotated[Path, BeforeValidator(_file), WithJsonSchema(_TEXT)]
_AddressT = Annotated[Address, BeforeValidator(_address), WithJsonSchema({"type": "string"})]
_SwitchT = Annotated[bool, BeforeValidator(parse_bool), WithJsonSchema(_SWITCH_SCHEMA)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class ApiSettings(_Section):
    """Where the local API listens."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"listen": ["token_file"]}})

    socket: _FileT | None = None
    """Unix socket; None: the usual place for this file"""
    listen: _AddressT | None = None
    """TCP address besides, for bearers of the token"""
    token_file: _FileT | None = None

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.listen is not None and self.token_file is None:
            raise ValueError("listen: needs token_file: beside it, for on TCP nobody is let in without a token")
        return self


class MqttSettings(_Section):
    """The broker of the fleet."""

    url: Annotated[str, BeforeValidator(_broker), WithJsonSchema({"type": "string"})]
    host: Annotated[str, BeforeValidator(_host), WithJsonSchema(_TEXT)] | None = None
    username: _TextT | None = None
    password_file: _FileT | None = None
    ca: _FileT | None = None
    cert: _FileT | None = None
    cert_key: _FileT | None = None
    commands: _SwitchT = False
    discovery: _SwitchT = False
    """whether Home Assistant is told what to make of the topics"""
    discovery_prefix: Annotated[str, BeforeValidator(parse_discovery_prefix), WithJsonSchema(_TEXT)] = "homeassistant"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.cert_key is not None and self.cert is None:
            raise ValueError("cert_key: needs cert: beside it")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file: needs username: beside it")
        if self.cert is not None and self.url.startswith("mqtt:"):
            raise ValueError(f"cert: is for TLS, and {self.url} is not; write mqtts://")
        return self


def _socket_alone(value: object) -> object:
    return {"socket": value} if isinstance(value, str) else value


_API_SCHEMA: Final = {"anyOf": [_TEXT, {"$ref": "#/$defs/ApiSettings"}, {"type": "null"}]}


class SupervisorSettings(_Section):
    """The file's ``supervisor:`` section."""

    api: Annotated[ApiSettings, BeforeValidator(_socket_alone)] = ApiSettings()
    metrics: _AddressT | None = None
    drain_timeout: Annotated[float, BeforeValidator(_duration), WithJsonSchema(_DURATION)] | None = None
    """seconds that a drain lasts at the most; None: each tunnel's own SHUTDOWN_TIMEOUT"""
    workers: Annotated[int, BeforeValidator(_workers), WithJsonSchema(_whole(0, _MOST_WORKERS))] = 0
    mqtt: MqttSettings | None = None


_OPTION_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "log": _words(*(level.name.lower() for level in LogLevel)),
    "mode": _words("auto", "reverse", "forward", 0, 1, 2),
    "tls": _words(0, 1, 2),
    "data_port": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, *_words("random", "tunnel")["anyOf"]]},
}


def _option_schemas() -> dict[str, Any]:
    known = dict(_OPTION_SCHEMAS)
    known["data_port"]["anyOf"].append({"type": "string", "pattern": "^[0-9]{1,5}$"})
    for field in fields(Settings):
        if field.metadata:
            known[field.name] = (
                {**_DURATION, "description": f"duration; default {format_duration(float(str(field.default)))}"}
                if field.metadata.get("duration")
                else {
                    **_whole(field.metadata["lowest"], field.metadata["highest"]),
                    "description": f"default {field.default}",
                }
            )
    return {name: known.get(name, _TEXT) for name in OPTION_NAMES}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the file, as editors read it: YAML's numbers and booleans as such."""
    sections = SupervisorSettings.model_json_schema(ref_template="#/$defs/{model}")
    definitions = sections.pop("$defs")
    sections["properties"]["api"] = _API_SCHEMA
    definitions["supervisor"] = sections
    url = {
        "type": "string",
        "description": "server|client://[KEY@]TUNNEL_ADDR/TARGET_ADDR[?name=value&…]",
        "anyOf": [{"pattern": "^([sS][eE][rR][vV][eE][rR]|[cC][lL][iI][eE][nN][tT])://.+/.+"}, {"pattern": r"\$\{"}],
    }
    options = {**_option_schemas(), "key": _TEXT}
    name = {**_TEXT, "minLength": 1, "maxLength": MAX_NAME_LENGTH}
    entry = {
        **options,
        "url": {"$ref": "#/$defs/url"},
        "enabled": _SWITCH_SCHEMA,
        "tags": {"type": ["array", "null"], "items": _TEXT},
    }
    definitions |= {
        "url": url,
        "defaults": _closed(options),
        "entry": {**_closed(entry), "required": ["url"]},
        "named": {**_closed({**entry, "name": name}), "required": ["name", "url"]},
        "tunnels": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "propertyNames": {"minLength": 1, "maxLength": MAX_NAME_LENGTH},
                    "additionalProperties": {"anyOf": [{"$ref": "#/$defs/url"}, {"$ref": "#/$defs/entry"}]},
                },
                {"type": "array", "items": {"$ref": "#/$defs/named"}},
            ]
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nodepass-orch",
        "description": "A file of tunnels; a file named by include: holds version, defaults and tunnels only.",
        **_closed(
            {
                "version": {"anyOf": [{"const": int(VERSION)}, {"const": VERSION}, _VARIABLE]},
                "supervisor": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/supervisor"}]},
                "defaults": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/defaults"}]},
                "include": {"anyOf": [{"type": "null"}, _TEXT, {"type": "array", "items": _TEXT}]},
                "tunnels": {"$ref": "#/$defs/tunnels"},
            }
        ),
        "required": ["version"],
        "$defs": definitions,
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}
