"""What Home Assistant, and whatever reads its discovery, is told of a host: one device, a few entities a tunnel. Pure.

One retained configuration per entity, at ``PREFIX/COMPONENT/HOST/OBJECT/config``. All of them read what is published in
any case: the retained states, and the host's status.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.outbox import Message
from orchestrator.mqtt.rivals import SILENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.mqtt.topics import HostTopics

_PROGRAM: Final = "nodepass-orch"
_COMPONENTS: Final = ("binary_sensor", "sensor")
_SHOWN: Final = (
    "state", "reason", "since", "role", "direction", "tunnel_addr", "target_addr", "peer", "auth", "tags", "restarts",
    "last_error", "last_error_at",
)  # fmt: skip
"""What of a tunnel are attributes: what lasts, because a recorder keeps each change of any of them."""


class Discovery:
    """The configurations of one host below one prefix."""

    def __init__(self, prefix: str, topics: HostTopics, host: str, version: str) -> None:
        self.prefix = prefix
        self._topics = topics
        self._node = _level(host)
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
        self._available = {
            "availability_topic": topics.status,
            "availability_template": "{{ 'online' if value_json.online else 'offline' }}",
            "expire_after": int(SILENCE),
        }

    @property
    def patterns(self) -> tuple[str, ...]:
        """Where all configurations of this host are, to subscribe to."""
        return tuple(f"{self.prefix}/{component}/{self._node}/+/config" for component in _COMPONENTS)

    def is_ours(self, topic: str) -> bool:
        """Whether one of these topics was written by this program, in this life or an earlier one."""
        levels = topic.removeprefix(f"{self.prefix}/").split("/")
        return topic.startswith(f"{self.prefix}/") and (
            len(levels) == 4
            and levels[0] in _COMPONENTS
            and levels[1] == self._node
            and levels[2].startswith(f"{_PROGRAM}_")
            and levels[3] == "config"
        )

    def of_host(self) -> tuple[Message, ...]:
        """Whether it is there, and whether its file is in force."""
        online = {
            "name": "Online",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": self._topics.status,
            "value_template": "{{ 'ON' if value_json.online else 'OFF' }}",
        }
        configuration = {
            "name": "Configuration",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": self._topics.info,
            "value_template": "{{ 'OFF' if value_json.config_ok else 'ON' }}",
            "json_attributes_topic": self._topics.info,
            "json_attributes_template": _attributes("config_error", "generation", "tunnels", "version"),
            **self._available,
        }
        return (
            self._message("binary_sensor", "host_online", online),
            self._message("binary_sensor", "host_configuration", configuration),
        )

    def of_tunnel(self, name: str) -> tuple[Message, ...]:
        """Whether it is up, and its numbers."""
        return tuple(self._of_tunnel(name))

    def _of_tunnel(self, name: str) -> Iterator[Message]:
        topic = self._topics.state_of(name)
        level = _level(name)
        common = {"state_topic": topic, **self._available}
        up = {
            "name": name,
            "device_class": "connectivity",
            "value_template": "{{ 'ON' if value_json.state == 'up' else 'OFF' }}",
            "json_attributes_topic": topic,
            "json_attributes_template": _attributes(*_SHOWN),
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
        for way, icon in (("in", "mdi:upload-network"), ("out", "mdi:download-network")):
            carried = {
                "name": f"{name} bytes {way}",
                "icon": icon,
                "device_class": "data_size",
                "unit_of_measurement": "B",
                "state_class": "total_increasing",
                "value_template": f"{{{{ value_json.bytes['{way}'] }}}}",
                **common,
            }
            yield self._message("sensor", f"t_{level}_bytes_{way}", carried)

    def _message(self, component: str, name: str, config: dict[str, Any]) -> Message:
        whole = {**config, "unique_id": f"{_PROGRAM}_{self._node}_{name}", **self._shared}
        topic = f"{self.prefix}/{component}/{self._node}/{_PROGRAM}_{name}/config"
        return Message(topic, payloads.encode(whole), retain=True)


def _level(name: str) -> str:
    """A name in the few characters that discovery allows; one that had to be changed is told apart by its hash."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _attributes(*keys: str) -> str:
    items = ", ".join(f"'{key}': value_json.{key}" for key in keys)
    return f"{{{{ {{{items}}} | tojson }}}}"
