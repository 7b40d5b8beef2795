"""Files that a user names: only regular files of a bounded size are read, and the reason is a sentence."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.model import files
from tunnel.model.files import FileError, find_stuck_access, noted_access, read_file, read_secret


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"x" * 1000)
    assert read_file(file, 1000).data == b"x" * 1000


def test_a_file_above_the_limit_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(FileError, match="it is larger than 1000 bytes"):
        read_file(file, 1000)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("fifo", "it is a FIFO, not a regular file"),
        ("directory", "it is a directory, not a regular file"),
        ("socket", "it is a socket, not a regular file"),
        ("device", "it is a device, not a regular file"),
        ("missing", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("nul", "a file name cannot contain a NUL character"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str, expected: str) -> None:
    path = tmp_path / "it"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            listener.bind(str(path))
        elif kind == "device":
            path = Path("/dev/zero")
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "nul":
            path = tmp_path / "a\0b"
        with pytest.raises(FileError) as caught:
            read_file(path, 1000)
    assert str(caught.value) == expected


def test_a_fifo_behind_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with pytest.raises(FileError, match="FIFO"):
        read_file(tmp_path / "link", 10)


def test_a_secret_loses_its_byte_order_mark_and_white_space(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbf secret \r\n")
    assert read_secret(file) == "secret"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\t"])
def test_an_empty_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(FileError, match="it is empty"):
        read_secret(tmp_path / "key")


def test_a_secret_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="it is not UTF-8 text"):
        read_secret(tmp_path / "key")


@pytest.mark.parametrize(("limit", "text"), [(1000, "1000 bytes"), (64 << 10, "64 KiB"), (4 << 20, "4 MiB")])
def test_a_limit_is_named_in_a_unit_that_fits(tmp_path: Path, limit: int, text: str) -> None:
    (tmp_path / "large").write_bytes(bytes(limit + 1))
    with pytest.raises(FileError, match=f"it is larger than {text}"):
        read_file(tmp_path / "large", limit)


def test_a_file_whose_reading_fails_gives_the_reason() -> None:
    with pytest.raises(FileError, match="Input/output error"):
        read_file(Path("/proc/self/mem"), 100)  # regular, and nothing is mapped at its start


class LeasedFile:
    """A file under a write lease, as a file server holds it for a client; the kernel asks for it with SIGIO."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("secret")
        self._descriptor = os.open(path, os.O_RDWR)
        self._handler_before = signal.signal(signal.SIGIO, self._on_break)
        self.is_returned_on_request = True
        fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def _on_break(self, _: int, __: object) -> None:
        if self.is_returned_on_request:
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def close(self) -> None:
        os.close(self._descriptor)
        signal.signal(signal.SIGIO, self._handler_before)


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[LeasedFile]:
    leased = LeasedFile(tmp_path / "key")
    yield leased
    leased.close()


def test_a_file_under_a_lease_is_read_once_its_holder_returns_it(leased: LeasedFile) -> None:
    assert read_secret(leased.path) == "secret"


def test_a_lease_that_is_not_returned_is_named(leased: LeasedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LEASE_TIMEOUT_S", 0.05)
    leased.is_returned_on_request = False
    with pytest.raises(FileError, match="another process holds a lease on it and does not return it"):
        read_secret(leased.path)


def test_an_access_that_does_not_end_is_found_with_its_path() -> None:
    with noted_access("/mnt/key"):
        assert find_stuck_access(60.0) is None
        assert find_stuck_access(-1.0) == "/mnt/key"
    assert find_stuck_access(-1.0) is None
