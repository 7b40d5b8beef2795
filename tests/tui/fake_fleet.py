"""A broker with hosts that is none: a reader that says what a test tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.fleet import ONLINE, Fleet
from orchestrator.mqtt.payloads import DaemonRun, ResponsePayload, StatePayload, StatsPayload, StatusPayload
from orchestrator.mqtt.reader import NoAnswerError
from orchestrator.mqtt.topics import ParsedTopic
from tests.tui.fake import Json, tunnel
from tui.fleet import FleetSource
from tunnel.model.times import format_timestamp

BROKER = Broker.from_url("mqtt://me:secret@broker:1883")


class FakeReader:
    """Takes the place of the one that reads a broker; keeps what it was told in ``commands``."""

    def __init__(
        self, broker: Broker, *, on_message: Callable[[ParsedTopic], None], on_event: Callable[[str, Json], None]
    ) -> None:
        self.fleet = Fleet()
        self.connection_error: str | None = "not connected yet"
        self.commands: list[tuple[str, str, str | None]] = []
        self.heard: frozenset[str] = frozenset()
        """topics that it was asked to hear besides"""
        self.refusal: str | None = None
        self.boots: dict[str, str] = {}
        self._on_message = on_message
        self._on_event = on_event

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def set_extra_topics(self, topics: frozenset[str]) -> None:
        self.heard = topics

    async def send_command(self, host: str, op: str, target: str | None) -> ResponsePayload:
        known = self.fleet.hosts.get(host)
        if known is None or known.presence(time.monotonic()) != ONLINE:
            raise NoAnswerError(f"host {host!r} is gone: it cannot execute commands")
        if self.refusal:
            return ResponsePayload.failed(None, self.refusal)
        self.commands.append((host, op, target))
        if op == "reload":
            return ResponsePayload(None, {"ok": True, "generation": 7, "results": {}})
        return ResponsePayload(None, {"name": target, "ok": True, "state": "up", "text": f"is {op}ed"})

    # -- what tests do -----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """The broker is there, and everything retained has been read."""
        self.connection_error = None

    def lose(self, why: str) -> None:
        """The broker is gone; when it returns, everything is read anew."""
        self.connection_error = why

    def birth(self, host: str, boot: str = "boot-1", **info: object) -> None:
        """A daemon comes up."""
        self.boots[host] = boot
        self._say_status(host, online=True)
        told = {"name": host, "version": "0.1.0", "config_ok": True, "config_error": None, "generation": 3,
                "commands": True, **info}  # fmt: skip
        self.say(host, "info", {"v": 1, **told})

    def farewell(self, host: str) -> None:
        """It ends, or the broker says so for it."""
        self._say_status(host, online=False)

    def state(self, host: str, name: str, state: str = "up", *, ts: float | None = None, **keys: Any) -> None:  # noqa: ANN401  as there
        """A tunnel, as its host tells of it."""
        told = {**tunnel(name, state, **keys), "link": keys.get("link")}
        payload = StatePayload(told, self.boots[host], 1, format_timestamp(ts or time.time()))
        self.say(host, "state", payload.as_json(), name)

    def stats(self, host: str, name: str, *, ts: float | None = None, **keys: Any) -> None:  # noqa: ANN401  as there
        """Its numbers alone."""
        payload = StatsPayload(tunnel(name, **keys), self.boots[host], format_timestamp(ts or time.time()))
        self.say(host, "stats", payload.as_json(), name)

    def clear(self, host: str, name: str) -> None:
        """A tunnel that was removed."""
        self._take(ParsedTopic(host, "state", name), b"")

    def happen(self, host: str, text: str, name: str = "", kind: str = "state", **more: object) -> None:
        """An event."""
        event = {
            "v": 1,
            "ts": format_timestamp(time.time()),
            "tunnel": name,
            "level": "info",
            "kind": kind,
            "text": text,
        }
        self._on_event(host, {**event, **more})

    def _say_status(self, host: str, *, online: bool) -> None:
        run = DaemonRun("instance", self.boots[host])
        self.say(host, "status", StatusPayload.of_run(run, format_timestamp(time.time()), online=online).as_json())

    def say(self, host: str, kind: str, payload: Json, name: str = "") -> None:
        """Any word."""
        self._take(ParsedTopic(host, kind, name), payloads.encode(payload))

    def _take(self, spot: ParsedTopic, data: bytes) -> None:
        if self.fleet.apply_message(spot, data, time.monotonic(), time.time(), is_retained=False):
            self._on_message(spot)


def two_hosts(reader: FakeReader) -> None:
    """A pair across edge-1 and home, and on each host something that is alone."""
    ends: dict[str, Any] = {"link": "1f0c0d2e", "tags": ["prod"]}
    reader.birth("edge-1")
    reader.birth("home")
    reader.state("edge-1", "web", **ends, target_addr="0.0.0.0:80")
    reader.state("home", "web", role="client", **ends, target_addr="127.0.0.1:3000", peer="192.0.2.1:10101")
    reader.state("edge-1", "db", "waiting", reason=None, peer=None)
    reader.state("home", "lone", link="77aa", role="client", peer="198.51.100.7:10101")
    reader.connect()


def fleet_of(
    fill: Callable[[FakeReader], None] | None = two_hosts,
    **clocks: Callable[[], float],
) -> tuple[FakeReader, FleetSource]:
    """A source on a fake reader; and that reader."""
    made: list[FakeReader] = []

    def make(broker: Broker, **hooks: Any) -> FakeReader:  # noqa: ANN401  the reader's own
        made.append(FakeReader(broker, **hooks))
        return made[0]

    source = FleetSource(BROKER, make, **clocks)
    if fill:
        fill(made[0])
    return made[0], source
