"""A host on a broker that is not the program: it publishes what a test wants, and answers commands as a test wants."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from orchestrator.mqtt.payloads import DaemonRun, StatePayload, StatusPayload
from orchestrator.supervisor.runner import stopped_snapshot
from tests.support.waiting import wait_until
from tunnel.model.options import make_spec
from tunnel.model.times import format_timestamp
from tunnel.model.url import parse_url

ROOT: Final = "nodepass-orch/v1"
URL: Final = "server://127.0.0.1:10101/127.0.0.1:8080"

Answer = Callable[[dict[str, Any]], Mapping[str, object] | bytes | None]
"""Makes the response to a command; None sends none."""


class ForgedHost:
    """One host; ``clock_offset_s`` is how far its clock is ahead of ours."""

    def __init__(self, port: int, name: str = "forged", *, clock_offset_s: float = 0.0) -> None:
        self.base = f"{ROOT}/{name}"
        self.commands: list[dict[str, Any]] = []
        self._run = DaemonRun("11111111-1111-1111-1111-111111111111", "boot-1", time.time())
        self._offset_s = clock_offset_s
        self._answer: Answer | None = None
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.on_message = self._receive
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        """Disconnect; what is retained stays.

        The client closes the two sockets that wake its thread when it is freed. Its callbacks refer to this host: while
        they do, the garbage collector frees them in any order, and a socket freed before its client is a warning.
        """
        self._client.disconnect()
        self._client.loop_stop()
        self._client.on_message = self._client.on_subscribe = None

    @property
    def ts(self) -> str:
        """The present time by the clock of this host."""
        return format_timestamp(time.time() + self._offset_s)

    def publish(self, suffix: str, payload: Mapping[str, object] | bytes, *, retain: bool = True) -> None:
        """Publish below the host; return when the broker has confirmed."""
        data = payload if isinstance(payload, bytes) else json.dumps({"v": 1, **payload})
        self._client.publish(f"{self.base}/{suffix}", data, qos=1, retain=retain).wait_for_publish(10)

    def publish_status(self, *, online: bool = True, ts: str | None = None) -> None:
        """Publish the retained status."""
        self.publish("status", StatusPayload.of_run(self._run, ts or self.ts, online=online).as_json())

    def publish_info(self, **changes: object) -> None:
        """Publish the retained info with some fields."""
        self.publish("info", {"boot": self._run.boot, "ts": self.ts, "commands": True, **changes})

    def publish_state(self, name: str = "web", *, ts: str | None = None, **changes: object) -> None:
        """Publish the retained state of a tunnel that is up, with other values of some fields."""
        tunnel = {
            **stopped_snapshot(name, make_spec(parse_url(URL))).as_json(),
            "state": "up",
            "link": "5f07",
        } | changes
        payload = StatePayload(tunnel, self._run.boot, 1, ts or self.ts)
        self.publish(f"t/{quote(name, safe='')}/state", payload.as_json())

    def publish_event(self, text: str, tunnel: str = "web") -> None:
        """Publish an event of this host, which is not retained."""
        event = {"ts": self.ts, "tunnel": tunnel, "level": "info", "kind": "state", "text": text}
        self.publish("event", {**event, "boot": self._run.boot}, retain=False)

    def answer_commands(self, answer: Answer) -> None:
        """Answer each command from now on; the answer gets the command's id if it has none of its own."""
        self._answer = answer
        subscribed: list[int] = []
        self._client.on_subscribe = lambda _client, _data, number, *_: subscribed.append(number)
        self._client.subscribe(f"{self.base}/cmd", qos=1)
        wait_until(lambda: bool(subscribed), within=5, what="the forged host is subscribed")

    def _receive(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        command = json.loads(message.payload)
        self.commands.append(command)
        response = self._answer(command) if self._answer else None
        if response is not None:
            self.answer(command, response)

    def answer(self, command: Mapping[str, Any], response: Mapping[str, object] | bytes) -> None:
        """Answer a command as this host, whichever host it was for."""
        data = response if isinstance(response, bytes) else json.dumps({"v": 1, "id": command["id"], **response})
        self._client.publish(f"{self.base}/rsp/{command['reply']}", data, qos=1)
