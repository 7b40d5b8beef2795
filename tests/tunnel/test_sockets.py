"""Sockets that connect, and the words for their addresses and errors."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tests.support.sockets import close_with_reset
from tests.support.waiting import wait_until_async
from tunnel.runtime import sockets
from tunnel.runtime.sockets import NetError


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
def test_an_error_is_described_as_the_end_of_a_sentence(error: Exception, sentence: str) -> None:
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
def test_an_address_is_formatted_with_brackets_for_ipv6_and_mapped_ipv4_as_ipv4(address: object, text: str) -> None:
    assert sockets.format_address(address) == text


async def test_the_outcome_of_a_connection_attempt_is_reported() -> None:
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
