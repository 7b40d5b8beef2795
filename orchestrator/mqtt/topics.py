"""The topics of a host on the broker: one row per topic. Pure.

Every topic is below ``nodepass-orch/v1/HOST/``. Names of tunnels are percent-encoded, so that each is one topic level.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from orchestrator.mqtt import payloads

if TYPE_CHECKING:
    from orchestrator.mqtt.payloads import Payload

ROOT: Final = "nodepass-orch/v1"

_NAME: Final = "NAME"  # stands for the variable level of a suffix
_WILDCARD: Final = "+"


@dataclass(frozen=True, slots=True)
class Message:
    """One publication on the broker."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False

    @property
    def is_event(self) -> bool:
        """Whether a newer message on the same topic does not replace this one."""
        return self.qos == 1 and not self.retain


class Direction(enum.Enum):
    """Which side publishes a topic."""

    FROM_HOST = "from host"
    TO_HOST = "to host"


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the topic table."""

    kind: str
    suffix: str
    """levels below the host; ``NAME`` is the variable one"""
    payload: type[Payload]
    description: str
    direction: Direction = Direction.FROM_HOST
    retain: bool = False
    qos: int = 1


STATUS: Final = Topic(
    "status", "status", payloads.StatusPayload, "whether the daemon is online; also the last will",
    retain=True,
)  # fmt: skip
INFO: Final = Topic(
    "info", "info", payloads.InfoPayload, "version, configuration and settings of the host", retain=True
)
STATE: Final = Topic(
    "state", "t/NAME/state", payloads.StatePayload,
    "the tunnel's whole object of ps --json: on change, and at least every 30 s; empty when the tunnel is removed",
    retain=True,
)  # fmt: skip
STATS: Final = Topic(
    "stats", "t/NAME/stats", payloads.StatsPayload, "the tunnel's counters: as they change, at most every 2 s", qos=0
)
EVENT: Final = Topic("event", "event", payloads.EventPayload, "one event of the host or of a tunnel")
COMMAND: Final = Topic(
    "cmd", "cmd", payloads.CommandPayload, "one command; must not be retained", direction=Direction.TO_HOST
)
RESPONSE: Final = Topic(
    "rsp", "rsp/NAME", payloads.ResponsePayload, "the result of a command; NAME is the command's reply, else its id"
)

TOPICS: Final = (STATUS, INFO, STATE, STATS, EVENT, COMMAND, RESPONSE)
_BY_LEVELS: Final = {tuple(row.suffix.split("/")): row for row in TOPICS}


@dataclass(frozen=True, slots=True)
class ParsedTopic:
    """What a topic of some host is about."""

    host: str
    kind: str
    """the ``kind`` of a row of TOPICS"""
    name: str = ""
    """the tunnel of ``state`` and ``stats``, the reply name of ``rsp``"""


def encode_name(name: str) -> str:
    """A name as one level of a topic, whatever characters it has."""
    return quote(name, safe="", errors="surrogatepass")


def parse(topic: str) -> ParsedTopic | None:
    """The meaning of a topic; None where it is not in the table."""
    host, *levels = topic.removeprefix(f"{ROOT}/").split("/")
    if not topic.startswith(f"{ROOT}/") or not host:
        return None
    if len(levels) == 1:
        row, name = _BY_LEVELS.get((levels[0],)), ""
    else:  # the second level is the variable one in every row that has one
        name = levels[1] if levels else ""
        row = _BY_LEVELS.get((levels[0], _NAME, *levels[2:])) if name else None
    return None if row is None else ParsedTopic(host, row.kind, unquote(name, errors="replace"))


class HostTopics:
    """The topics of one host; of every host where the host is ``+``."""

    def __init__(self, host: str) -> None:
        self.base = f"{ROOT}/{host}"

    def of(self, topic: Topic, name: str | None = None) -> str:
        """The full topic; without ``name`` it has a wildcard there, for a subscription."""
        return f"{self.base}/{topic.suffix.replace(_NAME, _WILDCARD if name is None else encode_name(name))}"

    def message(self, topic: Topic, payload: Payload, name: str = "") -> Message:
        """A publication of ``payload`` as the table says."""
        return Message(self.of(topic, name), payloads.encode(payload.as_json()), topic.qos, topic.retain)


EVERY_HOST: Final = HostTopics(_WILDCARD)


def render_reference() -> str:
    """The topic table for the documentation, in Markdown."""
    lines = ["| topic | direction | retained | QoS | payload | meaning |", "|---|---|---|---|---|---|"]
    for row in TOPICS:
        keys = ", ".join(f"`{key}`" for key in row.payload.json_keys())
        cells = (f"`{row.suffix}`", row.direction.value, "yes" if row.retain else "no", row.qos, keys, row.description)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
