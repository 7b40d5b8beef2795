"""Server-sent events out of bytes, as they come. No I/O."""

from __future__ import annotations

from typing import Final

_LARGEST: Final = 64 << 20


class StreamError(Exception):
    """What came is no stream of events."""


class EventStream:
    """Takes bytes, gives events."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._looked = 0

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """The (kind, data) of every event that is complete now. Comments are swallowed. Raises StreamError."""
        self._held += data.replace(b"\r", b"")  # some end lines with both; JSON has neither inside
        events: list[tuple[str, str]] = []
        begin = 0
        while (end := self._held.find(b"\n\n", max(begin, self._looked - 1))) >= 0:
            event = _event(bytes(self._held[begin:end]))
            if event:
                events.append(event)
            begin = self._looked = end + 2
        del self._held[:begin]
        self._looked = len(self._held)
        if self._looked > _LARGEST:
            raise StreamError("an event without an end")
        return events


def _event(block: bytes) -> tuple[str, str] | None:
    kind, lines = "message", []
    for line in block.decode("utf-8", "replace").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            lines.append(value)
    return (kind, "\n".join(lines)) if lines else None
