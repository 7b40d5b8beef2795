"""Home Assistant discovery of a host: one device, and a few entities per tunnel.

There is one retained configuration per entity, at ``PREFIX/COMPONENT/HOST/OBJECT/config``. The entities read what is
published in any case: the retained states, and the host's status.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING, Final

from orchestrator.config.supervisor_settings import parse_discovery_prefix
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import BrokerError
from orchestrator.mqtt.commands import EVENT_KIND
from orchestrator.mqtt.ownership import SILENT_AFTER_S
from orchestrator.mqtt.topics import INFO, STATE, STATUS, OutgoingMessage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orchestrator.mqtt.session import BrokerSession
    from orchestrator.mqtt.topics import HostTopics
    from tunnel.model.events import EventLog

_PROGRAM: Final = "nodepass-orch"
_COMPONENTS: Final = ("binary_sensor", "sensor")
_ATTRIBUTES: Final = (
    "state", "reason", "since", "role", "direction", "tunnel_addr", "target_addr", "peer", "auth", "tags", "restarts",
    "last_error", "last_error_at",
)  # fmt: skip
"""Keys of a tunnel that are attributes: lasting ones, because Home Assistant's recorder stores each change."""
_MAX_NAME_CHARS: Final = 64
_ECHO_TIMEOUT_S: Final = 10.0  # for one of our configurations to come back from the broker

# --- the configurations -----------------------------------------------------------------------------------------------


class HomeAssistantDiscovery:
    """The configurations of one host below one prefix. Pure."""

    def __init__(self, prefix: str, topics: HostTopics, host: str, version: str) -> None:
        self.prefix = prefix
        self._topics = topics
        self._node = _as_topic_level(host)
        self._shared = {
            "device": {
                "identifiers": [f"{_PROGRAM}_{self._node}"],
                "name": host,
                "manufacturer": _PROGRAM,
                "model": "tunnels",
                "sw_version": version,
            },
            "origin": {"name": _PROGRAM, "sw_version": version},
        }
        self._availability = {
            "availability_topic": topics.of(STATUS),
            "availability_template": "{{ 'online' if value_json.online else 'offline' }}",
            "expire_after": int(SILENT_AFTER_S),
        }

    @property
    def patterns(self) -> tuple[str, ...]:
        """All configurations of this host, for a subscription."""
        return tuple(f"{self.prefix}/{component}/{self._node}/+/config" for component in _COMPONENTS)

    def owns(self, topic: str) -> bool:
        """Whether this program publishes, or an earlier run has published, this topic for this host."""
        if not topic.startswith(f"{self.prefix}/"):
            return False
        match topic.removeprefix(f"{self.prefix}/").split("/"):
            case [component, node, entity, "config"]:
                return component in _COMPONENTS and node == self._node and entity.startswith(f"{_PROGRAM}_")
        return False

    def host_messages(self) -> tuple[OutgoingMessage, ...]:
        """Whether the host is online, and whether its file is in force."""
        online = {
            "name": "Online",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": self._topics.of(STATUS),
            "value_template": "{{ 'ON' if value_json.online else 'OFF' }}",
        }
        configuration = {
            "name": "Configuration",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": self._topics.of(INFO),
            "value_template": "{{ 'OFF' if value_json.config_ok else 'ON' }}",
            "json_attributes_topic": self._topics.of(INFO),
            "json_attributes_template": _attributes_template("config_error", "generation", "tunnels", "version"),
            **self._availability,
        }
        return (
            self._message("binary_sensor", "host_online", online),
            self._message("binary_sensor", "host_configuration", configuration),
        )

    def tunnel_messages(self, name: str) -> tuple[OutgoingMessage, ...]:
        """Whether the tunnel is up, and its counters."""
        return tuple(self._tunnel_messages(name))

    def _tunnel_messages(self, name: str) -> Iterator[OutgoingMessage]:
        topic = self._topics.of(STATE, name)
        level = _as_topic_level(name)
        common = {"state_topic": topic, **self._availability}
        up = {
            "name": name,
            "device_class": "connectivity",
            "value_template": "{{ 'ON' if value_json.state == 'up' else 'OFF' }}",
            "json_attributes_topic": topic,
            "json_attributes_template": _attributes_template(*_ATTRIBUTES),
            **common,
        }
        yield self._message("binary_sensor", f"t_{level}_up", up)
        connections = {
            "name": f"{name} connections",
            "icon": "mdi:lan-connect",
            "state_class": "measurement",
            "value_template": "{{ value_json.connections.active }}",
            **common,
        }
        yield self._message("sensor", f"t_{level}_connections", connections)
        for key, icon in (("in", "mdi:upload-network"), ("out", "mdi:download-network")):
            counter = {
                "name": f"{name} bytes {key}",
                "icon": icon,
                "device_class": "data_size",
                "unit_of_measurement": "B",
                "state_class": "total_increasing",
                "value_template": f"{{{{ value_json.bytes['{key}'] }}}}",
                **common,
            }
            yield self._message("sensor", f"t_{level}_bytes_{key}", counter)

    def _message(self, component: str, name: str, config: Mapping[str, object]) -> OutgoingMessage:
        whole = {**config, "unique_id": f"{_PROGRAM}_{self._node}_{name}", **self._shared}
        topic = f"{self.prefix}/{component}/{self._node}/{_PROGRAM}_{name}/config"
        return OutgoingMessage(topic, payloads.encode(whole), retain=True)


