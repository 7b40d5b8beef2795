"""The access log: gathers visitors that have left, and passes them on as JSON lines, many at a time.

Each process that runs engines gathers its own. A worker sends its lines to the daemon, which alone writes the file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from orchestrator.json_text import json_text
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from tunnel.model.visitor_end import VisitorRecord

SendLines = Callable[[bytes, int], None]
"""Takes complete lines and their number; must neither block nor raise."""

_FLUSH_INTERVAL_S: Final = 0.2  # kill -9 loses the visitors of this time
_MAX_GATHERED: Final = 100  # formatting so many takes half a millisecond


class VisitorLines:
    """Gathers records on the event loop, and formats them a few times a second."""

    def __init__(self, send: SendLines) -> None:
        self._send = send
        self._records: list[tuple[str, VisitorRecord]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, tunnel: str, record: VisitorRecord) -> None:
        """Log a visitor of a tunnel that has left."""
        self._records.append((tunnel, record))
        if len(self._records) >= _MAX_GATHERED:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Pass on what is gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records, self._records = self._records, []
        if records:
            self._send("".join(format_line(*one) for one in records).encode(errors="replace"), len(records))


@lru_cache(maxsize=4096)
def _quote(text: str | None) -> str:
    """The JSON text of a name or an address, on one line."""
    quoted = json_text(text)
    return quoted if quoted.isprintable() else json.dumps(json.loads(quoted))


def _plain(text: str | None) -> str:
    """The JSON text of what has no character that needs an escape."""
    return "null" if text is None else f'"{text}"'


def format_line(tunnel: str, record: VisitorRecord) -> str:
    """A visitor that has left as one JSON object on one line, with the line's end."""
    ident, address, proto, target, link, received, sent, duration_s, end, reason, ended_at = record
    duration = "null" if duration_s is None else f"{max(0.0, duration_s):.3f}"
    return (
        f'{{"time": "{format_timestamp(ended_at)}", "tunnel": {_quote(tunnel)}, "id": {_plain(ident)}, '
        f'"address": {_plain(address)}, "proto": "{proto.value}", "target": {_quote(target)}, "link": {_plain(link)}, '
        f'"bytes": {{"in": {received}, "out": {sent}}}, "duration_s": {duration}, '
        f'"end": "{end.value}", "reason": {_quote(reason)}}}\n'
    )
