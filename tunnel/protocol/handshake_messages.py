"""Payloads of the frames of the handshake: small JSON objects, the proof, the refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Carrier, Direction, Mode
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.payloads import Sentence

NONCE_BYTES: Final = 32
_MAX_FIELD_CHARS: Final = 80

_Fields = Mapping[str, object]
_Choice = TypeVar("_Choice", Mode, Direction, Carrier)


@dataclass(frozen=True, slots=True)
class Challenge:
    """The server's first frame."""

    version: int
    nonce: str

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _encode_json({"v": self.version, "nonce": self.nonce})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        fields = _decode_json(payload)
        version = fields.get("v")
        if type(version) is not int:
            raise ProtocolError("a greeting without a valid v")
        return cls(version, _nonce(fields))


@dataclass(frozen=True, slots=True)
class Hello:
    """The client's answer to the challenge."""

    nonce: str
    instance: str
    """random id of this tunnel in the client's process: the same id again means that the client returns"""
    auth: str
    """``key`` or ``open``"""
    mode: Mode
    carrier: Carrier
    bounds: ConfiguredLimits

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _encode_json(
            {
                "nonce": self.nonce,
                "instance": self.instance,
                "auth": self.auth,
                "mode": self.mode.value,
                "carrier": self.carrier.value,
                **_bounds_fields(self.bounds),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """The message in a payload. Raises ProtocolError."""
        fields = _decode_json(payload)
        return cls(
            nonce=_nonce(fields),
            instance=_text(fields, "instance"),
            auth=_text(fields, "auth"),
            mode=_choice(Mode, _text(fields, "mode")),
            carrier=_choice(Carrier, _text(fields, "carrier")),
            bounds=_bounds(fields),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's decisions for the link."""

    link: str
    """public random id of the link"""
    direction: Direction
    data_port: int | None
    """port of data connections; None: the tunnel port"""
    carrier: Carrier
    bounds: ConfiguredLimits

    def encode(self) -> bytes:
        """The payload as bytes."""
        return _encode_json(
            {
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
        return cls(
            link=_text(fields, "link"),
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
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


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
    if len(nonce) != 2 * NONCE_BYTES:
        raise ProtocolError("a nonce of the wrong length")
    return nonce


def _text(fields: _Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > _MAX_FIELD_CHARS or not value.isprintable():
        raise ProtocolError(f"a greeting without a valid {name}")
    return value


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
