"""What a tunnel listens on: its direction, the families of an address, and the reasons why a bind fails."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address, parse_address
from tunnel.model.spec import Direction, Mode, Role, TunnelSpec
from tunnel.runtime import listeners, resolver, sockets
from tunnel.runtime.own_addresses import is_own_ip
from tunnel.runtime.resolver import Candidate
from tunnel.runtime.sockets import NetError

HOST = socket.gethostname()


def server(target: str, mode: Mode = Mode.AUTO) -> TunnelSpec:
    return TunnelSpec(role=Role.SERVER, tunnel=Address("", 1), target=parse_address(target), mode=mode)


@pytest.mark.parametrize(
    ("target", "direction"),
    [
        (":8080", Direction.REVERSE),
        ("0.0.0.0:8080", Direction.REVERSE),
        ("[::]:8080", Direction.REVERSE),
        ("127.0.0.1:8080", Direction.REVERSE),
        ("127.9.9.9:8080", Direction.REVERSE),
        ("[::1]:8080", Direction.REVERSE),
        ("localhost:8080", Direction.REVERSE),
        ("web.localhost:8080", Direction.REVERSE),
        (f"{HOST}:8080", Direction.REVERSE),
        (f"{HOST.upper()}:8080", Direction.REVERSE),
        ("internal-web:3000", Direction.FORWARD),
        ("db-server:5432", Direction.FORWARD),
        ("a.name.that.nobody.has.example:80", Direction.FORWARD),
        ("192.0.2.1:80", Direction.FORWARD),
        ("[2001:db8::1]:80", Direction.FORWARD),
    ],
)
def test_the_direction_follows_from_the_target_address(target: str, direction: Direction) -> None:
    assert listeners.decide_direction(server(target)) is direction
    assert listeners.decide_direction(server(target, Mode.REVERSE)) is Direction.REVERSE
    assert listeners.decide_direction(server(target, Mode.FORWARD)) is Direction.FORWARD


@pytest.mark.parametrize(
    ("role", "direction", "expected"),
    [
        (Role.SERVER, Direction.REVERSE, True),
        (Role.SERVER, Direction.FORWARD, False),
        (Role.CLIENT, Direction.REVERSE, False),
        (Role.CLIENT, Direction.FORWARD, True),
    ],
)
def test_the_ingress_follows_from_role_and_direction(role: Role, direction: Direction, expected: bool) -> None:  # noqa: FBT001  a table's column
    spec = TunnelSpec(role=role, tunnel=Address("", 1), target=Address("", 2))
    assert listeners.is_ingress(spec, direction) is expected


async def test_a_wildcard_listens_on_both_families_and_an_address_only_on_its_own() -> None:
    with no_descriptor_leak():
        for host, reached in (
            ("", ("127.0.0.1", "::1")),
            ("::", ("127.0.0.1", "::1")),
            ("0.0.0.0", ("127.0.0.1",)),
            ("127.0.0.1", ("127.0.0.1",)),
            ("::1", ("::1",)),
            ("localhost", ("127.0.0.1",)),
        ):
            listener = await listeners.listen(Address(host, 0), "the tunnel")
            with contextlib.closing(listener):
                assert not listener.getblocking()
                for address in reached:
                    socket.create_connection((address, listener.getsockname()[1])).close()


@pytest.mark.parametrize(("default", "wanted"), [(b"bbr\0", b"reno"), (b"cubic\0", None)])
async def test_connections_on_loopback_are_not_paced(
    monkeypatch: pytest.MonkeyPatch, default: bytes, wanted: bytes | None
) -> None:
    def congestion_control(sock: socket.SocketType) -> bytes:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")

    with socket.socket() as probe:
        usual = congestion_control(probe)
    monkeypatch.setattr(sockets, "_default_congestion_control", lambda: default)
    sockets.should_disable_pacing.cache_clear()
    try:
        with no_descriptor_leak():
            listener = await listeners.listen(Address("127.0.0.1", 0), "visitors")
            dialled = sockets.start_connect(socket.AF_INET, listener.getsockname())
            await wait_until_async(lambda: select.select([listener], [], [], 0)[0], "the connection is made")
            accepted, _ = sockets.accept(listener)
            everywhere = await listeners.listen(Address("0.0.0.0", 0), "visitors")
            assert congestion_control(accepted) == congestion_control(dialled) == (wanted or usual)
            assert congestion_control(everywhere) == usual
            for sock in (accepted, dialled, listener, everywhere):
                sock.close()
    finally:
        sockets.should_disable_pacing.cache_clear()


@pytest.mark.parametrize(
    ("host", "code", "why"),
    [
        ("192.0.2.1", errno.EADDRNOTAVAIL, "the address is not one of this host"),
        ("a.name.that.nobody.has.invalid", None, "its name cannot be resolved"),
    ],
)
async def test_a_failed_bind_names_address_purpose_and_reason(host: str, code: int | None, why: str) -> None:
    with (
        no_descriptor_leak(),
        pytest.raises(NetError, match=f"cannot listen on {host}:0 for visitors: {why}") as caught,
    ):
        await listeners.listen(Address(host, 0), "visitors")
    assert code is None or caught.value.errno == code


@pytest.mark.parametrize("addresses", [("::1", "192.0.2.1"), ("192.0.2.1", "127.0.0.1"), ("127.0.0.1", "192.0.2.1")])
async def test_of_a_names_addresses_one_of_this_host_is_listened_on(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    async def resolve(address: Address) -> list[Candidate]:
        return [(await resolve_literal(Address(ip, address.port)))[0] for ip in addresses]

    resolve_literal = resolver.resolve
    monkeypatch.setattr(resolver, "resolve", resolve)
    with contextlib.closing(await listeners.listen(Address("gateway.test", 0), "the tunnel")) as listener:
        assert listener.getsockname()[0] in {"::1", "127.0.0.1"}


@pytest.mark.parametrize(
    ("ip", "is_own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("192.0.2.77", False), ("2001:db8::1", False)],
)
def test_the_kernel_knows_the_addresses_of_this_host(ip: str, is_own: bool) -> None:  # noqa: FBT001  a table's column
    assert is_own_ip(ipaddress.ip_address(ip)) is is_own


async def test_an_address_in_use_is_reported_with_its_errno() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(NetError, match="is in use by another program") as caught:
            await listeners.listen(Address("127.0.0.1", port), "visitors")
        assert caught.value.errno == errno.EADDRINUSE
