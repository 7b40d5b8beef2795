"""What ``ps --json``, the local API, the broker and the dashboard exchange about a daemon and its tunnels.

The object of one tunnel is ``Snapshot``. Everything here is derived from these dataclasses: ``encode`` writes them,
``decode_snapshot`` reads them. A reader ignores fields that it does not know, and a field that is
missing has the default of its dataclass, so that versions of the program can be mixed. Readers that keep the JSON
objects as they arrive find their types in ``json_types``.
"""

from __future__ import annotations

import enum
import itertools
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from orchestrator.errors import OrchestratorError
from tunnel.model.snapshot import Snapshot, encode_value

if TYPE_CHECKING:
    from orchestrator.status.json_types import DaemonJson, StatusJson, TunnelJson

Record = TypeVar("Record")

_MAX_NUMBER: Final = 1 << 64  # JSON sets no bound, but the arithmetic of readers has one

JSON_NAME: Final = "json"
"""Key of a dataclass field's metadata: its name in JSON, where that is not its own."""


class StatusFormatError(OrchestratorError):
    """A JSON object is not what this contract says; the message names the place and what is wrong there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigStatus:
    """The configuration file: the last attempt to read it, and its fault if it has one."""

    path: str
    ok: bool
    error: str | None = None
    line: int | None = None
    column: int | None = None
    warnings: tuple[str, ...] = ()
    loaded_at: str
    """when the configuration in force was read, RFC 3339"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerInfo:
    """The connection with the MQTT broker; ``off`` where the file names none, and then nothing else is known."""

    state: str = "off"
    reason: str | None = None
    since: str | None = None
    broker: str | None = None
    host: str | None = None
    """the name of this host on the broker"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonInfo:
    """A daemon without its tunnels."""

    generation: int
    pid: int
    config: ConfigStatus
    version: str
    host: str
    read_only: bool
    started_at: str
    mqtt: BrokerInfo = BrokerInfo()


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The whole object of ``ps --json``. In JSON, ``tunnels`` is added to the fields of ``info``."""

    info: DaemonInfo
    tunnels: tuple[Snapshot, ...]


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_status(status: DaemonStatus) -> StatusJson:
    """The object of ``ps --json``."""
    return cast("StatusJson", {**encode_info(status.info), "tunnels": [one.as_json() for one in status.tunnels]})


def encode_info(info: DaemonInfo, names: typing.Iterable[str] | None = None) -> DaemonJson:
    """The same without its tunnels, or of it only the fields of these names."""
    return cast("DaemonJson", {name: _plain(getattr(info, name)) for name in names or field_names(DaemonInfo)})


def encode_snapshot(snapshot: Snapshot, names: typing.Iterable[str] | None = None) -> TunnelJson:
    """The object of one tunnel, or of it only the fields of these names."""
    return cast("TunnelJson", snapshot.as_json(names))


def _plain(value: object) -> object:
    if isinstance(value, BrokerInfo) and value.state == "off":
        return {"state": "off"}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.metadata.get(JSON_NAME, field.name): _plain(getattr(value, field.name)) for field in fields(value)
        }
    return list(value) if isinstance(value, tuple) else value


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_snapshot(data: object) -> Snapshot:
    """The tunnel that ``encode_snapshot`` made. Raises StatusFormatError."""
    with _inside("tunnel"):
        return _decode(Snapshot, data)


def complete_snapshot(data: Mapping[str, object]) -> TunnelJson:
    """An object of ``encode_snapshot`` in which every field of this version is present, at any depth.

    Missing fields have their defaults; fields of a later version stay. Raises StatusFormatError.
    """
    return cast("TunnelJson", {**data, **decode_snapshot(data).as_json()})


def complete_changes(data: Mapping[str, object]) -> TunnelJson:
    """The same for some fields of ``encode_snapshot``: each that is given is complete. Raises StatusFormatError."""
    with _inside("tunnel"):
        given = _given(Snapshot, data)
    return cast("TunnelJson", {name: encode_value(value) for name, value in given.items()})


# --- quick checks -----------------------------------------------------------------------------------------------------


def share_values(data: Mapping[str, object]) -> TunnelJson | None:
    """Return the object of a tunnel with the keys and groups of numbers that the objects of other tunnels have.

    Without that, each object has fifty keys of its own from ``json.loads``, which are most of the memory of a fleet.
    Nothing may change the groups. The result is None unless the object is what ``encode_snapshot`` makes, with every
    field and no value to convert: ``complete_snapshot`` decodes all others, in four times as long.
    """
    return cast("TunnelJson | None", _snapshot_shape().share(data))


