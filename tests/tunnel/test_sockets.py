from __future__ import annotations

import contextlib
import errno
import select
import socket

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.sockets import close_with_reset
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address, parse_address
from tunnel.model.spec import Direction, Mode, Role, TunnelSpec
from tunnel.runtime import listeners, resolver, sockets
from tunnel.runtime.resolver import DialTarget
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
def test_the_direction_follows_from_the_address(target: str, direction: Direction) -> None:
    assert listeners.decide_direction(server(target)) is direction
    assert listeners.decide_direction(server(target, Mode.REVERSE)) is Direction.REVERSE
    assert listeners.decide_direction(server(target, Mode.FORWARD)) is Direction.FORWARD


@pytest.mark.parametrize(
    ("role", "direction", "entrance"),
    [
        (Role.SERVER, Direction.REVERSE, True),
        (Role.SERVER, Direction.FORWARD, False),
        (Role.CLIENT, Direction.REVERSE, False),
        (Role.CLIENT, Direction.FORWARD, True),
    ],
)
def test_who_is_the_entrance(role: Role, direction: Direction, entrance: bool) -> None:  # noqa: FBT001  a table's column
    spec = TunnelSpec(role=role, tunnel=Address("", 1), target=Address("", 2))
    assert listeners.is_ingress(spec, direction) is entrance


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "it refused the connection"),
        (TimeoutError(), "it did not answer in time"),
        (TimeoutError(errno.ETIMEDOUT, "x"), "it did not answer in time"),
        (OSError(errno.EHOSTUNREACH, "x"), "there is no route to it"),
        (OSError(errno.EMFILE, "x"), "this process has no file descriptors left"),
        (OSError(errno.EPIPE, "x"), "broken pipe"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "its name cannot be resolved"),
        (NetError("a sentence"), "a sentence"),
        (ValueError("odd"), "odd"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_are_ends_of_sentences(error: Exception, sentence: str) -> None:
    assert sockets.describe_error(error) == sentence


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        ("", "?"),
        (None, "?"),
    ],
)
def test_addresses_as_people_write_them(address: object, text: str) -> None:
    assert sockets.format_address(address) == text


async def test_a_wildcard_takes_both_families_and_an_address_its_own() -> None:
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
async def test_what_stays_on_this_host_is_not_paced(
    monkeypatch: pytest.MonkeyPatch, default: bytes, wanted: bytes | None
) -> None:
    def control(sock: socket.SocketType) -> bytes:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")

    with socket.socket() as probe:
        usual = control(probe)
    monkeypatch.setattr(sockets, "_default_congestion_control", lambda: default)
    sockets.should_disable_pacing.cache_clear()
    try:
        with no_descriptor_leak():
            listener = await listeners.listen(Address("127.0.0.1", 0), "visitors")
            dialled = sockets.start_connect(socket.AF_INET, listener.getsockname())
            await wait_until_async(lambda: select.select([listener], [], [], 0)[0], "the connection is made")
            accepted, _ = sockets.accept(listener)
            everywhere = await listeners.listen(Address("0.0.0.0", 0), "visitors")
            assert control(accepted) == control(dialled) == (wanted or usual)
            assert control(everywhere) == usual
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
async def test_what_cannot_be_listened_on_is_said(host: str, code: int | None, why: str) -> None:
    with (
        no_descriptor_leak(),
        pytest.raises(NetError, match=f"cannot listen on {host}:0 for visitors: {why}") as caught,
    ):
        await listeners.listen(Address(host, 0), "visitors")
    assert code is None or caught.value.errno == code


async def test_an_address_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(NetError, match="is in use by another program") as caught:
            await listeners.listen(Address("127.0.0.1", port), "visitors")
        assert caught.value.errno == errno.EADDRINUSE


async def test_a_name_that_cannot_even_be_asked_for_is_an_error_of_names() -> None:
    """No URL lets one through; whatever does gets a sentence all the same."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  its sentence is looked at below
        await resolver.resolve(Address("a" * 70 + ".example", 1))
    assert sockets.describe_error(caught.value) == "its name cannot be resolved"


async def test_connecting_shows_how_it_went() -> None:
    with no_descriptor_leak():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            name = listener.getsockname()
            sock = sockets.start_connect(socket.AF_INET, name)
            peer, _ = listener.accept()
            assert sockets.get_connect_error(sock) is None
            assert sockets.format_peer(sock) == sockets.format_address(name)
            close_with_reset(peer)

            def is_reset() -> bool:
                return sockets.format_peer(sock) == "?"

            await wait_until_async(is_reset, "the reset arrived")
            error = sockets.get_connect_error(sock)
            assert error is not None
            assert sockets.describe_error(error) == "it reset the connection"
            sock.close()
        refused = sockets.start_connect(socket.AF_INET, name)
        await wait_until_async(lambda: select.select([], [refused], [], 0)[1], "it is answered")
        error = sockets.get_connect_error(refused)
        assert error is not None
        assert sockets.describe_error(error) == "it refused the connection"
        refused.close()


@pytest.mark.parametrize(
    ("host", "dialled"), [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.5", "127.0.0.5")]
)
async def test_a_literal_is_asked_for_once_and_every_interface_means_this_host(host: str, dialled: str) -> None:
    target = DialTarget(Address(host, 80))
    [(_, sockaddr)] = await target.resolve()
    assert sockaddr[:2] == (dialled, 80)
    target.invalidate()
    assert target.cached() is not None
