"""Whoever does not know the key gets nothing: refused, counted, told nothing, and nobody else is disturbed."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.harness import Daemon, Pair, Stage, until
from tests.integration.peers import connect, exchange, first_byte
from tests.integration.strangers import TLS_FIRST_BYTE, Authority, Middle, contexts, is_closed
from tests.ports import free_port

KEY = "Zq7Wm2Rk9xTv4Lp8"
PROMISE = 2.0


def refused(daemon: Daemon, kind: str) -> int:
    """How many attempts of a kind it has turned away."""
    return int(daemon.tunnel().get("refused", {}).get(kind, 0))


def is_refused(daemon: Daemon, kind: str, *, more_than: int = 0) -> None:
    until(lambda: refused(daemon, kind) > more_than, within=5, what=f"{daemon.name} counts {kind} refused")


def server_and(stage: Stage, user: str, *, server_user: str = f"{KEY}@") -> tuple[Daemon, Daemon, Callable[[], int]]:
    """A server, a client with another idea of the key, and how many connections the target has seen."""
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server = stage.up({"t": f"server://{server_user}127.0.0.1:{port}/127.0.0.1:{target.port}?mode=forward"})
    server.is_in("waiting")
    client = stage.up({"t": f"client://{user}127.0.0.1:{port}/127.0.0.1:{visitor_port}"}, name="client")
    return server, client, lambda: target.accepted


@pytest.mark.parametrize(
    ("server_user", "user"),
    [
        pytest.param(f"{KEY}@", "wrong-Zq7Wm2Rk9@", id="wrong key"),
        pytest.param(f"{KEY}@", "", id="no key"),
        pytest.param("", f"{KEY}@", id="a key for an open server"),
    ],
)
def test_a_client_without_the_key_is_refused(stage: Stage, server_user: str, user: str) -> None:
    server, client, dialled = server_and(stage, user, server_user=server_user)
    is_refused(server, "handshakes", more_than=1)
    lines = [line for line in server.said().splitlines() if "key" in line and "127.0.0.1" in line]
    assert lines, f"no line says why:\n{server.said()}"
    shown = client.is_in("cooldown")
    assert "refused" in shown["reason"]
    assert server.tunnel()["state"] == "waiting"
    assert dialled() == 0
    for secret in (KEY, "wrong-Zq7Wm2Rk9"):
        assert secret not in server.said() + client.said() + str(server.status()) + str(client.status())


def test_repeated_refusals_do_not_flood_the_log(stage: Stage) -> None:
    server, _, _ = server_and(stage, "wrong@")
    is_refused(server, "handshakes", more_than=3)
    warnings = [line for line in server.said().splitlines() if "WARN" in line and "127.0.0.1:" in line]
    assert len(warnings) < refused(server, "handshakes")


def test_the_end_without_the_key_learns_nothing_of_the_reason(stage: Stage) -> None:
    _, wrong, _ = server_and(stage, "wrong@")
    _, none, _ = server_and(stage, "")
    reasons = {client.is_in("cooldown")["reason"].replace("127.0.0.1", "") for client in (wrong, none)}
    assert all("asks for a key" not in reason for reason in reasons)


def test_a_man_in_the_middle_with_his_own_certificate_is_refused_by_both(stage: Stage) -> None:
    forged = contexts(*Authority(stage.directory).issue("middle"))
    middles: list[Middle] = []

    def through(port: int) -> int:
        middles.append(stage.keep(Middle(("127.0.0.1", port), contexts=forged)))
        return middles[0].port

    pair = stage.pair(key=KEY, direction="forward", through=through)
    is_refused(pair.server, "handshakes")
    shown = pair.client.is_in("cooldown")
    assert "refused" in shown["reason"]
    assert pair.server.tunnel()["state"] == "waiting"
    assert pair.target.accepted == 0
    assert any(passage.sent for passage in middles[0].passages), "the middle saw the handshake in the clear"
    assert all(KEY.encode() not in passage.sent for passage in middles[0].passages)


def test_an_open_tunnel_notices_a_man_in_the_middle_too(stage: Stage) -> None:
    forged = contexts(*Authority(stage.directory).issue("middle"))
    pair = stage.pair(through=lambda port: stage.keep(Middle(("127.0.0.1", port), contexts=forged)).port)
    is_refused(pair.server, "handshakes")
    assert pair.server.tunnel()["state"] == "waiting"


def overheard(stage: Stage, *, both: str = "", server: str = "") -> tuple[Pair, Middle]:
    """A pair that is up, and somebody on the tunnel port who even has the server's private key."""
    certificate, key = Authority(stage.directory).issue("server")
    middles: list[Middle] = []

    def through(port: int) -> int:
        middles.append(stage.keep(Middle(("127.0.0.1", port), contexts=contexts(certificate, key))))
        return middles[0].port

    files = f"tls_cert={certificate}&tls_key={key}"
    pair = stage.pair(
        key=KEY, direction="forward", through=through, both=both, server="&".join(filter(None, [files, server]))
    )
    return pair.up(), middles[0]