def are_valid_changes(data: Mapping[str, object]) -> bool:
    """Whether some fields of ``encode_snapshot`` need no conversion; otherwise ``complete_changes`` decides."""
    shape = _snapshot_shape()
    for name, value in data.items():
        group = shape.groups.get(name)
        if group is None or value is None:
            if type(value) not in shape.plain.get(name, ()):
                return False
        elif type(value) is not dict or not group.matches(value):
            return False
    return True


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the JSON objects of a dataclass have in common."""

    read: Callable[[Mapping[str, object]], tuple[object, ...]]
    """returns the values of all fields; raises KeyError where one is missing"""
    signatures: frozenset[tuple[type, ...]]
    """the types that these values may have together"""
    is_numeric: bool
    """whether all fields are numbers, or null"""
    plain: Mapping[str, tuple[type, ...]]
    """the types of which every value of a field is valid; None for a group that may be missing"""
    integers: tuple[str, ...]
    texts: tuple[tuple[str, frozenset[str]], ...]
    """fields with one of a few texts, and those"""
    lists: tuple[str, ...]
    """fields with a list of texts"""
    groups: Mapping[str, _Shape]
    """fields with an object; None matches where the signature allows it"""
    rows: Mapping[str, _Shape]
    """fields with a list of objects"""
    names: tuple[str, ...]
    numbers: dict[tuple[object, object], dict[str, object]]
    """objects that were shared, by the types and values of their fields"""

    def share(self, data: Mapping[str, object]) -> dict[str, object] | None:
        """An object of this shape with shared keys and groups; None where ``matches`` is false."""
        try:
            values: Any = self.read(data)
            kinds = tuple(map(type, values))
            # with the types, because 0 and 0.0 are equal
            known = self.numbers.get((values, kinds)) if self.is_numeric else None
        except (KeyError, TypeError):  # a field is missing, or has no number, but an array or an object
            return None
        if self.is_numeric:
            return self._share_numbers(data, values, kinds) if known is None or len(data) != len(known) else known
        if kinds not in self.signatures:
            return None
        groups: dict[str, object] = {}
        for name, group in self.groups.items():
            found: Any = data[name]
            if found is not None:
                shared = groups[name] = group.share(found)
                if shared is None:
                    return None
        if not self._fields_match(data):
            return None
        has_more_fields = len(data) != len(self.names)  # of a later version
        shared_data = {**data} if has_more_fields else dict(zip(self.names, values, strict=True))
        shared_data.update(groups)
        return shared_data

    def _share_numbers(self, data: Any, values: Any, kinds: object) -> dict[str, object] | None:  # noqa: ANN401  as below
        if kinds not in self.signatures or not _are_small(values):
            return None
        if len(data) != len(self.names):
            return dict(data)
        if len(self.numbers) >= _MAX_SHARED:
            self.numbers.clear()
        shared = self.numbers[values, kinds] = dict(zip(self.names, values, strict=True))
        return shared

    def matches(self, data: Mapping[str, object]) -> bool:
        """Whether an object has this shape exactly."""
        try:
            values: Any = self.read(data)
        except KeyError:
            return False
        if tuple(map(type, values)) not in self.signatures:
            return False
        if self.is_numeric:
            return _are_small(values)
        return self._fields_match(data) and self._groups_match(data)

    def _groups_match(self, data: Any) -> bool:  # noqa: ANN401  as below
        for name, group in self.groups.items():
            found = data[name]
            if found is not None and not group.matches(found):
                return False
        return True

    def _fields_match(self, data: Any) -> bool:  # noqa: ANN401  of the types of a signature
        for name in self.integers:
            value = data[name]
            if value is not None and not -_MAX_NUMBER < value < _MAX_NUMBER:
                return False
        for name, allowed in self.texts:
            if data[name] not in allowed:
                return False
        for name in self.lists:
            if not {*map(type, data[name])} <= _ONLY_TEXTS:
                return False
        for name, row in self.rows.items():
            found = data[name]
            if found and not all(type(one) is dict and row.matches(one) for one in found):
                return False
        return True


def _are_small(values: tuple[Any, ...]) -> bool:
    """Whether all numbers are small enough; None is no number, and zero is."""
    numbers = [*filter(None, values)]
    return not numbers or bool(min(numbers) > -_MAX_NUMBER and max(numbers) < _MAX_NUMBER)


_ONLY_TEXTS: Final = frozenset({str})
_MAX_SHARED: Final = 4096  # groups of each kind that are remembered: busy tunnels seldom repeat theirs


@cache
def _snapshot_shape() -> _Shape:
    return _shape_of(Snapshot)


def _shape_of(kind: type[Any]) -> _Shape:
    hints = typing.get_type_hints(kind)
    named = {field.metadata.get(JSON_NAME, field.name): hints[field.name] for field in fields(kind)}
    enums = {name: hint for name, hint in named.items() if isinstance(hint, type) and issubclass(hint, enum.Enum)}
    return _Shape(
        read=cast("Any", itemgetter(*named)),
        signatures=frozenset(itertools.product(*map(_json_types, named.values()))),
        is_numeric=set(named.values()) <= {int, float, int | None, float | None},
        plain={
            name: tuple(kind for kind in _json_types(hint) if kind is not dict)
            for name, hint in named.items()
            if hint in _PLAIN_HINTS or _group_type(hint) is not None
        },
        integers=tuple(name for name, hint in named.items() if hint in _INTEGER_HINTS),
        texts=tuple((name, frozenset(str(one.value) for one in hint)) for name, hint in enums.items()),
        lists=tuple(name for name, hint in named.items() if hint == tuple[str, ...]),
        groups={name: _shape_of(found) for name, hint in named.items() if (found := _group_type(hint)) is not None},
        rows={name: _shape_of(found) for name, hint in named.items() if (found := _row_type(hint)) is not None},
        names=tuple(named),
        numbers={},
    )


def _group_type(hint: Any) -> type[Any] | None:  # noqa: ANN401  types have no type of their own
    """Return the dataclass of a field that has one, or may have one."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((cast("type[Any]", kind) for kind in kinds if is_dataclass(kind)), None)


