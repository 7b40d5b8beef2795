"""The health check of a target over HTTP/1.1: one GET, of whose answer only the status counts (RFC 9112 §4). No I/O."""

from __future__ import annotations

import re
from typing import Final

from tunnel.protocol.errors import ProtocolError

MAX_HEAD_BYTES: Final = 16384
"""Bytes of an answer in which its status has to be found, interim answers included."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_MAX_STATUS_LINE_BYTES: Final = 1024
_START: Final = b"HTTP/1."


def encode_request(host: str, path: str) -> bytes:
    """Return the request for a path, which starts with a slash; ``host`` is the target as it is configured."""
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", "User-Agent: nodepass-orch", "Accept: */*", "Connection: close")
    return "\r\n".join((*lines, "", "")).encode()


def read_status(answer: bytes) -> int | None:
    """Return the status in the start of an answer, None if more has to arrive; interim answers (1xx) are skipped.

    Raises ProtocolError, whose message is the end of a sentence.
    """
    while True:
        if not answer.startswith(_START[: len(answer)]):
            raise ProtocolError("its answer is not HTTP")
        found = _STATUS_LINE.match(answer)
        if found is None:
            if b"\n" in answer or len(answer) > _MAX_STATUS_LINE_BYTES:
                raise ProtocolError("its answer is not HTTP")
            return None
        status = int(found[1])
        if status >= 200:
            return status
        end = _HEAD_END.search(answer, found.end() - 2)
        if end is None:
            if len(answer) > MAX_HEAD_BYTES:
                raise ProtocolError("its answer has no end")
            return None
        answer = answer[end.end() :]


def is_good_status(status: int) -> bool:
    """Whether a status means that the target is in order, as in HAProxy: 2xx and 3xx."""
    return 200 <= status < 400