def test_a_replayed_handshake_is_refused(stage: Stage) -> None:
    pair, middle = overheard(stage)
    link = pair.server.tunnel()["link"]
    spoken = bytes(middle.controls[0].sent)
    assert spoken
    before = refused(pair.server, "handshakes")
    as_client = contexts(*Authority(stage.directory, "replay").issue("replay"))[1]
    plain = connect(("127.0.0.1", pair.tunnel_port))
    with as_client.wrap_socket(plain, server_hostname="localhost") as replay:
        replay.sendall(spoken)
        assert is_closed(replay)
    is_refused(pair.server, "handshakes", more_than=before)
    assert pair.server.tunnel()["link"] == link
    assert pair.target.accepted == 0
    assert exchange(pair.visitors, b"as before") == b"as before"


def test_replayed_ciphertext_is_refused(stage: Stage) -> None:
    middles: list[Middle] = []

    def through(port: int) -> int:
        middles.append(stage.keep(Middle(("127.0.0.1", port))))
        return middles[0].port

    pair = stage.pair(key=KEY, through=through).up()
    link = pair.server.tunnel()["link"]
    before = refused(pair.server, "handshakes")
    with connect(("127.0.0.1", pair.tunnel_port)) as replay:
        with contextlib.suppress(OSError):
            replay.sendall(bytes(middles[0].controls[0].sent))
        assert is_closed(replay)
    is_refused(pair.server, "handshakes", more_than=before)
    assert pair.server.tunnel()["link"] == link


def test_a_replayed_preface_is_refused(stage: Stage) -> None:
    pair, middle = overheard(stage, server="data_port=tunnel")
    prefaces = [bytes(passage.sent[:32]) for passage in middle.data]
    assert prefaces
    before = refused(pair.server, "prefaces")
    for preface in prefaces[:5]:
        with connect(("127.0.0.1", pair.tunnel_port)) as replay:
            replay.sendall(preface + b"GET / HTTP/1.0\r\n\r\n")
            assert is_closed(replay)
    is_refused(pair.server, "prefaces", more_than=before + min(len(prefaces), 5) - 1)
    assert pair.target.accepted == 0
    assert exchange(pair.visitors, b"as before") == b"as before"


@pytest.mark.parametrize("place", [0, 4, 11, 12, 31])
def test_a_forged_preface_is_refused(stage: Stage, place: int) -> None:
    """Every byte matters: magic, id, MAC. The middle changes one, on connections nobody has seen before."""

    def forge(data: bytes) -> bytes:
        if data[0] == TLS_FIRST_BYTE:
            return data
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    pair = stage.pair(
        key=KEY,
        direction="forward",
        server="data_port=tunnel",
        through=lambda port: stage.keep(Middle(("127.0.0.1", port), change=forge)).port,
    )
    is_refused(pair.server, "prefaces")
    assert pair.server.tunnel()["pool"]["idle"] == 0
    assert pair.server.tunnel()["state"] != "up"
    assert pair.target.accepted == 0


