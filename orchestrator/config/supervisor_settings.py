"""The ``supervisor:`` section of the file: the settings of the daemon.

The validators receive what the document contains: texts (never numbers), sequences and mappings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema, model_validator

from orchestrator.config.schema_parts import BOOLEAN, DURATION, MAX_NAME_LENGTH, integer, parse_bool, with_variable
from tunnel.model.address import Address, parse_address
from tunnel.model.errors import InvalidValueError
from tunnel.model.option_types import ANY_SCALAR, parse_natural
from tunnel.model.times import parse_duration

_MAX_WORKERS: Final = 256
_MAX_KEPT: Final = 1000
_MIN_SIZE: Final = 10_000
_MAX_SIZE: Final = 10**15
_LOG: Final = "log"
_SIZE_TEXT: Final = re.compile(r"([0-9]{1,15})\s*(|[kKmMgG]?[bB])")
_SIZE_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZE: Final = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}
_MAX_HISTORY_DAYS: Final = 3660
_HISTORY: Final = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[dh])")
_HISTORY_SCHEMA: Final = with_variable(({"const": 0}, {"type": "string", "pattern": r"^\s*(0|[0-9]{1,6}[dh])\s*$"}))


def _parse_text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("one text is expected here")


def _parse_duration(value: object) -> float:
    return parse_duration(_parse_text(value).strip())


def _parse_workers(value: object) -> int:
    text = _parse_text(value).strip()
    workers = parse_natural(text)
    if workers is None or workers > _MAX_WORKERS:
        raise InvalidValueError(f"{{}} is not a whole number from 0 to {_MAX_WORKERS}", repr(text[:20]))
    return workers


class HistoryLimit(NamedTuple):
    """How long traffic is kept, in hours; 0: it is not recorded."""

    hours: int

    def __str__(self) -> str:
        return "0" if not self.hours else f"{self.hours}h" if self.hours % 24 else f"{self.hours // 24}d"


DEFAULT_HISTORY: Final = HistoryLimit(400 * 24)


def _parse_history(value: object) -> HistoryLimit:
    text = _parse_text(value).strip()
    match = _HISTORY.fullmatch(text)
    hours = int(match["count"]) * (24 if match["unit"] == "d" else 1) if match else 0
    if text != "0" and not 1 <= hours <= _MAX_HISTORY_DAYS * 24:
        raise InvalidValueError(
            f"{{}} is not a time to keep traffic: 0, or a number of days from 1d to {_MAX_HISTORY_DAYS}d",
            repr(text[:20]),
        )
    return HistoryLimit(hours)


def _parse_keep(value: object) -> int:
    text = _parse_text(value).strip()
    kept = parse_natural(text)
    if kept is None or kept > _MAX_KEPT:
        raise InvalidValueError(f"{{}} is not a whole number from 0 to {_MAX_KEPT}", repr(text[:20]))
    return kept


def _parse_size(value: object) -> int:
    text = _parse_text(value).strip()
    found = _SIZE_TEXT.fullmatch(text)
    if found is None or not 0 <= (size := int(found[1]) * _SIZE_UNITS[found[2].lower()]) <= _MAX_SIZE:
        raise InvalidValueError("{} is not a size, as in 500kB, 64MB or 2GB", repr(text[:20]))
    if 0 < size < _MIN_SIZE:
        raise InvalidValueError("{} is too small; the least is 10kB, and 0 means no limit", repr(text[:20]))
    return size


def _parse_address(value: object) -> Address:
    return parse_address(_parse_text(value))


def _parse_file(value: object, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    text = _parse_text(value)
    try:
        return base / Path(text).expanduser()
    except RuntimeError:  # the user has no entry, and HOME is not set
        raise ValueError(f"there is no home directory {text.split('/')[0][:40]!r}") from None


def _parse_broker_url(value: object) -> str:
    text = _parse_text(value)
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in {"mqtt", "mqtts"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid, parts = False, urlsplit("")
    if not is_valid or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError("this is not the URL of a broker; write mqtt://HOST[:PORT], or mqtts:// for TLS")
    if "@" in parts.netloc:
        raise ValueError("the URL of a broker contains no user or password here; write username: and password_file:")
    return text


def _parse_host(value: object) -> str:
    text = _parse_text(value)
    if len(text) > MAX_NAME_LENGTH or not text.isprintable() or set(text) & set("/+#"):
        raise ValueError(f"a host name is a printable text without / + #, of at most {MAX_NAME_LENGTH} characters")
    return text


def parse_discovery_prefix(value: object) -> str:
    """Parse the topic prefix of Home Assistant's discovery. Raises ValueError.

    A prefix has topic levels without wildcards, and is outside this program's own topic tree.
    """
    text = _parse_text(value)
    levels = text.split("/")
    is_valid = all(levels) and text.isprintable() and not set(text) & set("+#") and not text.startswith("$")
    if not is_valid or levels[0] == "nodepass-orch" or len(text) > MAX_NAME_LENGTH:
        raise ValueError(
            "a discovery prefix is a topic such as homeassistant: no wildcards, and not below nodepass-orch/"
        )
    return text


_TextField = Annotated[str, BeforeValidator(_parse_text), WithJsonSchema(ANY_SCALAR)]
_FileField = Annotated[Path, BeforeValidator(_parse_file), WithJsonSchema(ANY_SCALAR)]
_AddressField = Annotated[Address, BeforeValidator(_parse_address), WithJsonSchema({"type": "string"})]
_BoolField = Annotated[bool, BeforeValidator(parse_bool), WithJsonSchema(BOOLEAN)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class ApiSettings(_Section):
    """Where the local API listens."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"listen": ["token_file"]}})

    socket: _FileField | None = None
    """Unix socket; None: the default path for this file"""
    listen: _AddressField | None = None
    """additional TCP address, for clients with the token"""
    token_file: _FileField | None = None

    @model_validator(mode="after")
    def _require_token(self) -> Self:
        if self.listen is not None and self.token_file is None:
            raise ValueError("listen: needs token_file:, because TCP clients have to present a token")
        return self


