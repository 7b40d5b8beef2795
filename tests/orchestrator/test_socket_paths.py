"""One socket for each file, found from everywhere, and one daemon for each socket."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.process import socket_paths
from orchestrator.process.socket_paths import (
    SocketPathError,
    choose_socket,
    claim_socket,
    default_sockets,
    explicit_socket,
    find_socket,
)

ME = os.getuid()
OWN = str(socket_paths._own_directory(7))


def listen(path: Path) -> sockets.socket:
    server = sockets.socket(sockets.AF_UNIX)
    server.bind(str(path))
    server.listen()
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


def test_the_socket_is_named_after_the_resolved_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    named = {
        default_sockets(Path(file), {}, 7)[0]
        for file in ("tunnels.yaml", f"{tmp_path}/tunnels.yaml", "link/tunnels.yaml", "./x/../tunnels.yaml")
    }
    assert len(named) == 1
    assert default_sockets(Path("other.yaml"), {}, 7)[0] not in named


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
    monkeypatch.setattr(socket_paths, "_own_directory", lambda _uid: own)
    runtime = tmp_path / "r"
    runtime.mkdir()
    runtime.chmod(0o777)
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    offered = choose_socket(tmp_path / "t.yaml", environ, 7 if ME == 0 else ME) if ME else None
    if offered is not None:
        assert offered.parent == own
        assert own.stat().st_mode & 0o777 == 0o700
    assert not socket_paths._is_safe(runtime, ME)
    own.mkdir(exist_ok=True)
    (tmp_path / "pointer").symlink_to(own)
    monkeypatch.setattr(socket_paths, "_own_directory", lambda _uid: tmp_path / "pointer")
    assert not socket_paths._is_safe(tmp_path / "pointer", ME)


def test_a_second_claim_is_refused_and_the_first_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_paths, "LOCK_TIMEOUT_S", 0.1)
    socket = tmp_path / "np.sock"
    with (
        claim_socket(socket),
        pytest.raises(SocketPathError, match=r"a daemon runs already at .*nodepass-orch down"),
        claim_socket(socket),
    ):
        pass  # pragma: no cover
    assert list(tmp_path.iterdir()) == []
    with claim_socket(socket):
        pass


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    socket = tmp_path / "np.sock"
    program = """
        import os, socket, sys
        from pathlib import Path
        from orchestrator.process.socket_paths import claim_socket
        path = Path(sys.argv[1])
        with claim_socket(path):
            socket.socket(socket.AF_UNIX).bind(str(path))
            os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(socket)], check=False, timeout=20)
    assert socket.is_socket()
    with claim_socket(socket):
        assert not socket.exists()


def test_a_file_of_another_kind_is_not_removed(tmp_path: Path) -> None:
    socket = tmp_path / "np.sock"
    socket.write_text("precious")
    with pytest.raises(SocketPathError, match="is no socket"), claim_socket(socket):
        pass  # pragma: no cover
    assert socket.read_text() == "precious"


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SocketPathError, match="cannot make"), claim_socket(tmp_path / "nowhere" / "np.sock"):
        pass  # pragma: no cover
