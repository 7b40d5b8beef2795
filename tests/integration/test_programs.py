"""Real programs through a tunnel, skipped where they are not installed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from tests.support.peers import SOCKET_TIMEOUT_S, Target, connect, receive_exactly
from tests.support.ports import free_port
from tests.support.processes import Pair, ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

SECONDS = "10" if IS_FULL_SCALE else "1"

both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip the test if a program is not installed; the reason names it."""
    absent = [program for program in programs if not find(program)]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def find(program: str) -> str | None:
    """Return the path of a program; Debian's directories for servers are searched too."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    return shutil.which(program, path=":".join(places))


def run(*command: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command and assert that it succeeds."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=180, **options)  # type: ignore[call-overload]  # typeshed cannot pass options on
    assert done.returncode == 0, f"{command}: {done.stdout!r} {done.stderr!r}"
    return done  # type: ignore[no-any-return]  # typeshed cannot pass options on


class Program(Target):
    """A server program as a tunnel's target."""

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        self.host, self.port = "127.0.0.1", port
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

        def answers() -> bool:
            assert self._process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), connect(self.address, timeout=1):
                return True
            return False

        try:
            wait_until(answers, within=15, what=lambda: f"{command[0]} listens: {log.read_text()}")
        except AssertionError:
            self.close()
            raise

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture
def nginx(harness: ProcessHarness) -> Program:
    port = free_port()
    directory = harness.directory / "nginx"
    (directory / "html").mkdir(parents=True)
    (directory / "html" / "index.html").write_text("x" * 1024)
    (directory / "html" / "big").write_bytes(random.Random(6).randbytes(5 << 20))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    config = directory / "nginx.conf"
    config.write_text(
        f"{user} daemon off; worker_processes 1; pid {directory}/pid; error_log stderr;"
        f"events {{ worker_connections 4096; }}"
        f"http {{ access_log off; keepalive_requests 1000000; {temporary}"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; root {directory}/html; }} }}"
    )
    command = [str(find("nginx")), "-c", str(config), "-p", str(directory), "-e", "stderr"]
    return harness.close_at_end(Program(command, port, directory / "log"))


