"""The metrics agree with what the visitors count."""

from __future__ import annotations

import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.peers import exchange
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.waiting import wait_until

VISITORS = 120


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Return the values by metric and tunnel."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, s.labels.get("tunnel", "")): s.value for family in families for s in family.samples}


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_metrics_agree_with_the_load(harness: ProcessHarness, direction: str) -> None:
    port, tunnel, ingress_port = free_port(), free_port(), free_port()
    target = harness.start_target()
    ingress, egress = f"127.0.0.1:{ingress_port}", f"127.0.0.1:{target.port}"
    ends = (ingress, egress) if direction == "reverse" else (egress, ingress)
    tunnels = {
        "s": f"server://127.0.0.1:{tunnel}/{ends[0]}?mode={direction}",
        "c": f"client://127.0.0.1:{tunnel}/{ends[1]}",
    }
    daemon = harness.start_daemon(tunnels, supervisor={"metrics": f"127.0.0.1:{port}"})
    for name in tunnels:
        daemon.wait_state("up", name=name)
    payloads = [random.randbytes(random.randrange(1, 60_000)) for _ in range(VISITORS)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda payload: exchange(("127.0.0.1", ingress_port), payload), payloads))
    assert answers == payloads
    wait_until(
        lambda: all(scrape(port)["nodepass_orch_tunnel_connections_active", name] == 0 for name in tunnels),
        within=5,
        what="every visitor is disconnected",
    )
    values = scrape(port)
    total = sum(map(len, payloads))
    for name in tunnels:
        expected = {
            "up": 1,
            "connections_total": VISITORS,
            "connections_failed_total": 0,
            "in_bytes_total": total,
            "out_bytes_total": total,
            "restarts_total": 0,
        }
        assert {key: values[f"nodepass_orch_tunnel_{key}", name] for key in expected} == expected
    assert values["nodepass_orch_tunnel_signals_total", "s"] >= VISITORS
