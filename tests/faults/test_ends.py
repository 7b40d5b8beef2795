"""Ends that are killed, frozen or cut off: the tunnel is back within its promise, and nobody keeps a dead link alive."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Figure
from tests.faults.hosts import Hosts
from tests.integration.harness import FULL, Stage
from tests.integration.peers import ask

PROMISE = 2.0
"""Seconds from the moment a fault is mended to the first byte."""

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


@pytest.mark.case("an end is killed and started again", deadline=90)
@both_directions
@pytest.mark.parametrize("victim", ["server", "client"])
def test_killed(stage: Stage, hosts: Hosts, figure: Figure, direction: str, victim: str) -> None:
    pair = hosts.pair(stage, direction=direction).up()
    worst = 0.0
    for _ in range(5 if FULL else 2):
        end = pair.server if victim == "server" else pair.client
        with pair.connect() as visitor:  # leaves its port behind in a state that only SO_REUSEADDR overcomes
            assert ask(visitor, b"here") == b"here"
            end.kill()
            end.start()
            worst = max(worst, pair.first_byte(within=PROMISE))
        pair.up()
    figure(f"first byte after {worst:.2f} s at the latest")