def _as_topic_level(name: str) -> str:
    """A name in the few characters that discovery allows; where characters were replaced, a hash makes it unique."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_MAX_NAME_CHARS]
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _attributes_template(*keys: str) -> str:
    items = ", ".join(f"'{key}': value_json.{key}" for key in keys)
    return f"{{{{ {{{items}}} | tojson }}}}"


# --- the configurations on the broker ---------------------------------------------------------------------------------


class DiscoveryMonitor:
    """Finds the configurations that earlier runs left on the broker, and checks whether ours are delivered.

    Where discovery is off, it searches only where the last run's ``info`` says that there are some.
    """

    def __init__(self, topics: HostTopics, host: str, discovery: HomeAssistantDiscovery | None) -> None:
        self._topics = topics
        self._host = host
        self._discovery = discovery
        self._subscribed: list[HomeAssistantDiscovery] = []
        self._earlier_prefix: str | None = None
        self._is_echoed = asyncio.Event()

    def set_earlier_prefix(self, prefix: str | None) -> None:
        """The prefix in the last run's ``info``; None: it published no configurations."""
        try:
            self._earlier_prefix = parse_discovery_prefix(prefix)
        except ValueError:
            self._earlier_prefix = None

    async def subscribe(self, session: BrokerSession, event_log: EventLog) -> None:
        """Subscribe to the configurations; on return the retained ones have arrived. Raises BrokerError."""
        self._is_echoed.clear()
        self._subscribed = [] if self._discovery is None else [self._discovery]
        earlier, self._earlier_prefix = self._earlier_prefix, None
        if earlier is not None and all(earlier != known.prefix for known in self._subscribed):
            self._subscribed.append(HomeAssistantDiscovery(earlier, self._topics, self._host, ""))
        for known in tuple(self._subscribed):
            try:
                await session.subscribe(*known.patterns)
            except BrokerError as error:
                if error.code is None:
                    raise
                self._subscribed.remove(known)
                event_log.warn_throttled(EVENT_KIND, "discovery", f"discovery: {error}")

    def receive(self, topic: str, *, is_retained: bool) -> bool:
        """A message outside the host's own topics; whether it is a configuration that an earlier run left."""
        if not any(known.owns(topic) for known in self._subscribed):
            return False
        if not is_retained:
            self._is_echoed.set()
        return is_retained

    async def check_echo(self, session: BrokerSession, event_log: EventLog) -> None:
        """Warn where a broker confirms our configurations and does not deliver them; then end the subscriptions."""
        if self._discovery is not None and self._discovery in self._subscribed:
            try:
                async with asyncio.timeout(_ECHO_TIMEOUT_S):
                    await self._is_echoed.wait()
            except TimeoutError:
                patterns = ", ".join(self._discovery.patterns)
                text = f"the broker drops the discovery messages: allow this host to write and read {patterns}"
                event_log.warn_throttled(EVENT_KIND, "discovery", text)
        if self._subscribed:
            await session.unsubscribe(*(pattern for known in self._subscribed for pattern in known.patterns))
            self._subscribed = []
