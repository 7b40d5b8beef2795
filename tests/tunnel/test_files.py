"""Files that a user names: only regular files of a bounded size are read, and the reason is a sentence."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tunnel.model.files import FileError, read_file, read_secret


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
