"""A host on the broker publishes control characters: none of them reaches the operator's terminal."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable

import pytest

from tests.bench.processes import clean_environment
from tests.bench.terminal import Screen, TerminalScreen, run_on_terminal
from tests.integration.test_fleet import DASHBOARD, Mosquitto, fleet
from tests.integration.test_programs import needs
from tests.support.forged_host import ForgedHost
from tests.support.processes import ProcessHarness
from tests.support.scale import GUARD_S

pytestmark = needs("mosquitto")

ESCAPES = "\x1b]0;owned\x07\x1b]52;c;b3du\x07\x1b[666m\x9b666m\x9d0;owned\x9c\x90q\x7f\u202e\u2028\x08\r"
"""OSC (title, clipboard), CSI, the same as C1 controls, DCS, delete, text from right to left, new line, cursor."""
CONFIRM = "\x1b[C\r"  # move from Cancel to the other button, then Enter
RAW = ("\x1b]0;owned", "\x1b]52;", "\x1b[666m", "\x90", "\x9b", "\x9c", "\x9d", "\x7f", "\u202e", "\u2028")


@pytest.fixture
def broker(harness: ProcessHarness) -> Mosquitto:
    return harness.close_at_end(Mosquitto(harness.directory / "broker"))


@pytest.fixture
def hostile(harness: ProcessHarness, broker: Mosquitto) -> ForgedHost:
    """A host with escape sequences in every text that it can choose."""
    host = harness.close_at_end(ForgedHost(broker.port, "edge"))
    host.publish_status()
    host.publish_info(name=f"machine{ESCAPES}", version=ESCAPES, config_ok=False, config_error=f"broken{ESCAPES}")
    texts = dict.fromkeys(("reason", "tunnel_addr", "target_addr", "peer", "auth", "last_error"), f"text{ESCAPES}")
    host.publish_state(f"evil{ESCAPES}", **texts, tags=[f"tag{ESCAPES}"])
    host.answer_commands(lambda _: {"ok": False, "error": f"refused{ESCAPES}", "result": {f"key{ESCAPES}": ESCAPES}})
    return host


def raw_controls(text: str) -> list[str]:
    """The control sequences that were printed as they came."""
    return [one for one in RAW if one in text]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("ps",), "evil\\x1b]0;owned"),
        (("ps", "--json"), "evil"),
        (("ps", "--routes"), "evil\\x1b]0;owned"),
        (("ps", f"edge/none{ESCAPES}"), "no tunnel of edge is named"),
        (("stop", "edge"), "refused\\x1b"),
        (("stop", "edge", "--json"), "refused"),
    ],
)
def test_fleet_commands_print_no_control_characters_of_a_host(
    harness: ProcessHarness, broker: Mosquitto, hostile: ForgedHost, arguments: tuple[str, ...], shown: str
) -> None:
    _, out, messages = fleet(harness, broker, *arguments)
    assert shown in out + messages
    assert not raw_controls(out + messages)
    if "--json" in arguments:
        json.loads(out)


async def test_the_dashboard_prints_no_control_characters_of_a_host(
    harness: ProcessHarness, broker: Mosquitto, hostile: ForgedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[bytes] = []
    feed = TerminalScreen.feed

    def record(screen: TerminalScreen, data: bytes) -> None:
        printed.append(data)
        feed(screen, data)

    monkeypatch.setattr(TerminalScreen, "feed", record)
    command = [*DASHBOARD, "top", "--mqtt", broker.url]
    async with run_on_terminal("top", command, directory=harness.directory, env=clean_environment()) as top:
        await top.wait_shown(shows("evil\\x1b"), "the tunnel", within=GUARD_S)
        hostile.publish_event(f"event{ESCAPES}", f"evil{ESCAPES}")
        await top.wait_shown(shows("event\\x1b"), "the event", within=GUARD_S)
        for keys, wanted in (
            ("h", shows("machine\\x1b")),
            ("\x1b", hides("machine\\x1b")),
            ("p", shows("no other end")),
            ("\x1b", hides("no other end")),
            ("s", shows("Cancel")),
            (CONFIRM, shows("refused\\x1b")),
        ):
            await top.press_and_wait(keys, wanted, repr(keys), within=GUARD_S)
    text = codecs.getincrementaldecoder("utf-8")().decode(b"".join(printed))  # the last read may end inside a character
    assert "evil" in text
    assert not raw_controls(text)


def shows(text: str) -> Callable[[Screen], bool]:
    """A condition on the screen: a text is in one of its rows."""
    return lambda screen: any(text in row for row in screen)


def hides(text: str) -> Callable[[Screen], bool]:
    """A condition on the screen: a text is in none of its rows."""
    return lambda screen: not shows(text)(screen)