@needs("nginx", "wrk")
@both_directions
@pytest.mark.parametrize("tls", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_nginx_serves_wrk_without_errors(harness: ProcessHarness, nginx: Program, direction: str, tls: str) -> None:
    pair = harness.start_pair(nginx, direction=direction, both=f"tls={tls}").wait_up()
    url = f"http://127.0.0.1:{pair.visitors[1]}/index.html"
    for load in (["-c64"], ["-c32", "-H", "Connection: close"]):  # connections that stay, and one for each request
        output = run(str(find("wrk")), "-t1", f"-d{SECONDS}s", "--timeout", "30s", *load, url).stdout.decode()
        assert "Socket errors" not in output, output
        assert "Non-2xx" not in output, output
        assert pair.server.tunnel()["connections"]["failed"] == 0


@needs("redis-server", "redis-benchmark")
@pytest.mark.parametrize("direction", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_redis_benchmark_runs_without_errors(harness: ProcessHarness, direction: str) -> None:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(harness.directory)]
    command = [str(find("redis-server")), *options]
    redis = harness.close_at_end(Program(command, port, harness.directory / "redis.log"))
    pair = harness.start_pair(redis, direction=direction).wait_up()
    for options in (["-P", "16"], ["-k", "0", "-n", "2000"]):
        output = run(
            str(find("redis-benchmark")), "-h", "127.0.0.1", "-p", str(pair.visitors[1]), "-n", "20000", "-c", "50",
            "-t", "set,get", "-q", *options,
        )  # fmt: skip
        assert b"rror" not in output.stdout + output.stderr, output
    assert pair.server.tunnel()["connections"]["failed"] == 0


@pytest.fixture
def postgres(harness: ProcessHarness) -> Generator[Program]:
    directory = Path(tempfile.mkdtemp(prefix="np-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # postgres refuses to run as root
        shutil.chown(directory, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    try:
        data = str(directory / "data")
        run(*as_user, str(find("initdb")), "-D", data, "-U", "tester", "-A", "trust", "--no-sync", cwd="/")
        port = free_port()
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        command = [*as_user, str(find("postgres")), "-D", data, "-p", str(port), "-k", str(directory), *options]
        program = Program(command, port, harness.directory / "postgres.log")
        try:
            yield program
        finally:
            program.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@needs("postgres", "initdb", "pgbench")
def test_pgbench_runs_without_failed_transactions(harness: ProcessHarness, postgres: Program) -> None:
    pair = harness.start_pair(postgres, direction="forward").wait_up()
    pgbench = [str(find("pgbench")), "-h", "127.0.0.1", "-p", str(pair.visitors[1]), "-U", "tester"]
    run(*pgbench, "-i", "-s", "1", "-q", "postgres")
    for options in (["-c", "8", "-j", "2", "-T", SECONDS], ["-C", "-c", "4", "-t", "30"]):
        output = run(*pgbench, *options, "postgres").stdout.decode()
        assert "number of failed transactions: 0" in output, output
    assert pair.server.tunnel()["connections"]["failed"] == 0


@needs("sshd", "ssh", "scp", "ssh-keygen")
@both_directions
def test_ssh_and_scp_transfer_files_unchanged(harness: ProcessHarness, direction: str) -> None:
    directory = harness.directory / "ssh"
    directory.mkdir(mode=0o700)
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs the directory, which only its system service creates
    port = free_port()
    config = directory / "config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\n"
        "StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM yes\nPidFile none\n"
        "Subsystem sftp internal-sftp\n"
    )
    sshd = harness.close_at_end(Program([str(find("sshd")), "-D", "-e", "-f", str(config)], port, directory / "log"))
    pair = harness.start_pair(sshd, direction=direction).wait_up()
    common = ["-F", "none", "-i", str(directory / "user"), "-o", "BatchMode=yes"]
    common += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={directory}/known"]
    user = run("id", "-un").stdout.decode().strip()
    payload = random.Random(7).randbytes(5 << 20)
    there = f"{user}@127.0.0.1"
    answer = run("ssh", *common, "-p", str(pair.visitors[1]), there, "sha256sum", input=payload)
    assert answer.stdout.split()[0].decode() == hashlib.sha256(payload).hexdigest()
    (directory / "up").write_bytes(payload)
    run("scp", *common, "-P", str(pair.visitors[1]), str(directory / "up"), f"{there}:{directory}/there")
    run("scp", *common, "-P", str(pair.visitors[1]), f"{there}:{directory}/there", str(directory / "back"))
    assert (directory / "back").read_bytes() == payload


def websocket(sock: socket.socket) -> None:
    """Serve WebSocket (RFC 6455) without a library: answer the handshake, then echo every short frame unmasked."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += sock.recv(1)
    key = next(line.partition(b": ")[2] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324  required by the RFC
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    sock.sendall(head + accept + b"\r\n\r\n")
    while frame := receive_exactly(sock, 2):
        mask = receive_exactly(sock, 4)
        body = receive_exactly(sock, frame[1] & 0x7F)
        sock.sendall(bytes([frame[0], len(body)]) + bytes(b ^ mask[n % 4] for n, b in enumerate(body)))


@both_directions
def test_a_websocket_carries_messages_and_survives_silence(harness: ProcessHarness, direction: str) -> None:
    pair = harness.start_pair(websocket, direction=direction).wait_up()
    with connect(pair.visitors) as sock:
        sock.sendall(
            b"GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of the RFC
        for number in range(200):
            text = f"message {number}".encode()
            mask = number.to_bytes(4, "big")
            sock.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(b ^ mask[n % 4] for n, b in enumerate(text)))
            assert receive_exactly(sock, 2 + len(text)) == bytes([0x81, len(text)]) + text
        time.sleep(1)  # the silence that the connection must survive
        sock.sendall(bytes([0x81, 0x80]) + b"mask")
        assert receive_exactly(sock, 2) == bytes([0x81, 0])


def start_pair_of_both(harness: ProcessHarness, program: Program, direction: str) -> Pair:
    """Start a tunnel that forwards TCP and UDP on one port."""
    return harness.start_pair(program, direction=direction, both="proto=both").wait_up()


@needs("dnsmasq", "dig")
@both_directions
def test_dig_asks_dnsmasq_over_udp_and_tcp_on_one_port(harness: ProcessHarness, direction: str) -> None:
    port = free_port()
    options = ["--no-resolv", "--no-hosts", "--pid-file=", f"--port={port}", "--listen-address=127.0.0.1"]
    command = [str(find("dnsmasq")), "--keep-in-foreground", "--conf-file=/dev/null", "--bind-interfaces", *options]
    command += ["--address=/example.test/192.0.2.7", *(["--user=root"] if os.geteuid() == 0 else [])]
    dnsmasq = harness.close_at_end(Program(command, port, harness.directory / "dnsmasq.log"))
    pair = start_pair_of_both(harness, dnsmasq, direction)
    where = ["@127.0.0.1", "-p", str(pair.visitors[1]), "+short", "+tries=1", "+time=10"]
    for transport in ("+notcp", "+tcp", "+notcp"):
        answer = run(str(find("dig")), *where, transport, "a.example.test").stdout
        assert answer == b"192.0.2.7\n", transport
    assert pair.server.tunnel()["connections"]["total"] == 3


@needs("iperf3")
@both_directions
def test_iperf3_controls_over_tcp_what_it_sends_over_udp_to_the_same_port(
    harness: ProcessHarness, direction: str
) -> None:
    port = free_port()
    command = [str(find("iperf3")), "-s", "-B", "127.0.0.1", "-p", str(port)]
    pair = start_pair_of_both(
        harness, harness.close_at_end(Program(command, port, harness.directory / "log")), direction
    )
    sent = ["-u", "-b", "2M", "-l", "1200", "-t", "1"]
    output = run(str(find("iperf3")), "-c", "127.0.0.1", "-p", str(pair.visitors[1]), *sent, "-J").stdout
    total = json.loads(output)["end"]["sum"]
    assert total["packets"] > 100
    assert total["lost_percent"] < (5 if IS_FULL_SCALE else 50), total  # a busy machine keeps iperf3 from reading


def mail(sock: socket.socket) -> None:
    """Serve mail (RFC 5321): the server sends first and accepts every message."""
    stream = sock.makefile("rwb", buffering=0)
    stream.write(b"220 localhost ready\r\n")
    while line := stream.readline():
        verb = line[:4].upper()
        if verb == b"DATA":
            stream.write(b"354 send the message\r\n")
            while stream.readline() != b".\r\n":
                pass
        stream.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
        if verb == b"QUIT":
            return


@both_directions
def test_a_mail_client_works_with_a_server_that_sends_first(harness: ProcessHarness, direction: str) -> None:
    pair = harness.start_pair(mail, direction=direction).wait_up()
    for _ in range(5):
        with smtplib.SMTP(*pair.visitors, timeout=SOCKET_TIMEOUT_S) as client:
            refused = client.sendmail("a@localhost", ["b@localhost"], "Subject: test\r\n\r\n" + "line\r\n" * 5000)
            assert refused == {}


@needs("nginx")
@both_directions
def test_a_large_file_over_http_arrives_unchanged(harness: ProcessHarness, nginx: Program, direction: str) -> None:
    pair = harness.start_pair(nginx, direction=direction).wait_up()
    connection = http.client.HTTPConnection(*pair.visitors, timeout=SOCKET_TIMEOUT_S)
    try:
        for _ in range(5):
            connection.request("GET", "/big")
            assert connection.getresponse().read() == random.Random(6).randbytes(5 << 20)
    finally:
        connection.close()
