"""The types of the options that decide which visitors are accepted: lists of networks, and rates of visitors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunnel.model.errors import InvalidValueError
from tunnel.model.networks import NO_NETWORKS, NetworkSet, format_network, parse_network
from tunnel.model.option_types import JsonSchema
from tunnel.model.wording import plural

MAX_NETWORKS: Final = 100_000
"""Networks of one list."""
NONE: Final = "none"
"""The value of a list without networks: it replaces one from ``defaults``."""

_SEPARATORS: Final = re.compile(r"[,\s]+")
_SHOWN_NETWORKS: Final = 8
_NUMBER: Final = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class NetworksType:
    """A list of networks: with commas in a URL, as a YAML list or with commas in a file."""

    values: str = "networks and addresses, with commas or as a list, or `none`"

    def parse(self, value: object, _: Path) -> NetworkSet:
        """Parse a list of networks. Raises InvalidValueError."""
        if isinstance(value, NetworkSet):
            return value
        if not isinstance(value, str):
            raise InvalidValueError("not a list of networks, as in 192.0.2.0/24, 2001:db8::/32")
        if value.strip().lower() == NONE:
            return NO_NETWORKS
        texts = [text for text in _SEPARATORS.split(value) if text]
        if not texts:
            raise InvalidValueError("the list has no network; name one, or write none")
        if len(texts) > MAX_NETWORKS:
            raise InvalidValueError(f"the list has more than {MAX_NETWORKS} networks")
        return NetworkSet.of(map(parse_network, texts))

    def format(self, value: NetworkSet) -> str:
        """Return the networks in their order, with commas."""
        return ",".join(map(format_network, value.networks)) or NONE

    def shorten(self, value: NetworkSet) -> str:
        """Return a text for people: the number of networks instead of a long list."""
        return self.format(value) if len(value) <= _SHOWN_NETWORKS else plural(len(value), "network")

    def describe_change(self, old: NetworkSet, new: NetworkSet) -> str:
        """Return what changed between two lists."""
        if max(len(old), len(new)) <= _SHOWN_NETWORKS:
            return f"{self.format(old)} → {self.format(new)}"
        added, removed = (len(set(one.networks) - set(other.networks)) for one, other in ((new, old), (old, new)))
        return f"{plural(len(new), 'network')}, {added} added and {removed} removed"

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        item: JsonSchema = {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$|\$\{"}
        pattern = r"^\s*([0-9A-Fa-f:./]+[\s,]*)+$|^\s*[nN][oO][nN][eE]\s*$"
        return ({"type": "string", "pattern": pattern}, {"type": "array", "items": item, "minItems": 1})


@dataclass(frozen=True, slots=True)
class VisitorRateType:
    """A number of visitors per second, also a fraction of one; 0: no limit."""

    maximum: float = 1_000_000

    @property
    def values(self) -> str:
        """The permitted values, for the reference."""
        return f"0 to {self.maximum:.0f}, also with a fraction"

    def parse(self, value: object, _: Path) -> float:
        """Parse a number. Raises InvalidValueError."""
        text = "" if isinstance(value, bool) else str(value).strip() if isinstance(value, (int, float, str)) else ""
        if not _NUMBER.fullmatch(text):
            raise InvalidValueError("{} is not a number of visitors per second, as in 5 or 0.5", repr(text[:40]))
        if float(text) > self.maximum:
            raise InvalidValueError(f"{{}} is out of range; the most is {self.maximum:.0f}", text)
        return float(text)

    def format(self, value: float) -> str:
        """Return the number in decimal digits."""
        return f"{value:.6f}".rstrip("0").rstrip(".")

    def json_schemas(self) -> tuple[JsonSchema, ...]:
        """Return alternatives that describe the value in a YAML file."""
        pattern = r"^\s*[0-9]{1,7}(\.[0-9]{1,6})?\s*$"
        return ({"type": "number", "minimum": 0, "maximum": self.maximum}, {"type": "string", "pattern": pattern})
