"""A server that lets clients publish: it authenticates them, and a publisher decides."""

from __future__ import annotations

import dataclasses
import hmac

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import certificate, running_engine, server_spec, shared, spec
from tunnel.engine.context import EngineContext, Timing
from tunnel.model.address import Address
from tunnel.model.keys import Key, NamedKey, generate_key
from tunnel.model.publishing import PortRange, PublishRequest, PublishRule
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import Mode, Role, TunnelSpec
from tunnel.model.state import State

__all__ = ["certificate", "shared"]  # fixtures, used by name

ALICE, BOB, STRANGER = (Key(generate_key()) for _ in range(3))
WANTED = Address("", 7)
RULE = PublishRule(host="127.0.0.1", ports=(PortRange(1, 9),), services=("*",))


class FakePublisher:
    """Answers all requests alike, and records them."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer
        self.requests: list[tuple[str, PublishRequest]] = []

    async def publish(self, server: str, request: PublishRequest) -> str | None:
        self.requests.append((server, request))
        return self.answer


def server_of(tunnel: str, key: Key = ALICE) -> TunnelSpec:
    made = server_spec("127.0.0.1:0", tunnel, mode=Mode.REVERSE)
    keys = (NamedKey("alice", key), NamedKey("bob", BOB))
    return dataclasses.replace(made, key=None, named_keys=keys, publish_rules=(RULE,))


async def refusal(shared: EngineContext, key: Key = ALICE, publish: Address | None = WANTED) -> tuple[str, Snapshot]:
    """Return why a client that publishes gets no link, and the server as it is then."""
    tunnel = f"127.0.0.1:{free_port()}"
    wanted = spec(Role.CLIENT, tunnel, "127.0.0.1:1", service="web", key=key, publish=publish)
    async with running_engine(shared, server_of(tunnel), "gw") as server:
        await server.wait_state(State.UP)
        async with running_engine(shared, wanted) as client:
            await wait_until_async(lambda: client.state is State.COOLDOWN, "the client is refused")
            return client.reason, server.engine.snapshot()


async def test_without_a_publisher_no_client_publishes(shared: EngineContext) -> None:
    reason, seen = await refusal(shared)
    assert "this server opens no tunnels for clients" in reason
    assert (seen.state, seen.target_addr, seen.links) == (State.UP, "127.0.0.1:1-9", ())


async def test_the_publisher_learns_who_asks_for_what_and_its_reason_reaches_the_client(shared: EngineContext) -> None:
    publisher = shared.publisher = FakePublisher("this is not allowed")
    reason, seen = await refusal(shared)
    assert reason.endswith("the server answers: this is not allowed")
    assert publisher.requests[0] == ("gw", PublishRequest("alice", "web", WANTED))
    assert "this is not allowed" in (seen.last_error or "")


async def test_a_tunnel_that_ends_before_its_client_has_it_is_a_refusal(shared: EngineContext) -> None:
    shared.publisher = FakePublisher(None)
    assert "the tunnel of the service 'web' has ended at this moment" in (await refusal(shared))[0]


async def test_a_client_without_a_valid_key_asks_for_nothing(shared: EngineContext) -> None:
    publisher = shared.publisher = FakePublisher(None)
    for publish in (WANTED, None):
        reason, _ = await refusal(shared, STRANGER, publish)
        assert "refused: most likely the keys or the service names differ" in reason
    assert "a client that publishes it writes publish=PORT" in (await refusal(shared, publish=None))[0]
    assert not publisher.requests


@pytest.mark.parametrize("shared", [Timing(retry_delay=lambda *_: 600.0)], indirect=True)  # one attempt is counted
async def test_what_a_client_without_a_valid_key_asks_for_makes_no_difference(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its service exists, and whether it publishes: neither in the answer nor in the computations."""
    publisher = shared.publisher = FakePublisher(None)
    tunnel, real, computed = f"127.0.0.1:{free_port()}", hmac.digest, 0

    def count(*arguments: object) -> bytes:
        nonlocal computed
        computed += 1
        return real(*arguments)  # type: ignore[arg-type]

    web = server_spec("127.0.0.1:0", tunnel, mode=Mode.REVERSE, service="web", key=ALICE)
    seen = set()
    async with running_engine(shared, server_of(tunnel), "gw") as server, running_engine(shared, web, "web") as other:
        await server.wait_state(State.UP)
        await other.wait_state(State.WAITING)
        monkeypatch.setattr(hmac, "digest", count)
        for service, publish in (("web", None), ("web", WANTED), ("none", None), ("none", WANTED)):
            computed = 0
            wanted = spec(Role.CLIENT, tunnel, "127.0.0.1:1", service=service, key=STRANGER, publish=publish)
            async with running_engine(shared, wanted) as client:
                await wait_until_async(lambda client=client: client.state is State.COOLDOWN, "the client is refused")  # type: ignore[misc]
                seen.add((client.reason, computed))
    assert len(seen) == 1
    assert "most likely the keys or the service names differ" in seen.pop()[0]
    assert not publisher.requests


async def test_one_server_of_a_port_lets_clients_publish(shared: EngineContext) -> None:
    tunnel = f"127.0.0.1:{free_port()}"
    async with running_engine(shared, server_of(tunnel)) as first, running_engine(shared, server_of(tunnel)) as second:
        await wait_until_async(lambda: {first.state, second.state} == {State.UP, State.COOLDOWN}, "one is up")
        reason = first.reason or second.reason
        assert "another tunnel lets clients publish there; keep one of them" in reason
