"""What readers of a fleet do with hosts and brokers that are not as they expect: clocks, versions, sizes, answers."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from orchestrator.mqtt.broker import Broker
from orchestrator.mqtt.reader import FleetReader, NoAnswerError
from tests.faults.broker_proxy import OldBroker
from tests.integration.test_fleet import Mosquitto, fleet
from tests.integration.test_programs import needs
from tests.support.forged_host import ForgedHost
from tests.support.processes import ProcessHarness

pytestmark = needs("mosquitto")


@pytest.fixture
def broker(harness: ProcessHarness) -> Mosquitto:
    return harness.close_at_end(Mosquitto(harness.directory / "broker"))


def forged(
    harness: ProcessHarness, broker: Mosquitto, name: str = "edge", *, clock_offset_s: float = 0.0
) -> ForgedHost:
    """A host with one tunnel."""
    host = harness.close_at_end(ForgedHost(broker.port, name, clock_offset_s=clock_offset_s))
    host.publish_status()
    host.publish_info()
    host.publish_state()
    return host


@pytest.mark.parametrize(("offset_s", "difference"), [(-90.0, "90 s behind"), (3600.0, "3600 s ahead")])
def test_a_host_whose_clock_differs_is_asked(
    harness: ProcessHarness, broker: Mosquitto, offset_s: float, difference: str
) -> None:
    host = forged(harness, broker, clock_offset_s=offset_s)
    host.answer_commands(lambda command: {"ok": True, "result": {"text": f"{command['op']} done", "ts": host.ts}})
    code, out, _ = fleet(harness, broker, "ps")
    assert (code, out.splitlines()[0]) == (0, f"edge, online, 1 tunnel, its clock is {difference}")
    code, out, messages = fleet(harness, broker, "restart", "edge/web")
    assert (code, out, messages) == (0, "edge/web: restart done\n", "")
    expires_at = time.strptime(host.commands[-1]["exp"].partition(".")[0], "%Y-%m-%dT%H:%M:%S")
    now = time.strptime(host.ts.partition(".")[0], "%Y-%m-%dT%H:%M:%S")
    assert expires_at > now, "the command has not expired by the clock of its host"


def test_a_retained_status_from_the_future_is_not_believed(harness: ProcessHarness, broker: Mosquitto) -> None:
    forged(harness, broker, clock_offset_s=3600.0).close()
    code, out, _ = fleet(harness, broker, "ps")
    assert (code, out.splitlines()[0]) == (3, "edge, silent, 1 tunnel, last message at an unknown time")


@pytest.mark.parametrize("refusal", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""])
def test_a_broker_of_version_3_is_used_within_one_attempt(
    harness: ProcessHarness, broker: Mosquitto, refusal: bytes
) -> None:
    old = harness.close_at_end(OldBroker(("127.0.0.1", broker.port), refusal))
    host = forged(harness, broker)
    host.answer_commands(lambda _: {"ok": True, "result": {"text": "stopping"}})
    assert fleet(harness, broker, "ps", url=old.url)[0] == 0
    assert fleet(harness, broker, "stop", "edge/web", url=old.url) == (0, "edge/web: stopping\n", "")
    assert old.accepted == 4, "two connections for each command"


def test_an_answer_that_cannot_be_read_counts_as_an_answer(harness: ProcessHarness, broker: Mosquitto) -> None:
    host = forged(harness, broker)
    host.answer_commands(lambda command: json.dumps({"v": 1, "id": command["id"], "result": "x" * 300_000}).encode())
    began = time.monotonic()
    code, _, messages = fleet(harness, broker, "stop", "edge/web")
    assert code == 4
    assert re.search("edge/web: host 'edge' has answered, but the answer is longer than 256 KiB", messages)
    assert time.monotonic() - began < 10, "it does not wait for another answer"


async def test_another_host_cannot_answer_for_a_host(
    harness: ProcessHarness, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.mqtt.reader.RESPONSE_TIMEOUT_S", 0.5)
    host, other = forged(harness, broker), forged(harness, broker, "other")

    def answer_as_another(command: dict[str, Any]) -> None:
        other.answer(command, {"ok": True, "result": {"text": "forged"}})

    host.answer_commands(answer_as_another)
    reader = FleetReader(Broker.from_url(broker.url))
    async with reader.connected():
        with pytest.raises(NoAnswerError, match="host 'edge' did not answer within"):
            await reader.send_command("edge", "stop", "web")
    assert len(host.commands) == 1