def _row_type(hint: Any) -> type[Any] | None:  # noqa: ANN401  types have no type of their own
    """Return the dataclass of a field that has several."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    return cast("type[Any]", arguments[0]) if arguments and is_dataclass(arguments[0]) else None


_INTEGER_HINTS: Final[tuple[object, ...]] = (int, int | None)
_PLAIN_HINTS: Final[tuple[object, ...]] = (str, float, bool, str | None, float | None, bool | None)


def _json_types(hint: Any) -> tuple[type, ...]:  # noqa: ANN401  types have no type of their own
    """The types that json.loads gives to values of a hinted type. None for one that ``_Shape`` cannot check."""
    if hint in _PLAIN_HINTS or hint in _INTEGER_HINTS:
        return typing.get_args(hint) or (hint,)
    if _group_type(hint) is not None:
        return (dict, types.NoneType) if isinstance(hint, types.UnionType) else (dict,)
    if typing.get_origin(hint) is tuple:
        return (list,)
    return (str,) if isinstance(hint, type) and issubclass(hint, enum.Enum) else ()


class _MismatchError(Exception):
    """A value that is not as it has to be: the place below the present one, then what is wrong there."""


@contextmanager
def _inside(place: str) -> Iterator[None]:
    try:
        yield
    except _MismatchError as error:
        raise StatusFormatError(f"{place}{error}") from None


@dataclass(frozen=True, slots=True)
class _FieldCodec:
    name: str
    json_name: str
    is_required: bool
    convert: Callable[[object], object]


def _decode(kind: type[Record], data: object) -> Record:
    given = _given(kind, data)
    for codec in _codecs(kind):
        if codec.is_required and codec.name not in given:
            raise _MismatchError(f".{codec.json_name} is missing")
    return kind(**given)


def _given(kind: type[Any], data: object) -> dict[str, Any]:
    found, given = _mapping(data), {}
    for codec in _codecs(kind):
        if codec.json_name in found:
            try:
                given[codec.name] = codec.convert(found[codec.json_name])
            except _MismatchError as error:
                raise _MismatchError(f".{codec.json_name}{error}") from None
    return given


@cache
def field_names(kind: Hashable) -> tuple[str, ...]:
    """The names of a dataclass's fields, in order."""
    return tuple(field.name for field in fields(cast("Any", kind)))


_CODECS: Final[dict[type[Any], tuple[_FieldCodec, ...]]] = {}


def _codecs(kind: type[Any]) -> tuple[_FieldCodec, ...]:
    if kind not in _CODECS:
        _CODECS[kind] = tuple(_make_codecs(kind))
    return _CODECS[kind]


def _make_codecs(kind: type[Any]) -> Iterator[_FieldCodec]:
    hints = typing.get_type_hints(kind)
    return (
        _FieldCodec(
            name=field.name,
            json_name=field.metadata.get(JSON_NAME, field.name),
            is_required=field.default is MISSING and field.default_factory is MISSING,
            convert=_converter(hints[field.name]),
        )
        for field in fields(kind)
    )


def _converter(hint: Any) -> Callable[[object], object]:  # noqa: ANN401  types have no type of their own
    """What turns a JSON value into one of the hinted type, or raises _MismatchError."""
    if isinstance(hint, types.UnionType):
        (plain,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        convert = _converter(plain)
        return lambda value: None if value is None else convert(value)
    if typing.get_origin(hint) is tuple:
        convert = _converter(typing.get_args(hint)[0])
        return lambda value: tuple(convert(one) for one in _listed(value))
    if is_dataclass(hint):
        return partial(_decode, cast("type[Any]", hint))
    return partial(_member if issubclass(hint, enum.Enum) else _scalar, hint)


def _scalar(kind: type[Any], value: object) -> object:
    if kind is float and type(value) is int and -_MAX_NUMBER < value < _MAX_NUMBER:
        return float(value)
    if type(value) is not kind:
        raise _MismatchError(f" is not of type {kind.__name__}: {value!r:.60}")
    if kind is int and not -_MAX_NUMBER < cast("int", value) < _MAX_NUMBER:
        raise _MismatchError(" is too large a number")
    return value


def _member(kind: type[enum.Enum], value: object) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        raise _MismatchError(f" is none of {', '.join(str(one.value) for one in kind)}: {value!r:.60}") from None


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _MismatchError(f" is no JSON object: {value!r:.60}")
    return value


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise _MismatchError(f" is no JSON array: {value!r:.60}")
    return value
