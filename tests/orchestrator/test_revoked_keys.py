"""Named keys that a reload removes are revoked in every engine of the tunnel, whatever else the reload does."""

from __future__ import annotations

import pytest

from tests.orchestrator.fakes import FakeEngine
from tests.orchestrator.test_reload import DB, WEB, ReloadHarness, actions, harness
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address
from tunnel.model.state import State

__all__ = ["harness"]

HOME, OFFICE = "hYd8k2Lw9qTz4Rv7", "pQ3mX8sN5cJ1bG6f"
BOTH, ONE = f"home: {HOME}, office: {OFFICE}", f"home: {HOME}"


def file(keys: str, url: str = WEB, more: str = "") -> dict[str, str]:
    return {"web": f"{{url: '{url}', keys: {{{keys}}}{more}}}", "db": DB}


def names(engine: FakeEngine) -> list[list[str]]:
    """The names of the keys that each change gave the engine."""
    return [[named.name for named in spec.named_keys] for spec in engine.adopted]


async def start(harness: ReloadHarness) -> FakeEngine:
    """Start a tunnel with two keys; return its engine, which has a visitor that stays."""
    await harness.reload(file(BOTH))
    await wait_until_async(lambda: harness.state("web") is State.UP)
    engine = harness.engine("web")
    engine.visitor_left.clear()
    return engine


async def test_a_key_is_revoked_in_the_engine_that_a_second_changed_option_replaces(harness: ReloadHarness) -> None:
    old = await start(harness)
    answer = await harness.reload(file(ONE, WEB + "?tls=0"))
    assert actions(answer)["web"] == "restarted"
    assert names(old) == [["home"]]
    assert old.adopted[0].data_tls is old.spec.data_tls, "the engine keeps all other options"
    old.visitor_left.set()


async def test_a_key_is_revoked_although_the_other_change_is_rejected_and_returns_with_the_file(
    harness: ReloadHarness,
) -> None:
    old = await start(harness)
    harness.engines.ports[Address("127.0.0.1", 7777)] = "another process"
    changed = file(ONE, WEB.replace("1001", "7777"))
    assert actions(await harness.reload(changed))["web"] == "rejected"
    assert names(old) == [["home"]]
    assert actions(await harness.reload(changed))["web"] == "rejected"
    assert names(old) == [["home"]]
    assert actions(await harness.reload(file(BOTH)))["web"] == "unchanged"
    assert names(old) == [["home"], ["home", "office"]]
    old.visitor_left.set()


@pytest.mark.parametrize("more", ["", ", enabled: false"])
async def test_a_key_is_revoked_in_a_former_engine_that_drains(harness: ReloadHarness, more: str) -> None:
    old = await start(harness)
    await harness.reload(file(BOTH, WEB + "?tls=0"))
    assert names(old) == []
    await harness.reload(file(ONE, WEB + "?tls=0", more))
    assert names(old) == [["home"]]
    assert names(harness.engine("web"))[0] == ["home"]
    old.visitor_left.set()


async def test_an_engine_whose_keys_cannot_be_revoked_does_not_stop_the_reload(harness: ReloadHarness) -> None:
    old = await start(harness)
    old.ignores_close = True
    answer = await harness.reload({**file(ONE, WEB + "?tls=0"), "db": DB + "?tls=0"})
    assert (actions(answer)["web"], actions(answer)["db"]) == ("restarted", "restarted")
    old.ignores_close = False
    old.visitor_left.set()


async def test_the_step_to_a_single_key_leaves_the_former_engine_its_keys(harness: ReloadHarness) -> None:
    old = await start(harness)
    assert actions(await harness.reload({"web": f"{{url: '{WEB}', key: {HOME}}}", "db": DB}))["web"] == "restarted"
    assert names(old) == [], "without any key the engine would be open"
    old.visitor_left.set()
