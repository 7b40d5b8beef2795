"""A peer without the key is refused and counted, learns nothing, and disturbs no other tunnel user."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.interception import (
    TLS_FIRST_BYTE,
    CertificateAuthority,
    InterceptingProxy,
    interception_contexts,
    is_closed,
)
from tests.support.peers import connect, exchange, time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import Daemon, Pair, ProcessHarness
from tests.support.waiting import wait_until

KEY = "Zq7Wm2Rk9xTv4Lp8"
FIRST_BYTE_S = 2.0


def refused_count(daemon: Daemon, kind: str) -> int:
    """Return how many connection attempts of a kind the daemon has refused."""
    return int(daemon.tunnel().get("refused", {}).get(kind, 0))


def wait_refused(daemon: Daemon, kind: str, *, more_than: int = 0) -> None:
    wait_until(lambda: refused_count(daemon, kind) > more_than, within=5, what=f"{daemon.name} counts {kind} refused")


def start_server_and_client(
    harness: ProcessHarness, user: str, *, server_user: str = f"{KEY}@"
) -> tuple[Daemon, Daemon, Callable[[], int]]:
    """Start a server and a client with another key; return both and a function that counts dialled targets."""
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    server = harness.start_daemon({"t": f"server://{server_user}127.0.0.1:{port}/127.0.0.1:{target.port}?mode=forward"})
    server.wait_state("waiting")
    client = harness.start_daemon({"t": f"client://{user}127.0.0.1:{port}/127.0.0.1:{visitor_port}"}, name="client")
    return server, client, lambda: target.accepted


@pytest.mark.parametrize(
    ("server_user", "user"),
    [
        pytest.param(f"{KEY}@", "wrong-Zq7Wm2Rk9@", id="wrong key"),
        pytest.param(f"{KEY}@", "", id="no key"),
        pytest.param("", f"{KEY}@", id="a key for an open server"),
    ],
)
def test_a_client_without_the_right_key_is_refused(harness: ProcessHarness, server_user: str, user: str) -> None:
    server, client, dialled = start_server_and_client(harness, user, server_user=server_user)
    wait_refused(server, "handshakes", more_than=1)
    lines = [line for line in server.log_text().splitlines() if "key" in line and "127.0.0.1" in line]
    assert lines, f"no log line shows the reason:\n{server.log_text()}"
    shown = client.wait_state("cooldown")
    assert "refused" in shown["reason"]
    assert server.tunnel()["state"] == "waiting"
    assert dialled() == 0
    for secret in (KEY, "wrong-Zq7Wm2Rk9"):
        assert secret not in server.log_text() + client.log_text() + str(server.status()) + str(client.status())


def test_repeated_refusals_do_not_flood_the_log(harness: ProcessHarness) -> None:
    server, _, _ = start_server_and_client(harness, "wrong@")
    wait_refused(server, "handshakes", more_than=3)
    warnings = [line for line in server.log_text().splitlines() if "WARN" in line and "127.0.0.1:" in line]
    assert len(warnings) < refused_count(server, "handshakes")


def test_a_client_without_the_key_does_not_learn_why(harness: ProcessHarness) -> None:
    _, wrong, _ = start_server_and_client(harness, "wrong@")
    _, none, _ = start_server_and_client(harness, "")
    reasons = [re.sub(r"127\.0\.0\.1:\d+", "", client.wait_state("cooldown")["reason"]) for client in (wrong, none)]
    own_knowledge = "; this client has no key"
    assert own_knowledge in reasons[1]
    assert reasons[0] == reasons[1].replace(own_knowledge, ""), "the reason shows whether the server has a key"


def test_a_man_in_the_middle_with_another_certificate_is_refused_by_both_ends(harness: ProcessHarness) -> None:
    forged = interception_contexts(*CertificateAuthority(harness.directory).issue("middle"))
    proxy = harness.close_at_end(InterceptingProxy(interception_contexts=forged))

    pair = harness.start_pair(key=KEY, direction="forward", through=proxy.intercept)
    wait_refused(pair.server, "handshakes")
    shown = pair.client.wait_state("cooldown")
    assert "refused" in shown["reason"]
    assert pair.server.tunnel()["state"] == "waiting"
    assert pair.target.accepted == 0
    assert any(connection.sent for connection in proxy.passages), "the proxy saw the handshake in clear text"
    assert all(KEY.encode() not in connection.sent for connection in proxy.passages)


def test_an_open_tunnel_detects_a_man_in_the_middle_too(harness: ProcessHarness) -> None:
    forged = interception_contexts(*CertificateAuthority(harness.directory).issue("middle"))
    pair = harness.start_pair(through=harness.close_at_end(InterceptingProxy(interception_contexts=forged)).intercept)
    wait_refused(pair.server, "handshakes")
    assert pair.server.tunnel()["state"] == "waiting"


def start_intercepted_pair(
    harness: ProcessHarness, *, both: str = "", server: str = ""
) -> tuple[Pair, InterceptingProxy]:
    """Start a pair behind a proxy on the tunnel port that even has the server's private key."""
    certificate, key = CertificateAuthority(harness.directory).issue("server")
    contexts = interception_contexts(certificate, key)
    proxy = harness.close_at_end(InterceptingProxy(interception_contexts=contexts))

    files = f"tls_cert={certificate}&tls_key={key}"
    pair = harness.start_pair(
        key=KEY, direction="forward", through=proxy.intercept, both=both, server="&".join(filter(None, [files, server]))
    )
    return pair.wait_up(), proxy


