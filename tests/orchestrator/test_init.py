"""``init``: two files for a first tunnel, which pass ``check --strict`` and are never written over others."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO, Any

import pytest

from orchestrator.authoring import starter
from orchestrator.commands import command_line
from orchestrator.config.load import load
from orchestrator.config.manifest import Entry
from tunnel.model.spec import End, Mode, Proto


def run(directory: Path, *options: str) -> int:
    return command_line.run(["init", "--directory", str(directory), *options])


def pair(directory: Path) -> tuple[Entry, Entry]:
    manifests = [load(directory / name, {}) for name in ("server.yaml", "client.yaml")]
    assert all(not manifest.warnings for manifest in manifests), "check --strict accepts both"
    (server,), (client,) = (manifest.entries for manifest in manifests)
    return server, client


def test_init_writes_a_pair_that_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--server", "203.0.113.5") == 0
    server, client = pair(tmp_path)
    assert (server.url, client.url) == (
        "server://0.0.0.0:10101/0.0.0.0:8080",
        "client://203.0.113.5:10101/127.0.0.1:3000",
    )
    assert server.spec.key == client.spec.key
    assert server.spec.key is not None
    assert server.spec.key.random_bytes is not None, "a key of keygen"
    assert server.spec.service == client.spec.service == "web"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/server.yaml for 203.0.113.5,",
        f"and {tmp_path}/client.yaml for the other host: copy that file there. Then run:",
        f"  on 203.0.113.5:  nodepass-orch up -d {tmp_path}/server.yaml",
        "  on the other host:  nodepass-orch up -d client.yaml --wait",
        "Visitors of port 8080 of 203.0.113.5 then reach 127.0.0.1:3000 of the other host.",
        "Both files contain the key, and only their owner can read them (mode 0600): keep that where you copy them.",
        "Not up? nodepass-orch ps shows the reason, nodepass-orch logs the log.",
    ]


@pytest.mark.parametrize(("proto", "port"), [(Proto.UDP, "UDP port"), (Proto.BOTH, "TCP and UDP port")])
def test_init_writes_a_pair_for_udp_alone_or_beside_tcp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], proto: Proto, port: str
) -> None:
    assert run(tmp_path, "--server", "203.0.113.5", "--proto", proto.value, "--visitors", "51820") == 0
    assert [entry.spec.proto for entry in pair(tmp_path)] == [proto, proto]
    assert f"Visitors of {port} 51820 of 203.0.113.5 then reach" in capsys.readouterr().out


def test_init_finds_the_address_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starter, "own_address", lambda: "10.1.2.3")
    assert run(tmp_path) == 0
    assert pair(tmp_path)[1].url == "client://10.1.2.3:10101/127.0.0.1:3000"
    assert "if the client needs another one: nodepass-orch init --server HOST" in capsys.readouterr().out


def test_a_host_without_an_address_needs_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoRoute(socket.socket):
        def connect(self, _: object) -> None:
            raise OSError

    monkeypatch.setattr(socket, "socket", NoRoute)
    assert starter.own_address() == ""
    assert run(tmp_path) == 2
    assert "name that of the server: init --server HOST" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_client_accepts_visitors_with_forward(tmp_path: Path) -> None:
    assert run(tmp_path, "--server", "2001:db8::1", "--forward", "--visitors", "5432", "--target", "db:5432") == 0
    server, client = pair(tmp_path)
    assert (server.url, client.url) == (
        "server://[::]:10101/db:5432",
        "client://[2001:db8::1]:10101/127.0.0.1:5432",
    )
    assert (server.spec.end, client.spec.end) == (End.EGRESS, End.INGRESS)


@pytest.mark.parametrize(
    ("given", "tunnel"),
    [("h:444", "h:444"), ("[::1]:444", "[::1]:444"), ("::1", "[::1]:10101"), ("[::1]", "[::1]:10101")],
)
def test_the_server_has_a_port_or_the_usual_one(given: str, tunnel: str, tmp_path: Path) -> None:
    assert run(tmp_path, "--server", given, "--visitors", "127.0.0.1:81") == 0
    server, client = pair(tmp_path)
    assert str(client.spec.tunnel) == tunnel
    assert (str(server.spec.target), server.spec.mode) == ("127.0.0.1:81", Mode.REVERSE)


@pytest.mark.parametrize("present", ["server.yaml", "client.yaml"])
def test_files_that_exist_are_not_touched(present: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / present).write_text("mine")
    assert run(tmp_path, "--server", "h") == 1
    assert f"{present} exists already and is not overwritten" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(present, "mine")]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Path("/proc/self"), "--server", "h") == 1
    assert "cannot write /proc/self/server.yaml: " in capsys.readouterr().err


def test_a_full_disk_is_reported_with_the_file_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_full(descriptor: int, mode: str, encoding: str) -> IO[Any]:
        os.close(descriptor)
        return open("/dev/full", mode, encoding=encoding)  # noqa: PTH123  in place of os.fdopen

    monkeypatch.setattr(os, "fdopen", open_full)
    assert run(tmp_path, "--server", "h") == 1
    assert f"cannot write {tmp_path}/server.yaml: No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--server", "h", "--visitors", "8a"], "--visitors: the address '8a' has no port"),
        (["--server", "h", "--name", "my web"], "'my web' is not the name of a service"),
        (["--server", "h:8080"], "the tunnel and the target have the same address"),
        (["--server", "h:0"], "--server: port 0 is not one that can be reached"),
        (["--server", "h", "--visitors", "0"], "--visitors: port 0 is not one that can be reached"),
        (["--server", "h", "--name", "a\udcff"], r"--name: 'a\udcff' has characters that cannot be printed"),
        (["--server", "h", "--target", "0.0.0.0:1"], "dials its target address 0.0.0.0:1"),
        (["--server", "a b"], "--server: 'a b' in the address is neither a host name nor an IP address"),
    ],
)
def test_options_that_give_no_valid_pair_write_nothing(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *options) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
