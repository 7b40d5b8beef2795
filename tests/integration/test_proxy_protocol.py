"""Visitors' addresses through a tunnel in PROXY headers, to and from real programs."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.test_programs import Program, find, needs
from tests.support.peers import SOCKET_TIMEOUT_S, Address
from tests.support.ports import free_port
from tests.support.processes import Pair, ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

BULK = os.urandom(4 << 20)
VISITOR = "127.0.0.77"
PATHS = [("reverse", "0"), ("forward", "1"), ("reverse", "1"), ("forward", "0")]
paths = pytest.mark.parametrize(("direction", "tls"), PATHS if IS_FULL_SCALE else PATHS[:2])
both_versions = pytest.mark.parametrize("version", ["v1", "v2"])


class Receiver(Program):
    """A program that expects headers, and logs ``ADDRESS:PORT UNIQUE-ID`` of each request."""

    def __init__(self, command: list[str], port: int, log: Path, requests: Path) -> None:
        self._requests = requests
        super().__init__(command, port, log)

    def logged(self) -> list[str]:
        """Return the logged requests that came with a header."""
        return re.findall(rf"{re.escape(VISITOR)}:\d+ .*", self._requests.read_text())


def start_nginx(harness: ProcessHarness) -> Receiver:
    port, directory = free_port(), harness.directory / "receiver"
    (directory / "html").mkdir(parents=True)
    (directory / "html" / "bulk").write_bytes(BULK)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    config = directory / "nginx.conf"
    config.write_text(
        f"{user} daemon off; worker_processes 1; pid {directory}/pid; error_log stderr; events {{ }}"
        f"http {{ {temporary} log_format seen '$proxy_protocol_addr:$proxy_protocol_port -';"
        f"access_log {directory}/requests seen;"
        f"server {{ listen 127.0.0.1:{port} proxy_protocol; root {directory}/html; }} }}"
    )
    command = [str(find("nginx")), "-c", str(config), "-p", str(directory), "-e", "stderr"]
    return harness.close_at_end(Receiver(command, port, directory / "log", directory / "requests"))


def start_haproxy(harness: ProcessHarness) -> Receiver:
    port, directory = free_port(), harness.directory / "receiver"
    directory.mkdir()
    (directory / "bulk").write_bytes(BULK)
    config = directory / "haproxy.cfg"
    config.write_text(
        "global\n log stdout format raw local0\n tune.bufsize 16384\n"
        "defaults\n mode http\n timeout client 30s\n timeout connect 5s\n timeout server 30s\n"
        f"frontend f\n bind 127.0.0.1:{port} accept-proxy\n log global\n"
        ' log-format "%ci:%cp %[fc_pp_unique_id]"\n default_backend b\n'
        f"backend b\n server s 127.0.0.1:{start_bulk_server(harness)}\n"
    )
    log = directory / "log"
    return harness.close_at_end(Receiver([str(find("haproxy")), "-f", str(config)], port, log, log))


def start_bulk_server(harness: ProcessHarness) -> int:
    """Start an HTTP server of the bulk file for programs that serve no files themselves."""
    port, directory = free_port(), harness.directory / "receiver"
    command = ["python3", "-P", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(directory)]
    return harness.close_at_end(Program(command, port, directory / "files.log")).port


def start_pair(
    harness: ProcessHarness, receiver: Receiver, direction: str, tls: str, *, ingress: str = "", egress: str = ""
) -> Pair:
    """Start a pair with options of its ingress and of its egress."""
    server, client = (ingress, egress) if direction == "reverse" else (egress, ingress)
    pair = harness.start_pair(receiver, direction=direction, both=f"tls={tls}", server=server, client=client)
    return pair.wait_up()


def fetch(address: Address, source: str = VISITOR) -> tuple[str, int]:
    """Fetch the bulk file from a source address; return its digest and the visitor's port."""
    connection = http.client.HTTPConnection(*address, timeout=SOCKET_TIMEOUT_S, source_address=(source, 0))
    connection.connect()
    port = connection.sock.getsockname()[1]
    connection.request("GET", "/bulk")
    digest = hashlib.sha256(connection.getresponse().read()).hexdigest()
    connection.close()
    return digest, port


def assert_visitor_is_seen(pair: Pair, receiver: Receiver, *, has_id: bool) -> None:
    """Fetch bulk as a visitor: intact, and with the visitor's address in the log of the receiver."""
    digest, port = fetch(pair.visitors)
    assert digest == hashlib.sha256(BULK).hexdigest()
    wait_until(receiver.logged, within=5, what="the request is logged")
    [line] = receiver.logged()
    address, ident = line.split()
    assert address == f"{VISITOR}:{port}"
    if has_id:
        link = pair.server.tunnel()["link"]
        assert re.fullmatch(rf"{link}-\d+(\.\d+)?", ident), (link, ident)
    else:
        assert ident == "-"


@needs("nginx")
@paths
@both_versions
def test_nginx_logs_the_visitors_address(harness: ProcessHarness, direction: str, tls: str, version: str) -> None:
    receiver = start_nginx(harness)
    pair = start_pair(harness, receiver, direction, tls, egress=f"proxy={version}")
    assert_visitor_is_seen(pair, receiver, has_id=False)


@needs("haproxy")
@paths
@both_versions
def test_haproxy_logs_the_visitors_address(harness: ProcessHarness, direction: str, tls: str, version: str) -> None:
    receiver = start_haproxy(harness)
    pair = start_pair(harness, receiver, direction, tls, egress=f"proxy={version}")
    assert_visitor_is_seen(pair, receiver, has_id=version == "v2")


@needs("nginx", "haproxy")
@paths
@pytest.mark.parametrize("sends", ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_a_balancer_in_front_passes_its_visitors_addresses_through(
    harness: ProcessHarness, direction: str, tls: str, sends: str
) -> None:
    receiver = start_nginx(harness)
    pair = start_pair(harness, receiver, direction, tls, ingress="proxy_from=127.0.0.1", egress="proxy=v2")
    balancer = start_balancer(harness, pair.visitors, sends)
    assert_visitor_is_seen(replace(pair, visitors=balancer.address), receiver, has_id=False)
    ingress = pair.server if direction == "reverse" else pair.client
    wait_until(lambda: ingress.tunnel()["connections"]["total"] > 1, within=10, what="health checks are served")
    assert ingress.tunnel()["refused"]["proxy"] == 0


def start_balancer(harness: ProcessHarness, server: Address, sends: str) -> Program:
    """Start HAProxy in front of a server; its health checks are announced as LOCAL by version 2."""
    port, directory = free_port(), harness.directory / "balancer"
    directory.mkdir()
    config = directory / "haproxy.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout client 30s\n timeout connect 5s\n timeout server 30s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n unique-id-format %[uuid()]\n default_backend b\n"
        f"backend b\n server s {server[0]}:{server[1]} {sends} check inter 500\n"
    )
    return harness.close_at_end(Program([str(find("haproxy")), "-f", str(config)], port, directory / "log"))