def test_garbage_and_silence_on_every_port_disturb_nobody(stage: Stage) -> None:
    """10 MB of garbage and 2,000 connections that say nothing; then a client that knows the key."""
    target = stage.target()
    port, visitor_port, data_port = free_port(), free_port(), free_port()
    server = stage.up(
        {"t": f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse&data_port={data_port}"}
    )
    server.is_in("waiting")
    for door in (port, data_port):
        for first in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"NPD\x01", b"GET / HTTP/1.1\r\n"):
            with contextlib.suppress(OSError), connect(("127.0.0.1", door)) as sock:
                sock.sendall(first + os.urandom(1 << 20))
    silent: list[socket.socket] = []
    try:
        for number in range(2000):
            with contextlib.suppress(OSError):
                silent.append(connect(("127.0.0.1", port), source=f"127.0.{number % 100}.{1 + number % 250}"))
        assert len(silent) > 1000
        stage.url(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}")
        first_byte(("127.0.0.1", visitor_port), within=PROMISE)
    finally:
        for sock in silent:
            sock.close()
    until(lambda: sum(server.tunnel()["refused"].values()) >= 10, within=5, what="strangers are counted")
    assert server.tunnel()["state"] == "up"


def test_silence_from_the_clients_own_address_does_not_keep_it_out(stage: Stage) -> None:
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server = stage.up({"t": f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse"})
    server.is_in("waiting")
    silent: list[socket.socket] = []
    try:
        for _ in range(2000):
            with contextlib.suppress(OSError):
                silent.append(connect(("127.0.0.1", port)))
        stage.url(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}")
        first_byte(("127.0.0.1", visitor_port), within=PROMISE)
    finally:
        for sock in silent:
            sock.close()


def test_a_silent_stranger_is_closed_after_a_while(stage: Stage) -> None:
    server = stage.up({"t": f"server://{KEY}@127.0.0.1:{(port := free_port())}/127.0.0.1:{free_port()}"})
    server.is_in("waiting")
    with connect(("127.0.0.1", port)) as silent, connect(("127.0.0.1", port)) as slow:
        slow.sendall(b"\x16\x03")
        assert is_closed(silent)
        assert is_closed(slow)
    is_refused(server, "silent", more_than=1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_older_tls_is_refused(stage: Stage, version: ssl.TLSVersion) -> None:
    server = stage.up({"t": f"server://{KEY}@127.0.0.1:{(port := free_port())}/127.0.0.1:{free_port()}"})
    server.is_in("waiting")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    with connect(("127.0.0.1", port)) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock)
    is_refused(server, "handshakes")


def test_a_client_of_a_port_that_is_no_server_says_so(stage: Stage) -> None:
    greeter = stage.target(lambda sock: sock.sendall(b"220 mail ready\r\n"))
    client = stage.up({"t": f"client://{KEY}@127.0.0.1:{greeter.port}/127.0.0.1:1"})
    assert client.is_in("cooldown")["reason"]


def test_the_key_is_nowhere_where_we_write(stage: Stage) -> None:
    """Logs, process titles, status, output; of the command with a URL and of the file, at the most talkative level."""
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server_url = f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor_port}?log=debug"
    client_url = f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}?log=debug"
    server = stage.url(server_url)
    client = stage.url(client_url)
    first_byte(("127.0.0.1", visitor_port), within=5)
    for command in (server, client):
        title = Path(f"/proc/{command.pid}/cmdline").read_bytes()
        assert KEY.encode() not in title, title
        assert b"***@" in title or b"://" not in title
    wrong = stage.url(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:99999")
    assert wrong.ends() == 2
    for command in (server, client, wrong):
        assert KEY not in command.said() + command.printed()
    daemon = stage.up({"t": f"client://{KEY}@127.0.0.1:{free_port()}/127.0.0.1:1?log=debug"})
    daemon.is_in("cooldown")
    for arguments in (("ps",), ("ps", "--json")):
        shown = stage.run(*arguments, "--socket", str(daemon.socket))
        shown.ends()
        assert KEY not in shown.said() + shown.printed()
    assert KEY not in daemon.said()


def test_the_key_may_come_from_a_file_or_the_environment(stage: Stage) -> None:
    secret = stage.directory / "secret"
    secret.write_text(f"{KEY}\n")
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    stage.url(f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?key_file={secret}")
    stage.url(f"client://127.0.0.1:{port}/127.0.0.1:{target.port}", env={"NODEPASS_ORCH_KEY": KEY})
    first_byte(("127.0.0.1", visitor_port), within=5)


def test_an_open_tunnel_warns_unless_both_addresses_are_loopback(stage: Stage) -> None:
    exposed = stage.url(f"server://0.0.0.0:{free_port()}/127.0.0.1:{free_port()}")
    exposed.says("WARN.*(open|without a key|no key)")
    private = stage.url(f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}")
    private.says("listening")
    assert "WARN" not in private.said()
