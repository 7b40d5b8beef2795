"""A fake reader of a broker: it delivers the messages of hosts that a test sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.fleet import ONLINE, Fleet
from orchestrator.mqtt.payloads import DaemonRun, ResponsePayload, StatePayload, StatsPayload, StatusPayload
from orchestrator.mqtt.reader import NoAnswerError
from orchestrator.mqtt.topics import ParsedTopic
from tests.tui.fake import Json, tunnel
from tui.sources.fleet import FleetSource
from tunnel.model.times import format_timestamp

BROKER = Broker.from_url("mqtt://me:secret@broker:1883")


class FakeReader:
    """Replaces the broker's reader; records the commands that it receives."""

    def __init__(
        self, broker: Broker, *, on_message: Callable[[ParsedTopic], None], on_event: Callable[[str, Json], None]
    ) -> None:
        self.fleet = Fleet()
        self.connection_error: str | None = "not connected yet"
        self.commands: list[tuple[str, str, str | None]] = []
        self.members: list[dict[str, str]] = []
        """the link or target that each of them names"""
        self.subscribed: frozenset[str] = frozenset()
        """the additional topics"""
        self.refusal: str | None = None
        """why hosts refuse commands"""
        self.boots: dict[str, str] = {}
        self._on_message = on_message
        self._on_event = on_event

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def set_extra_topics(self, topics: frozenset[str]) -> None:
        self.subscribed = topics

    async def send_command(
        self, host: str, op: str, target: str | None, *, member: Mapping[str, str] | None = None
    ) -> ResponsePayload:
        known = self.fleet.hosts.get(host)
        if known is None or known.presence(time.monotonic()) != ONLINE:
            raise NoAnswerError(f"host {host!r} is gone: it cannot execute commands")
        if self.refusal:
            return ResponsePayload.failed(None, self.refusal)
        self.commands.append((host, op, target))
        self.members.append(dict(member or {}))
        if op == "reload":
            return ResponsePayload(None, {"ok": True, "generation": 7, "results": {}})
        return ResponsePayload(None, {"name": target, "ok": True, "state": "up", "text": f"is {op}ed"})

    # -- for tests ---------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the broker, with all retained messages read."""
        self.connection_error = None

    def disconnect(self, why: str) -> None:
        """Lose the broker; after a reconnect everything is read again."""
        self.connection_error = why

    def start_host(self, host: str, boot: str = "boot-1", **info: object) -> None:
        """Publish that a daemon is online, and its information."""
        self.boots[host] = boot
        self._publish_status(host, online=True)
        about = {"name": host, "version": "0.1.0", "config_ok": True, "config_error": None, "generation": 3,
                 "commands": True, **info}  # fmt: skip
        self.publish(host, "info", {"v": 1, **about})

    def stop_host(self, host: str) -> None:
        """Publish that a daemon is offline, as it does at its end or the broker does for it."""
        self._publish_status(host, online=False)

    def publish_state(self, host: str, name: str, state: str = "up", *, ts: float | None = None, **keys: Any) -> None:  # noqa: ANN401  fields of a tunnel
        """Publish the state of a tunnel."""
        data = {**tunnel(name, state, **keys), "link": keys.get("link")}
        payload = StatePayload(data, self.boots[host], 1, format_timestamp(ts or time.time()))
        self.publish(host, "state", payload.as_json(), name)

    def publish_stats(self, host: str, name: str, *, ts: float | None = None, **keys: Any) -> None:  # noqa: ANN401  fields of a tunnel
        """Publish only the counters of a tunnel."""
        payload = StatsPayload(tunnel(name, **keys), self.boots[host], format_timestamp(ts or time.time()))
        self.publish(host, "stats", payload.as_json(), name)

    def clear(self, host: str, name: str) -> None:
        """Clear the retained state of a removed tunnel."""
        self._receive(ParsedTopic(host, "state", name), b"")

    def publish_event(self, host: str, text: str, name: str = "", kind: str = "state", **more: object) -> None:
        """Publish an event of a host or tunnel."""
        at = format_timestamp(time.time())
        event = {"v": 1, "ts": at, "tunnel": name, "level": "info", "kind": kind, "text": text}
        self._on_event(host, {**event, **more})

    def publish(self, host: str, kind: str, payload: Json, name: str = "") -> None:
        """Publish any message of a host."""
        self._receive(ParsedTopic(host, kind, name), payloads.encode(payload))

    def _receive(self, spot: ParsedTopic, data: bytes) -> None:
        if self.fleet.apply_message(spot, data, time.monotonic(), time.time(), is_retained=False):
            self._on_message(spot)

    def _publish_status(self, host: str, *, online: bool) -> None:
        run = DaemonRun("instance", self.boots[host])
        self.publish(host, "status", StatusPayload.of_run(run, format_timestamp(time.time()), online=online).as_json())


def fill_two_hosts(reader: FakeReader) -> None:
    """Publish a pair across edge-1 and home, and on each host one tunnel without another end."""
    ends: dict[str, Any] = {"link": "1f0c0d2e", "tags": ["prod"]}
    reader.start_host("edge-1")
    reader.start_host("home")
    reader.publish_state("edge-1", "web", **ends, target_addr="0.0.0.0:80")
    reader.publish_state("home", "web", role="client", **ends, target_addr="127.0.0.1:3000", peer="192.0.2.1:10101")
    reader.publish_state("edge-1", "db", "waiting", reason=None, peer=None)
    reader.publish_state("home", "lone", link="77aa", role="client", peer="198.51.100.7:10101")
    reader.connect()


def make_fleet(
    fill: Callable[[FakeReader], None] | None = fill_two_hosts,
    **clocks: Callable[[], float],
) -> tuple[FakeReader, FleetSource]:
    """Return a fake reader and a source that reads from it."""
    made: list[FakeReader] = []

    def make_reader(broker: Broker, **callbacks: Any) -> FakeReader:  # noqa: ANN401  those of the reader
        made.append(FakeReader(broker, **callbacks))
        return made[0]

    source = FleetSource(BROKER, make_reader, **clocks)
    if fill:
        fill(made[0])
    return made[0], source
