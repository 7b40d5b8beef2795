"""The request of an HTTP check, and the status of the answer."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.http_check import MAX_HEAD_BYTES, encode_request, is_good_status, read_status

INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"


def test_the_request_names_path_and_host_and_asks_for_the_end_of_the_connection() -> None:
    lines = encode_request("db-1:8080", "/health?full=1").decode().split("\r\n")
    assert lines[0] == "GET /health?full=1 HTTP/1.1"
    assert {"Host: db-1:8080", "Connection: close"} <= set(lines)
    assert lines[-2:] == ["", ""]


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("reason", [b"", b" ", b" Anything At All"])
@given(status=st.integers(200, 599), interims=st.integers(0, 3))
@example(status=200, interims=1)
def test_the_status_is_the_first_that_is_final(end: bytes, reason: bytes, status: int, interims: int) -> None:
    answer = INTERIM * interims + b"HTTP/1.1 %d%s%sContent-Length: 0" % (status, reason, end)
    assert read_status(answer) == status
    for size in range(len(answer)):  # however it arrives
        assert read_status(answer[:size]) in {None, status}


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\n",
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 600 No\r\n",
        b"HTTP/1.1 20x\r\n",
        b"HTTP/1.1 200" + b" " * 2000,
        b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
    ],
)
def test_what_is_no_answer_of_http_is_refused(answer: bytes) -> None:
    with pytest.raises(ProtocolError, match="its answer"):
        read_status(answer)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(INTERIM.__add__))
def test_any_bytes_have_a_status_or_need_more_or_are_refused(answer: bytes) -> None:
    try:
        status = read_status(answer)
    except ProtocolError:
        return
    assert status is None or 200 <= status <= 599


def test_success_and_redirection_are_good() -> None:
    assert [status for status in (200, 204, 301, 399, 400, 503) if is_good_status(status)] == [200, 204, 301, 399]
