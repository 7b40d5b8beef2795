"""The types of option values: how a value is parsed and printed, and its JSON Schema.

``parse`` takes what the user wrote: a text from a URL, the environment or the file, or a number from a program. It
raises InvalidValueError with one sentence that names the fault and the way out.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from tunnel.model.errors import InvalidValueError, did_you_mean
from tunnel.model.files import FileError, read_secret
from tunnel.model.keys import Key
from tunnel.model.spec import MAX_SERVICE_CHARS, Mux, UdpCarrier
from tunnel.model.targets import CHECK_OFF, CHECK_TCP, CheckKind, TargetCheck
from tunnel.model.times import format_duration, parse_duration

JsonSchema = dict[str, object]

ANY_SCALAR: Final[JsonSchema] = {"type": ["string", "number", "boolean"]}
"""A YAML scalar whose text is the value: ``key: 0123`` is the key 0123."""

_DURATION_PATTERN: Final = r"^\s*(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)\s*$"
DURATION_SCHEMAS: Final[tuple[JsonSchema, ...]] = ({"const": 0}, {"type": "string", "pattern": _DURATION_PATTERN})

_MAX_FILE_NAME_LENGTH: Final = 4096  # PATH_MAX of Linux
_NATURAL: Final = re.compile(r"[0-9]{1,12}")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,12}")
_HTTP_PATH: Final = re.compile(r"/[!-~]*")
_MAX_CHECK_PATH_LENGTH: Final = 512
_CHECKS: Final[Mapping[str, TargetCheck | None]] = {"auto": None, "tcp": CHECK_TCP, "off": CHECK_OFF}

T = TypeVar("T")


class OptionType(Protocol):
    """How the values of an option are written."""

    @property
    def values(self) -> str:
        """The permitted values, for the reference."""

    def parse(self, value: object, base: Path) -> Any:  # noqa: ANN401  each type has values of its own
        """Parse a value; relative file names start at ``base``. Raises InvalidValueError."""

    def format(self, value: Any) -> str:  # noqa: ANN401  as above
        """Return the text that ``parse`` turns into this value."""

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""


@dataclass(frozen=True, slots=True)
class IntegerType:
    """A whole number within bounds."""

    minimum: int
    maximum: int

    @property
    def values(self) -> str:
        """The permitted values, for the reference."""
        return f"{self.minimum} to {self.maximum}"

    def parse(self, value: object, _: Path) -> int:
        """Parse a whole number. Raises InvalidValueError."""
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise InvalidValueError("not a whole number")
        text = str(value).strip()
        if not _INTEGER.fullmatch(text):
            raise InvalidValueError("{} is not a whole number", repr(text[:40]))
        number = int(text)
        if not self.minimum <= number <= self.maximum:
            bounds = f"it must lie between {self.minimum} and {self.maximum}"
            raise InvalidValueError(f"{{}} is out of range; {bounds}", number)
        return number

    def format(self, value: int) -> str:
        """Return the number in decimal digits."""
        return str(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return integer_schemas(self.minimum, self.maximum)


@dataclass(frozen=True, slots=True)
class DurationType:
    """A duration as Go writes it, in seconds."""

    minimum_s: float = 0.001

    @property
    def values(self) -> str:
        """The permitted values, for the reference."""
        return f"a duration of at least {format_duration(self.minimum_s)}" if self.minimum_s else "a duration"

    def parse(self, value: object, _: Path) -> float:
        """Parse a duration. Raises InvalidValueError."""
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise InvalidValueError("not a duration, as in 500ms, 5s or 1m30s")
        if not isinstance(value, str) and value:
            raise InvalidValueError("a duration needs a unit: {}s?", value)
        seconds = parse_duration(str(value).strip())
        if seconds < self.minimum_s:
            raise InvalidValueError(f"{{}} is too short; the least is {format_duration(self.minimum_s)}", repr(value))
        return seconds

    def format(self, value: float) -> str:
        """Return the duration as Go prints it."""
        return format_duration(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return DURATION_SCHEMAS


@dataclass(frozen=True, slots=True)
class ChoiceType(Generic[T]):
    """One of a few words. Several words may have one value: the first of them is the one that is printed."""

    choices: Mapping[str, T]

    @property
    def values(self) -> str:
        """The permitted values, for the reference."""
        return ", ".join(f"`{word}`" for word in self.choices)

    def parse(self, value: object, _: Path) -> T:
        """Parse one of the words, in upper or lower case. Raises InvalidValueError."""
        text = _scalar_text(value)
        if text.lower() not in self.choices:
            known = f"{', '.join(self.choices)}{did_you_mean(text[:40], self.choices)}"
            raise InvalidValueError(f"{{}} is not one of {known}", repr(text[:40]))
        return self.choices[text.lower()]

    def format(self, value: T) -> str:
        """Return the first word with this value."""
        return next(word for word, other in self.choices.items() if other == value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return word_schemas(self.choices)


@dataclass(frozen=True, slots=True)
class DataPortType:
    """A port, or ``random`` (0), or ``tunnel`` (None): data connections use the tunnel port."""

    values: str = "`random`, `tunnel` or a port from 1 to 65535"

    def parse(self, value: object, _: Path) -> int | None:
        """Parse a port or one of the two words. Raises InvalidValueError."""
        text = _scalar_text(value).lower()
        if text == "random":
            return 0
        if text == "tunnel":
            return None
        if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535:
            return int(text)
        raise InvalidValueError("{} is not random, tunnel or a port from 1 to 65535", repr(text[:40]))

    def format(self, value: int | None) -> str:
        """Return the port, or the word for it."""
        return "tunnel" if value is None else str(value or "random")

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        port: JsonSchema = {"type": "integer", "minimum": 1, "maximum": 65535}
        return (port, *word_schemas(("random", "tunnel")), {"type": "string", "pattern": "^[0-9]{1,5}$"})


@dataclass(frozen=True, slots=True)
class FileType:
    """The name of a file, relative to the place where the option is written."""

    values: str = "a file name"

    def parse(self, value: object, base: Path) -> Path:
        """Parse a file name; ``~`` is a home directory. Raises InvalidValueError."""
        if not isinstance(value, str) or not value:
            raise InvalidValueError("a file name is missing")
        if len(value) > _MAX_FILE_NAME_LENGTH:
            raise InvalidValueError(f"a file name has at most {_MAX_FILE_NAME_LENGTH} characters")
        try:
            return base / Path(value).expanduser()
        except RuntimeError:
            raise InvalidValueError("there is no home directory {}", repr(value.split("/")[0][:40])) from None

    def format(self, value: Path | None) -> str:
        """Return the file name, or ``none``."""
        return "none" if value is None else str(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return (ANY_SCALAR,)


@dataclass(frozen=True, slots=True)
class KeyType:
    """A key, as a text."""

    values: str = "a text"

    def parse(self, value: object, _: Path) -> Key:
        """Parse a key. Raises InvalidValueError, whose message never contains the key."""
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value):
            raise InvalidValueError("the key is empty or not a text; quote it")
        return Key(str(value))

    def format(self, value: Key | None) -> str:
        """Return a mask, never the key."""
        return "none" if value is None else str(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return (ANY_SCALAR,)


@dataclass(frozen=True, slots=True)
class KeyFileType(KeyType):
    """A key, as the content of a file."""

    values: str = "the name of a file that contains the key"

    def parse(self, value: object, base: Path) -> Key:
        """Read the key from the file. Raises InvalidValueError."""
        path = FileType().parse(value, base)
        shown = repr(str(path))
        try:
            return Key(read_secret(path))
        except InvalidValueError as error:
            raise InvalidValueError(f"in {{}}: {error}", shown) from None
        except FileError as error:
            if error.errno in {errno.ENOENT, errno.ENODATA}:
                way_out = "copy the other end's key, or make one: (umask 077; nodepass-orch keygen > {})"
                message = f"cannot read {{}}: {error}; {way_out}"
                raise InvalidValueError(message, shown, path) from None
            raise InvalidValueError(f"cannot read {{}}: {error}", shown) from None


@dataclass(frozen=True, slots=True)
class ServiceType:
    """The name of a service."""

    values: str = f"up to {MAX_SERVICE_CHARS} printable characters without spaces"

    def parse(self, value: object, _: Path) -> str:
        """Parse the name of a service. Raises InvalidValueError."""
        text = value if isinstance(value, str) else _scalar_text(value)
        if len(text) > MAX_SERVICE_CHARS or not text.isprintable() or " " in text:
            raise InvalidValueError(f"{{}} is not the name of a service: {self.values}", repr(text[:40]))
        return text

    def format(self, value: str) -> str:
        """Return the name as a URL or a file has it."""
        return value

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        return ({**ANY_SCALAR, "maxLength": MAX_SERVICE_CHARS, "pattern": r"^\S*$"},)


@dataclass(frozen=True, slots=True)
class CheckType:
    """How the health of targets is checked, or None: as their number suggests."""

    values: str = "`auto`, `tcp`, `http:/PATH` or `off`"

    def parse(self, value: object, _: Path) -> TargetCheck | None:
        """Parse a word or an HTTP path. Raises InvalidValueError."""
        # YAML 1.1 reads ``off`` as a boolean
        text = "off" if value is False else _scalar_text(value)
        kind, colon, path = text.partition(":")
        if kind.lower() == CheckKind.HTTP and colon:
            if not _HTTP_PATH.fullmatch(path) or len(path) > _MAX_CHECK_PATH_LENGTH:
                hint = f"a path has up to {_MAX_CHECK_PATH_LENGTH} characters of ASCII and starts with a slash"
                raise InvalidValueError(f"{{}} is not http:/PATH; {hint}", repr(text[:40]))
            return TargetCheck(CheckKind.HTTP, path)
        if text.lower() not in _CHECKS:
            hint = did_you_mean(text[:40], _CHECKS)
            raise InvalidValueError(f"{{}} is not one of auto, tcp, http:/PATH, off{hint}", repr(text[:40]))
        return _CHECKS[text.lower()]

    def format(self, value: TargetCheck | None) -> str:
        """Return the check as a URL or a file has it."""
        return "auto" if value is None else str(value)

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        path: JsonSchema = {"type": "string", "pattern": "^[hH][tT][tT][pP]:/[!-~]*$"}
        return (*word_schemas(tuple(_CHECKS)), {"const": False}, path)


def parse_natural(text: str) -> int | None:
    """Return the number that a text of decimal digits means, None for any other text, also for a very long one.

    A bound on the number is then a bound on all of it: ``int`` of a prefix would be a bound on the prefix alone.
    """
    return int(text) if _NATURAL.fullmatch(text) else None


def integer_schemas(minimum: int, maximum: int) -> tuple[JsonSchema, ...]:
    """Return the schemas of a whole number, as YAML's number or as a text."""
    return (
        {"type": "integer", "minimum": minimum, "maximum": maximum},
        {"type": "string", "pattern": r"^\s*\+?[0-9]{1,12}\s*$"},
    )


def word_schemas(words: Mapping[str, object] | tuple[str, ...]) -> tuple[JsonSchema, ...]:
    """Return the schemas of one of these words: an enumeration for completion, and a pattern for other cases."""
    known = [int(word) if word.isdigit() else word for word in words]
    spelled = "|".join("".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in word) for word in words)
    return ({"enum": known}, {"type": "string", "pattern": f"^({spelled})$"})


def _scalar_text(value: object) -> str:
    """Return the text of a text or a whole number, and an empty text for any other value."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


UDP_CARRIERS: Final = ChoiceType({carrier.value: carrier for carrier in UdpCarrier})
"""The values of ``udp_carrier``."""
MUXES: Final = ChoiceType({mux.value: mux for mux in Mux})
"""The values of ``mux``."""