class MqttSettings(_Section):
    """The MQTT broker of the fleet."""

    url: Annotated[str, BeforeValidator(_parse_broker_url), WithJsonSchema({"type": "string"})]
    host: Annotated[str, BeforeValidator(_parse_host), WithJsonSchema(ANY_SCALAR)] | None = None
    username: _TextField | None = None
    password_file: _FileField | None = None
    ca: _FileField | None = None
    cert: _FileField | None = None
    cert_key: _FileField | None = None
    commands: _BoolField = False
    discovery: _BoolField = False
    """whether configurations for Home Assistant are published"""
    discovery_prefix: Annotated[str, BeforeValidator(parse_discovery_prefix), WithJsonSchema(ANY_SCALAR)] = (
        "homeassistant"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.cert_key is not None and self.cert is None:
            raise ValueError("cert_key: needs cert:")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file: needs username:")
        if self.cert is not None and self.url.startswith("mqtt:"):
            raise ValueError("cert: needs TLS, and the url has none; write mqtts://")
        return self


class AccessLogSettings(_Section):
    """Where visitors that have left are written."""

    file: _FileField | None = None
    """None: to the daemon's log"""
    max_size: Annotated[int, BeforeValidator(_parse_size), WithJsonSchema(_SIZE)] = 64_000_000
    """bytes of the file, 0: no limit; a larger one is renamed"""
    keep: Annotated[int, BeforeValidator(_parse_keep), WithJsonSchema(integer(0, _MAX_KEPT))] = 5
    """renamed files that are kept"""


def _expand_access_log(value: object) -> object:
    """Turn ``access_log: FILE`` into ``access_log: {file: FILE}``; ``log`` means the daemon's log."""
    if value == _LOG:
        return {}
    if isinstance(value, dict) and "file" not in value:
        raise ValueError("access_log: needs file:, or is the word log for the daemon's own log")
    return {"file": value} if isinstance(value, str) else value


def _expand_socket(value: object) -> object:
    """Turn ``api: FILE`` into ``api: {socket: FILE}``."""
    return {"socket": value} if isinstance(value, str) else value


class SupervisorSettings(_Section):
    """The file's ``supervisor:`` section."""

    api: Annotated[ApiSettings, BeforeValidator(_expand_socket)] = ApiSettings()
    metrics: _AddressField | None = None
    drain_timeout: Annotated[float, BeforeValidator(_parse_duration), WithJsonSchema(DURATION)] | None = None
    """the longest drain in seconds; None: each tunnel's own SHUTDOWN_TIMEOUT"""
    workers: Annotated[int, BeforeValidator(_parse_workers), WithJsonSchema(integer(0, _MAX_WORKERS))] = 0
    history: Annotated[HistoryLimit, BeforeValidator(_parse_history), WithJsonSchema(_HISTORY_SCHEMA)] = DEFAULT_HISTORY
    """how long the traffic of each tunnel and hour is kept; 0: it is not recorded"""
    access_log: Annotated[AccessLogSettings, BeforeValidator(_expand_access_log)] | None = None
    """None: no access log"""
    mqtt: MqttSettings | None = None
