"""A parser for server-sent events (WHATWG HTML, section 9.2). Sans-I/O: bytes in, events out."""

from __future__ import annotations

from typing import Final

_MAX_EVENT_BYTES: Final = 64 << 20


class SseError(Exception):
    """The bytes are not a stream of events."""


class SseParser:
    """Collects bytes and returns the events that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which no end of an event was found

    def receive_data(self, data: bytes) -> list[tuple[str, str]]:
        """Return the (kind, data) of every event that is now complete, without comments. Raises SseError."""
        self._buffer += data.replace(b"\r", b"")  # some servers end lines with CR LF; JSON contains neither raw
        events: list[tuple[str, str]] = []
        begin = 0
        while (end := self._buffer.find(b"\n\n", max(begin, self._searched - 1))) >= 0:
            event = _parse_event(bytes(self._buffer[begin:end]))
            if event:
                events.append(event)
            begin = self._searched = end + 2
        del self._buffer[:begin]
        self._searched = len(self._buffer)
        if self._searched > _MAX_EVENT_BYTES:
            raise SseError("an event without an end")
        return events


def _parse_event(block: bytes) -> tuple[str, str] | None:
    kind, lines = "message", []
    for line in block.decode("utf-8", "replace").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            lines.append(value)
    return (kind, "\n".join(lines)) if lines else None
