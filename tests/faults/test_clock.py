"""A clock of a daemon alone that is put forward or back, hour by hour: libfaketime shows it another one."""

from __future__ import annotations

import json
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Figure
from tests.integration.harness import Stage, until
from tests.integration.peers import ask, connect, exchange
from tests.integration.test_fleet import Ear, Hosts, Mosquitto, connected, mqtt_of, publish
from tests.integration.test_programs import needs
from tests.ports import free_port
from tests.scale import FULL

pytestmark = needs("mosquitto", "mosquitto_sub", "mosquitto_pub")

HOUR = 3600.0
JUMPS = 6
INTERVAL = 1.0
"""REPORT_INTERVAL in seconds: three of them are a silence that a full machine does not make by itself."""
WATCH = 10.0 if FULL else 4.0
"""Seconds for which everything is watched after the jump: more than three of them."""
DRAIN = 2.0 if FULL else 6.0
"""Seconds that a visitor has to leave."""
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")
@pytest.mark.case("wall clock jumps an hour", deadline=90)
@pytest.mark.parametrize("hours", [pytest.param(1, id="forward"), pytest.param(-1, marks=pytest.mark.slow, id="back")])
def test_jump(stage: Stage, figure: Figure, hours: int) -> None:
    """Relay, link, cooldown, drain, watcher and broker go on as if nothing had happened; stamps follow the new clock.

    With the silence of a link measured by ``time.time`` (``Link._heard_at``, ``_ping``) it is lost at a jump forward;
    with the end of a drain so measured (``Engine._drain``) a jump back makes it last an hour, and one forward cuts
    the visitor at once.
    """
    clock = stage.directory / "clock"
    put(clock, "+0")
    broker = stage.keep(Mosquitto(stage.directory / "broker"))
    hosts = Hosts(stage)
    port = free_port()
    lame = {"lame": f"client://127.0.0.1:{port}/127.0.0.1:1?client_cooldown=1s"}
    interval = f"&report_interval={round(INTERVAL * 1000)}ms"
    server = {
        "web": hosts.server["web"] + interval,
        "leaving": f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}",
    }
    env = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "XDG_STATE_HOME": str(stage.directory / "state"),
    }
    section = {"mqtt": {"url": broker.url, "host": "edge-1", "commands": True}}
    host = stage.up({**server, **lame}, name="edge-1", env=env, supervisor=section)
    other = stage.up({"web": f"{hosts.client['web']}?{interval[1:]}"}, name="edge-2")
    for daemon in (host, other):
        daemon.is_in("up", name="web", within=15)
    connected(host)
    ear = Ear(stage, broker)
    visitors = ("127.0.0.1", hosts.visitor_port)
    links = host.tunnel("web")["link"], other.tunnel("web")["link"]
    attempts = host.tunnel("lame")["cooldown"]["attempt"]
    with connect(visitors) as visitor:
        assert ask(visitor, b"before") == b"before"
        for hour in range(1, JUMPS + 1):  # so many that one of them falls between a ping and the next word
            put(clock, f"{hour * hours:+d}h")
            assert ask(visitor, b"during") == b"during"
            time.sleep(random.uniform(INTERVAL / 3, INTERVAL * 4 / 3))
        began, exchanged = time.monotonic(), 0
        while time.monotonic() < began + WATCH:
            assert ask(visitor, b"during") == b"during"
            assert exchange(visitors, b"new") == b"new"
            assert mqtt_of(host)["state"] == "online"
            assert 0 <= host.tunnel("lame")["cooldown"]["remaining_s"] <= 1
            exchanged += 1
            time.sleep(0.05)  # visits are spread over the whole watch
        assert (host.tunnel("web")["link"], other.tunnel("web")["link"]) == links
        until(lambda: host.tunnel("lame")["cooldown"]["attempt"] > attempts + 1, within=5, what="attempts go on")

        expiry(broker, ear, JUMPS * hours)
        before = host.status()["generation"]
        host.write(server)
        until(lambda: host.status()["generation"] == before + 1, within=5, what="the file is followed")

        order(broker, ear, id="drain", op="stop", target="web", timeout=DRAIN)
        put(clock, "+0")
        began = time.monotonic()
        assert ask(visitor, b"drain") == b"drain"
        host.is_in("stopped", name="web", within=DRAIN + 6)
        took = time.monotonic() - began
        assert took > DRAIN / 2, f"the visitor was to have {DRAIN:g} seconds"
    figure(f"{exchanged} exchanges, no link lost, a drain of {DRAIN:g} s took {took:.1f} s across the jump back")


def put(clock: Path, text: str) -> None:
    """Set it; whoever reads it never finds it empty."""
    beside = clock.with_suffix(".new")
    beside.write_text(text)
    beside.rename(clock)


def expiry(broker: Mosquitto, ear: Ear, hours: int) -> None:
    """Commands expire, and words are stamped, by the clock of the host."""
    now = time.time()
    late = order(broker, ear, id="late", op="start", target="web", exp=now + hours * HOUR - 10)
    assert not late["ok"]
    assert "expired" in late["error"]
    assert "by this host's clock" in late["error"]
    assert order(broker, ear, id="timely", op="start", target="web", exp=now + hours * HOUR + 300)["ok"]
    state = ear.hears("edge-1/t/lame/state", lambda word: abs(moment(word["ts"]) - now - hours * HOUR) < 60)
    assert datetime.fromisoformat(state["ts"]).tzinfo == UTC


def order(broker: Mosquitto, ear: Ear, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  what a command may have
    """The answer to a command."""
    publish(broker, "edge-1/cmd", json.dumps({"v": 1, **fields}))
    return ear.hears(f"edge-1/rsp/{fields['id']}")
