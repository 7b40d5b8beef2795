"""One socket for each file, found from everywhere."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
from pathlib import Path

import pytest

from orchestrator.process import socket_paths, state_directory
from orchestrator.process.socket_paths import (
    SocketPathError,
    choose_socket,
    default_sockets,
    explicit_socket,
    find_socket,
    is_listening,
    log_path,
    remove_stale_socket,
)

ME = os.getuid()
OWN = str(state_directory.private_directory(7))


def listen(path: Path, backlog: int = 8) -> sockets.socket:
    server = sockets.socket(sockets.AF_UNIX)
    server.bind(str(path))
    server.listen(backlog)
    return server


def test_the_option_overrides_the_environment_variable() -> None:
    environ = {socket_paths.SOCKET_VARIABLE: "/b.sock"}
    assert explicit_socket(Path("/a.sock"), environ) == Path("/a.sock")
    assert explicit_socket(None, environ) == Path("/b.sock")
    assert explicit_socket(None, {}) is None


def test_a_path_that_is_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(SocketPathError, match="longer than 107 bytes"):
        explicit_socket(Path("/" + "x" * 107), {})


def test_default_directories_have_an_order(tmp_path: Path) -> None:
    file = tmp_path / "tunnels.yaml"
    environ = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert [str(p.parent) for p in default_sockets(file, environ, 7)] == ["/run/user/7", OWN]
    assert [str(p.parent) for p in default_sockets(file, {}, 0)] == ["/run", OWN[:-1] + "0"]
    assert [str(p.parent) for p in default_sockets(file, {"XDG_RUNTIME_DIR": "relative"}, 7)] == [OWN]
    long = {"XDG_RUNTIME_DIR": "/" + "x" * 90}
    assert [str(p.parent) for p in default_sockets(file, long, 7)] == [OWN]


def test_the_socket_is_named_after_the_file_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {
        default_sockets(Path(file), {}, 7)[0]
        for file in ("tunnels.yaml", f"{tmp_path}/tunnels.yaml", "./x/../tunnels.yaml")
    }
    assert len(named) == 1
    (tmp_path / "link.yaml").symlink_to("tunnels.yaml")
    for other in ("other.yaml", "link.yaml"):
        assert default_sockets(Path(other), {}, 7)[0] not in named


@pytest.mark.parametrize("name", ["tunnels.yaml", "Schöne Tunnel für alle unsere Häuser und noch mehr.yaml", "x" * 200])
def test_every_file_name_gives_a_valid_socket_path(tmp_path: Path, name: str) -> None:
    for path in default_sockets(tmp_path / name, {}, 4294967294):
        assert len(os.fsencode(path)) <= 107
        assert str(path).isascii()


def test_an_existing_socket_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    runtime = tmp_path_factory.mktemp("r")  # short: a longer directory has no room for the name of a socket
    file = runtime / "tunnels.yaml"
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    place = choose_socket(file, environ, ME)
    assert place.parent == runtime
    assert find_socket(file, environ, ME) == place
    with contextlib.closing(listen(place)):
        assert find_socket(file, environ, ME) == place


def test_a_directory_that_others_can_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    for module in (socket_paths, state_directory):
        monkeypatch.setattr(module, "private_directory", lambda _uid: own)
    runtime = tmp_path / "r"
    runtime.mkdir()
    runtime.chmod(0o777)
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    offered = choose_socket(tmp_path / "t.yaml", environ, 7 if ME == 0 else ME) if ME else None
    if offered is not None:
        assert offered.parent == own
        assert own.stat().st_mode & 0o777 == 0o700
    assert not state_directory.is_safe(runtime, ME)
    own.mkdir(exist_ok=True)
    (tmp_path / "pointer").symlink_to(own)
    monkeypatch.setattr(state_directory, "private_directory", lambda _uid: tmp_path / "pointer")
    assert not state_directory.is_safe(tmp_path / "pointer", ME)


def test_the_log_is_named_after_the_file_and_in_the_state_directory(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    logs = {log_path(Path(file), environ, ME) for file in ("/a/t.yaml", "/b/t.yaml")}
    assert {log.parent for log in logs} == {tmp_path / "nodepass-orch"}
    assert len(logs) == 2


def test_a_socket_without_a_listener_is_removed_and_nothing_else(tmp_path: Path) -> None:
    socket = tmp_path / "np.sock"
    listen(socket).close()
    remove_stale_socket(socket)
    assert not socket.exists()
    remove_stale_socket(socket)
    lock = tmp_path / "np.sock.lock"
    lock.write_text("mine")
    for precious in (tmp_path / "file", tmp_path / "link"):
        if precious.name == "link":
            precious.symlink_to(tmp_path / "missing")
        else:
            precious.write_text("precious")
        with pytest.raises(SocketPathError, match="is no socket"):
            remove_stale_socket(precious)
    assert (lock.read_text(), (tmp_path / "file").read_text()) == ("mine", "precious")


@pytest.mark.parametrize("backlog", [8, 0])
def test_a_socket_with_a_listener_is_not_removed_even_if_its_backlog_is_full(tmp_path: Path, backlog: int) -> None:
    socket = tmp_path / "np.sock"
    with contextlib.closing(listen(socket, backlog)), contextlib.ExitStack() as stack:
        for _ in range(3 - backlog // 4):
            waiting = stack.enter_context(sockets.socket(sockets.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(socket))
        assert is_listening(socket)
        with pytest.raises(SocketPathError, match="another process listens at"):
            remove_stale_socket(socket)
    assert socket.is_socket()


def test_a_directory_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SocketPathError, match="cannot use"):
        remove_stale_socket(tmp_path / "file" / "np.sock")
