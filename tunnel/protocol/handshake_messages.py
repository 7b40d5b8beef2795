"""Payloads of the frames of the handshake: small JSON objects, the proof, the refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast

from tunnel.model.balancer import MAX_WEIGHT
from tunnel.model.errors import InvalidValueError
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.publishing import format_published_address, parse_published_address
from tunnel.model.spec import MAX_SERVICE_CHARS, Carrier, DataTls, Direction, Mode
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.payloads import Sentence

if TYPE_CHECKING:
    from tunnel.model.address import Address

NONCE_BYTES: Final = 32
LINK_ID_BYTES: Final = 8
MAX_VERSIONS: Final = 16
MAX_FEATURES: Final = 16
_MAX_FEATURE_CHARS: Final = 32
_MAX_FIELD_CHARS: Final = 80
_NONCE: Final = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}")
_LINK_ID: Final = re.compile(rf"[0-9a-f]{{{2 * LINK_ID_BYTES}}}")

_Fields = Mapping[str, object]
_Choice = TypeVar("_Choice", Mode, Direction, Carrier)


@dataclass(frozen=True, slots=True)
class Challenge:
    """The server's first frame."""

    versions: tuple[int, ...]
    """the versions of the protocol that the server speaks"""
    features: tuple[str, ...]
    """the optional parts of the protocol that the server has; a client ignores those that it does not know"""
    nonce: str

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _encode_json({"versions": self.versions, "features": self.features, "nonce": self.nonce})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        fields = _decode_json(payload)
        versions = _list(fields, "versions", MAX_VERSIONS)
        if not versions or not all(type(version) is int and version > 0 for version in versions):
            raise ProtocolError("a greeting without valid versions")
        return cls(cast("tuple[int, ...]", versions), _features(fields), _nonce(fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The client's answer to the challenge."""

    version: int
    """the version of the protocol that the client has chosen"""
    features: tuple[str, ...] = ()
    """the optional parts of the protocol that the client wants"""
    nonce: str
    service: str
    """the name of the service that the client wants"""
    instance: str
    """random id of this tunnel in the client's process: the same id again means that the client returns"""
    auth: str
    """``key`` or ``open``"""
    mode: Mode
    tls: DataTls
    bounds: ConfiguredLimits
    weight: int = 1
    """the client's share of the visitors among several clients of the server"""
    backup: bool = False
    """whether the client is to serve only while no other can"""
    publish: Address | None = None
    """where the client asks the server to accept visitors for the service; None: it asks for nothing"""

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _encode_json(
            {
                "version": self.version,
                "features": self.features,
                "nonce": self.nonce,
                "service": self.service,
                "instance": self.instance,
                "auth": self.auth,
                "mode": self.mode.value,
                "tls": self.tls.value,
                "weight": self.weight,
                "backup": self.backup,
                **_bounds_fields(self.bounds),
                **({} if self.publish is None else {"publish": format_published_address(self.publish)}),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        fields = _decode_json(payload)
        version = fields.get("version")
        if type(version) is not int:
            raise ProtocolError("a greeting without a valid version")
        return cls(
            version=version,
            features=_features(fields),
            nonce=_nonce(fields),
            service=_text(fields, "service", MAX_SERVICE_CHARS),
            instance=_text(fields, "instance"),
            auth=_text(fields, "auth"),
            mode=_choice(Mode, _text(fields, "mode")),
            tls=_data_tls(fields),
            bounds=_bounds(fields),
            weight=_weight(fields),
            backup=fields.get("backup", False) is True,
            publish=_publish(fields),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The server's decisions for the link."""

    features: tuple[str, ...] = ()
    """the optional parts of the protocol that both ends use on this link"""
    link: str
    """public random id of the link: 8 bytes in hexadecimal, which the prefaces of its data connections carry"""
    direction: Direction
    data_port: int | None
    """port of data connections; None: the tunnel port"""
    carrier: Carrier
    bounds: ConfiguredLimits

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _encode_json(
            {
                "features": self.features,
                "link": self.link,
                "direction": self.direction.value,
                "data_port": self.data_port,
                "carrier": self.carrier.value,
                **_bounds_fields(self.bounds),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        fields = _decode_json(payload)
        port = fields.get("data_port")
        if port is not None and not (type(port) is int and 0 < port < 65536):
            raise ProtocolError("an invalid data port")
        link = _text(fields, "link")
        if not _LINK_ID.fullmatch(link):
            raise ProtocolError("a greeting without a valid link")
        return cls(
            features=_features(fields),
            link=link,
            direction=_choice(Direction, _text(fields, "direction")),
            data_port=port,
            carrier=_choice(Carrier, _text(fields, "carrier")),
            bounds=_bounds(fields),
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """HMAC-SHA256 over the transcript."""

    digest: bytes

    def encode(self) -> bytes:
        """The payload as bytes."""
        return self.digest

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload."""
        return cls(payload)


class Refusal(Sentence):
    """The server refuses the client."""

    __slots__ = ()


# --- fields of the JSON objects --------------------------------------------------------------------------------------


def _encode_json(fields: _Fields) -> bytes:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def _decode_json(payload: bytes) -> _Fields:
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError):
        raise ProtocolError("a greeting that is not JSON") from None
    if not isinstance(fields, dict):
        raise ProtocolError("a greeting that is not an object")
    return fields


def _nonce(fields: _Fields) -> str:
    nonce = _text(fields, "nonce")
    if not _NONCE.fullmatch(nonce):
        raise ProtocolError("a greeting without a valid nonce")
    return nonce


def _text(fields: _Fields, name: str, max_chars: int = _MAX_FIELD_CHARS) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > max_chars or not value.isprintable():
        raise ProtocolError(f"a greeting without a valid {name}")
    return value


def _list(fields: _Fields, name: str, max_items: int) -> tuple[object, ...]:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > max_items:
        raise ProtocolError(f"a greeting without valid {name}")
    return tuple(value)


def _features(fields: _Fields) -> tuple[str, ...]:
    names = _list(fields, "features", MAX_FEATURES)
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_FEATURE_CHARS or not name.isprintable():
            raise ProtocolError("a greeting without valid features")
    return cast("tuple[str, ...]", names)


def _weight(fields: _Fields) -> int:
    weight = fields.get("weight", 1)
    if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
        raise ProtocolError("an invalid weight")
    return weight


def _publish(fields: _Fields) -> Address | None:
    if "publish" not in fields:
        return None
    try:
        return parse_published_address(_text(fields, "publish"))
    except InvalidValueError:
        raise ProtocolError("a greeting without a valid publish") from None


def _data_tls(fields: _Fields) -> DataTls:
    value = fields.get("tls")
    if type(value) is not int or value not in set(DataTls):
        raise ProtocolError("a greeting without a valid tls")
    return DataTls(value)


def _choice(enumeration: type[_Choice], text: str) -> _Choice:
    try:
        return enumeration(text)
    except ValueError:
        raise ProtocolError(f"a greeting with an unknown {enumeration.__name__.lower()}") from None


def _bounds_fields(bounds: ConfiguredLimits) -> dict[str, int | None]:
    return {"pool_min": bounds.pool_min, "pool_max": bounds.pool_max, "visitors": bounds.visitors}


def _bounds(fields: _Fields) -> ConfiguredLimits:
    return ConfiguredLimits(_bound(fields, "pool_min"), _bound(fields, "pool_max"), _bound(fields, "visitors"))


def _bound(fields: _Fields, name: str) -> int | None:
    value = fields.get(name)
    if value is None or (type(value) is int and 0 < value < 1 << 32):
        return value
    raise ProtocolError("a greeting with invalid bounds")
