"""The test of a tunnel whose target or link is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from orchestrator.client import ApiClient
from tests.faults.conftest import FigureRecorder
from tests.faults.hosts import NamespaceHosts
from tests.support.peers import echo
from tests.support.processes import ProcessHarness
from tests.support.waiting import wait_until

TEST_LIMIT_S = 25.0
"""Promised time of a test that fails: ten seconds for the dial, and the round trips."""


@pytest.mark.slow
@pytest.mark.case("a test of a tunnel whose target or link is gone", deadline=120)
def test_a_test_of_a_tunnel_names_the_leg_that_fails_and_returns_in_time(
    harness: ProcessHarness, hosts: NamespaceHosts, record_figure: FigureRecorder
) -> None:
    """The target's packets are dropped, then those of the link; afterwards everything works again.

    Seen to fail: with a link that passes its part of the test without an answer, the next leg is named in its place.
    """
    pair = hosts.pair(harness, echo).wait_up()
    api = ApiClient(pair.server.socket, timeout_s=TEST_LIMIT_S + 10)

    def failing_legs(break_it: Callable[[], object]) -> tuple[list[str], float]:
        break_it()
        began = time.monotonic()
        try:
            found = api.test("t")
        finally:
            hosts.restore()
        assert not found["ok"]
        return [leg["leg"] for leg in found["legs"] if leg["error"]], time.monotonic() - began

    assert api.test("t")["ok"]
    drop = ("iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(pair.target.port), "-j", "DROP")
    target_legs, target_s = failing_legs(lambda: hosts.client.run(*drop))
    link_legs, link_s = failing_legs(lambda: hosts.silence("in", "out"))
    assert target_legs == ["dial"]
    assert link_legs == ["link"]
    assert max(target_s, link_s) < TEST_LIMIT_S
    pair.wait_up(within=40)
    wait_until(lambda: api.test("t")["ok"], within=30, what="the tunnel passes its test again")
    assert pair.server.tunnel()["connections"]["total"] == 0, "a test counts as a visitor"
    record_figure(
        f"target gone: {target_legs[0]} after {target_s:.1f} s; link gone: {link_legs[0]} after {link_s:.1f} s"
    )