def test_a_replayed_handshake_is_refused(harness: ProcessHarness) -> None:
    pair, proxy = start_intercepted_pair(harness)
    link = pair.server.tunnel()["link"]
    handshake = bytes(proxy.controls[0].sent)
    assert handshake
    before = refused_count(pair.server, "handshakes")
    as_client = interception_contexts(*CertificateAuthority(harness.directory, "replay").issue("replay"))[1]
    plain = connect(("127.0.0.1", pair.tunnel_port))
    with as_client.wrap_socket(plain, server_hostname="localhost") as replay:
        replay.sendall(handshake)
        assert is_closed(replay)
    wait_refused(pair.server, "handshakes", more_than=before)
    assert pair.server.tunnel()["link"] == link
    assert pair.target.accepted == 0
    assert exchange(pair.visitors, b"as before") == b"as before"


def test_replayed_ciphertext_is_refused(harness: ProcessHarness) -> None:
    proxy = harness.close_at_end(InterceptingProxy())

    pair = harness.start_pair(key=KEY, through=proxy.intercept).wait_up()
    link = pair.server.tunnel()["link"]
    before = refused_count(pair.server, "handshakes")
    with connect(("127.0.0.1", pair.tunnel_port)) as replay:
        with contextlib.suppress(OSError):
            replay.sendall(bytes(proxy.controls[0].sent))
        assert is_closed(replay)
    wait_refused(pair.server, "handshakes", more_than=before)
    assert pair.server.tunnel()["link"] == link


def test_a_replayed_preface_is_refused(harness: ProcessHarness) -> None:
    pair, proxy = start_intercepted_pair(harness, server="data_port=tunnel")
    prefaces = [bytes(connection.sent[:32]) for connection in proxy.data]
    assert prefaces
    before = refused_count(pair.server, "prefaces")
    for preface in prefaces[:5]:
        with connect(("127.0.0.1", pair.tunnel_port)) as replay:
            replay.sendall(preface + b"GET / HTTP/1.0\r\n\r\n")
            assert is_closed(replay)
    wait_refused(pair.server, "prefaces", more_than=before + min(len(prefaces), 5) - 1)
    assert pair.target.accepted == 0
    assert exchange(pair.visitors, b"as before") == b"as before"


@pytest.mark.parametrize("place", [0, 4, 11, 12, 31])
def test_a_forged_preface_is_refused(harness: ProcessHarness, place: int) -> None:
    """Every byte matters: magic, id, MAC. The proxy changes one byte on connections that are new to the server."""

    def change_one_byte(data: bytes) -> bytes:
        if data[0] == TLS_FIRST_BYTE:
            return data
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    pair = harness.start_pair(
        key=KEY,
        direction="forward",
        server="data_port=tunnel",
        through=harness.close_at_end(InterceptingProxy(change=change_one_byte)).intercept,
    )
    wait_refused(pair.server, "prefaces")
    assert pair.server.tunnel()["pool"]["idle"] == 0
    assert pair.server.tunnel()["state"] != "up"
    assert pair.target.accepted == 0


