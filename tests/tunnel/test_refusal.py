"""A tunnel that refuses new visitors, as after its quota is used up, over real sockets."""

from __future__ import annotations

import pytest

from tests.tunnel.test_engine import echo, pair, round_trip, shared, visit, visitors_address
from tests.tunnel.test_visitor_rules import is_refused, networks, refused, ruled_pair
from tunnel.engine.context import EngineContext
from tunnel.model.spec import Direction

__all__ = ["shared"]

REASON = "the quota 5GB/month is used up"


@pytest.mark.parametrize("direction", list(Direction))
async def test_new_visitors_are_refused_with_the_reason_and_present_ones_finish(
    shared: EngineContext, direction: Direction
) -> None:
    async with echo() as target, ruled_pair(shared, target, direction) as (ingress, egress):
        address = visitors_address(ingress, egress)
        async with visit(address) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            ingress.engine.set_refusal(REASON)
            assert ingress.engine.snapshot().reason == REASON
            assert await is_refused(address)
            writer.write(b"b")
            assert await reader.readexactly(1) == b"b"
        assert refused(ingress)["quota"] == 1
        texts = [event.text for event in ingress.events if "was refused" in event.text]
        assert texts == [f"a visitor was refused: {REASON}"]
        ingress.engine.set_refusal(None)
        await round_trip(address)
        assert ingress.engine.snapshot().reason is None


async def test_rules_apply_again_after_a_refusal(shared: EngineContext) -> None:
    async with echo() as target, ruled_pair(shared, target, deny=networks("127.0.0.2")) as (ingress, egress):
        address = visitors_address(ingress, egress)
        ingress.engine.set_refusal(REASON)
        assert await is_refused(address)
        ingress.engine.set_refusal(None)
        assert await is_refused(address, "127.0.0.2")
        await round_trip(address)
        assert (refused(ingress)["quota"], refused(ingress)["allow"]) == (1, 1)


async def test_a_refusal_at_an_egress_has_no_effect(shared: EngineContext) -> None:
    async with echo() as target, pair(shared, target) as (ingress, egress):
        egress.engine.set_refusal(REASON)
        await round_trip(visitors_address(ingress, egress))
