from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import wait_until_async
from tunnel.model.address import Address
from tunnel.runtime import resolver, sockets
from tunnel.runtime.name_lookup import NameLookup
from tunnel.runtime.resolver import DialTarget
from tunnel.runtime.sockets import NetError

GUARD_S = 10.0


class NameServer:
    """Answers the lookups of a test; counts them; blocks while ``is_silent``."""

    def __init__(self) -> None:
        self.queries = 0
        self.answer = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        self.error: OSError | None = None
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, host: str, port: None, *, type: socket.SocketKind) -> list[tuple[object, ...]]:  # noqa: A002  as getaddrinfo
        self.queries += 1
        self.answers.wait(GUARD_S)
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, type, 6, "", (ip, 0)) for ip in self.answer]


@pytest.fixture
def server() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.answers.set()  # no thread is left blocked


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_target(server: NameServer, clock: Clock) -> DialTarget:
    return DialTarget(Address("db-server", 5432), NameLookup(server), clock, fallback_delay_s=0.05)


def hosts(target: DialTarget) -> list[str] | None:
    cached = target.cached()
    return None if cached is None else [sockaddr[0] for _, sockaddr in cached]


async def test_a_name_is_resolved_before_its_first_use(server: NameServer) -> None:
    target = make_target(server, Clock())
    assert hosts(target) is None
    await target.resolve()
    assert hosts(target) == server.answer


async def test_the_address_that_answered_stays_first_when_the_name_is_resolved_again(server: NameServer) -> None:
    target = make_target(server, Clock())
    await target.resolve()
    target.prefer(("127.0.0.3", 5432))
    assert hosts(target) == ["127.0.0.3", "127.0.0.1", "127.0.0.2"]
    await target.resolve()
    assert hosts(target) == ["127.0.0.3", "127.0.0.1", "127.0.0.2"]


async def test_addresses_that_did_not_do_what_they_are_for_are_tried_last_in_turn(server: NameServer) -> None:
    target = make_target(server, Clock())
    await target.resolve()
    target.prefer(("127.0.0.1", 5432))
    target.defer(("127.0.0.1", 5432))
    assert hosts(target) == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    target.defer(("127.0.0.2", 5432))
    await target.resolve()
    assert hosts(target) == ["127.0.0.3", "127.0.0.1", "127.0.0.2"]
    target.prefer(("127.0.0.2", 5432))
    assert hosts(target) == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]


async def test_old_addresses_are_used_while_they_are_refreshed_once(server: NameServer) -> None:
    clock = Clock()
    target = make_target(server, clock)
    await target.resolve()
    before = list(server.answer)
    server.answers.clear()
    server.answer = ["127.0.0.9"]
    clock.now += resolver._NAME_TTL_S + 0.1
    assert [hosts(target) for _ in range(5)] == [before] * 5
    server.answers.set()
    await wait_until_async(lambda: hosts(target) == ["127.0.0.9"], "the new address is known")
    assert server.queries == 2


async def test_a_silent_name_server_leaves_the_last_known_addresses_in_use(server: NameServer) -> None:
    target = make_target(server, Clock())
    await target.resolve()
    target.invalidate()
    assert hosts(target) is None
    server.answers.clear()
    async with asyncio.timeout(GUARD_S):
        await target.resolve()
    assert hosts(target) == server.answer


async def test_a_name_that_no_longer_exists_is_not_dialled_at_its_old_addresses(server: NameServer) -> None:
    target = make_target(server, Clock())
    await target.resolve()
    target.invalidate()
    server.error = socket.gaierror(socket.EAI_NONAME, "unknown")
    with pytest.raises(socket.gaierror):
        await target.resolve()
    assert hosts(target) is None


async def test_a_lookup_that_takes_too_long_is_named_as_the_cause(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_RESOLVE_TIMEOUT_S", 0.05)
    server.answers.clear()
    with pytest.raises(NetError, match="its name was not resolved in time"):
        await make_target(server, Clock()).resolve()


async def test_a_link_local_address_gets_the_number_of_its_interface() -> None:
    index = socket.if_nametoindex("lo")
    for zone in ("lo", str(index)):
        [(family, sockaddr)] = await resolver.resolve(Address(f"fe80::1%{zone}", 80))
        assert (family, sockaddr) == (socket.AF_INET6, ("fe80::1", 80, 0, index))


async def test_an_interface_that_is_created_again_is_found_under_its_new_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = iter([7, 9])
    monkeypatch.setattr(socket, "if_nametoindex", lambda _name: next(numbers))
    target = DialTarget(Address("fe80::1%wg0", 80))
    assert await target.resolve() == [(socket.AF_INET6, ("fe80::1", 80, 0, 7))]
    assert target.cached() is not None
    target.invalidate()
    assert target.cached() is None
    assert await target.resolve() == [(socket.AF_INET6, ("fe80::1", 80, 0, 9))]


async def test_an_unknown_interface_is_named() -> None:
    with pytest.raises(NetError, match="this host has no network interface 'nope0'"):
        await resolver.resolve(Address("fe80::1%nope0", 80))


async def test_a_name_that_no_name_server_can_be_asked_for_cannot_be_resolved() -> None:
    with pytest.raises(socket.gaierror) as caught:
        await resolver.resolve(Address("a" * 70 + ".example", 1))
    assert sockets.describe_error(caught.value) == "its name cannot be resolved"


@pytest.mark.parametrize(
    ("host", "dialled"), [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.5", "127.0.0.5")]
)
async def test_a_literal_is_resolved_once_and_a_wildcard_means_this_host(host: str, dialled: str) -> None:
    target = DialTarget(Address(host, 80))
    [(_, sockaddr)] = await target.resolve()
    assert sockaddr[:2] == (dialled, 80)
    target.invalidate()
    assert target.cached() is not None


@pytest.mark.parametrize(
    ("sockaddr", "is_own"),
    [
        (("127.0.0.1", 1), True),
        (("192.0.2.77", 1), False),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("::ffff:192.0.2.77", 1, 0, 0), False),
    ],
)
def test_a_local_address_that_the_host_has_lost_is_recognised(sockaddr: sockets.SockAddr, is_own: bool) -> None:  # noqa: FBT001  a table's column
    assert resolver.has_local_address(sockaddr) is is_own


def test_the_own_addresses_are_known_where_netlink_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> bool:
        raise PermissionError

    monkeypatch.setattr(resolver, "is_own_ip", forbid)
    assert resolver.is_this_host(Address(_own_ip(), 80))
    assert not resolver.is_this_host(Address("192.0.2.77", 80))
    assert resolver.has_local_address(("192.0.2.77", 1)), "a link must not end because the kernel does not say"


def _own_ip() -> str:
    """The first address of this host that is not on loopback, or one on loopback where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