def test_garbage_and_silence_on_every_port_do_not_keep_the_client_out(harness: ProcessHarness) -> None:
    """10 MB of garbage and 2,000 silent connections, then a client with the key."""
    target = harness.start_target()
    port, visitor_port, data_port = free_port(), free_port(), free_port()
    server = harness.start_daemon(
        {"t": f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse&data_port={data_port}"}
    )
    server.wait_state("waiting")
    for garbage_port in (port, data_port):
        for first in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"NPD\x01", b"GET / HTTP/1.1\r\n"):
            with contextlib.suppress(OSError), connect(("127.0.0.1", garbage_port)) as sock:
                sock.sendall(first + os.urandom(1 << 20))
    silent: list[socket.socket] = []
    try:
        for number in range(2000):
            with contextlib.suppress(OSError):
                silent.append(connect(("127.0.0.1", port), source=f"127.0.{number % 100}.{1 + number % 250}"))
        assert len(silent) > 1000
        harness.start_url(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}")
        time_to_first_byte(("127.0.0.1", visitor_port), within=FIRST_BYTE_S)
    finally:
        for sock in silent:
            sock.close()
    wait_until(
        lambda: sum(filter(None, server.tunnel()["refused"].values())) >= 10,
        within=5,
        what="connection attempts are counted",
    )
    assert server.tunnel()["state"] == "up"


def test_silent_connections_from_the_clients_own_address_do_not_keep_it_out(harness: ProcessHarness) -> None:
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    server = harness.start_daemon({"t": f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse"})
    server.wait_state("waiting")
    silent: list[socket.socket] = []
    try:
        for _ in range(2000):
            with contextlib.suppress(OSError):
                silent.append(connect(("127.0.0.1", port)))
        harness.start_url(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}")
        time_to_first_byte(("127.0.0.1", visitor_port), within=FIRST_BYTE_S)
    finally:
        for sock in silent:
            sock.close()


def test_a_silent_connection_is_closed_after_a_timeout(harness: ProcessHarness) -> None:
    server = harness.start_daemon({"t": f"server://{KEY}@127.0.0.1:{(port := free_port())}/127.0.0.1:{free_port()}"})
    server.wait_state("waiting")
    with connect(("127.0.0.1", port)) as silent, connect(("127.0.0.1", port)) as slow:
        slow.sendall(b"\x16\x03")
        assert is_closed(silent)
        assert is_closed(slow)
    wait_refused(server, "silent", more_than=1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_older_tls_is_refused(harness: ProcessHarness, version: ssl.TLSVersion) -> None:
    server = harness.start_daemon({"t": f"server://{KEY}@127.0.0.1:{(port := free_port())}/127.0.0.1:{free_port()}"})
    server.wait_state("waiting")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    with connect(("127.0.0.1", port)) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock)
    wait_refused(server, "handshakes")


def test_a_client_whose_server_port_is_another_service_shows_a_reason(harness: ProcessHarness) -> None:
    greeter = harness.start_target(lambda sock: sock.sendall(b"220 mail ready\r\n"))
    client = harness.start_daemon({"t": f"client://{KEY}@127.0.0.1:{greeter.port}/127.0.0.1:1"})
    assert client.wait_state("cooldown")["reason"]


def test_the_key_appears_in_no_output(harness: ProcessHarness) -> None:
    """Logs, process titles, status and output, of a single URL and of a file, at level debug."""
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    server_url = f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visitor_port}?log=debug"
    client_url = f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target.port}?log=debug"
    server = harness.start_url(server_url)
    client = harness.start_url(client_url)
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)
    for command in (server, client):
        title = Path(f"/proc/{command.pid}/cmdline").read_bytes()
        assert KEY.encode() not in title, title
        assert b"***@" in title or b"://" not in title
    wrong = harness.start_url(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:99999")
    assert wrong.wait_exit() == 2
    for command in (server, client, wrong):
        assert KEY not in command.log_text() + command.stdout_text()
    daemon = harness.start_daemon({"t": f"client://{KEY}@127.0.0.1:{free_port()}/127.0.0.1:1?log=debug"})
    daemon.wait_state("cooldown")
    for arguments in (("ps",), ("ps", "--json")):
        shown = harness.start_command(*arguments, "--socket", str(daemon.socket))
        shown.wait_exit()
        assert KEY not in shown.log_text() + shown.stdout_text()
    assert KEY not in daemon.log_text()


def test_the_key_may_come_from_a_file_or_the_environment(harness: ProcessHarness) -> None:
    secret = harness.directory / "secret"
    secret.write_text(f"{KEY}\n")
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    harness.start_url(f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?key_file={secret}")
    harness.start_url(f"client://127.0.0.1:{port}/127.0.0.1:{target.port}", env={"NODEPASS_ORCH_KEY": KEY})
    time_to_first_byte(("127.0.0.1", visitor_port), within=5)


def test_an_open_tunnel_warns_unless_both_addresses_are_loopback(harness: ProcessHarness) -> None:
    exposed = harness.start_url(f"server://0.0.0.0:{free_port()}/127.0.0.1:{free_port()}")
    exposed.wait_for_log("WARN.*(open|without a key|no key)")
    private = harness.start_url(f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}")
    private.wait_for_log("listening")
    assert "WARN" not in private.log_text()
