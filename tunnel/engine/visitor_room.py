"""How many visitors an ingress may have, and what an operator sees while there is no room for another one."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from tunnel.model.events import EventKind
from tunnel.model.wording import plural

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sized

    from tunnel.engine.ingress import Ingress
    from tunnel.model.events import EventLog
    from tunnel.model.settings import Settings

_CHECK_INTERVAL_S: Final = 5.0  # the reason is shown until no visitor has found the tunnel full for so long
_LOG_INTERVAL_S: Final = 60.0  # a tunnel may be full for hours


class VisitorRoom:
    """The limits of the visitors of an ingress. Has a timer only while visitors find the tunnel full."""

    def __init__(
        self, end: Ingress, queue: Sized, event_log: EventLog, settings: Settings, on_changed: Callable[[], None]
    ) -> None:
        """``queue`` has the visitors that wait for a data connection; ``on_changed`` is called with each new remark."""
        self.remark: str | None = None
        """that visitors find the tunnel full, and what happens to them"""
        self._end, self._relays = end, end.relays
        self._queue = queue
        self._awaited: Sized = ()
        self._event_log = event_log
        self._on_changed = on_changed
        self._max_visitors, self._max_queued = settings.semaphore_limit, settings.signal_queue_limit
        self._is_noted = False  # since the last check
        self._timer: asyncio.TimerHandle | None = None
        self._logged_at = float("-inf")
        self._logged_refused = 0  # visitors that were refused when the last line was written

    def set_limits(self, *, visitors: int | None = None, queued: int | None = None) -> None:
        """Change how many visitors may be present, or wait for a data connection; None: as before."""
        self._max_visitors = self._max_visitors if visitors is None else visitors
        self._max_queued = self._max_queued if queued is None else queued

    def set_awaited(self, awaited: Sized) -> None:
        """Count connections whose PROXY header is awaited in ``has_room_beside_awaited``."""
        self._awaited = awaited

    def has_room(self) -> bool:
        """Return whether another visitor may be accepted."""
        waiting = len(self._queue)
        return waiting < self._max_queued and self._relays.active + waiting < self._max_visitors

    def has_room_beside_awaited(self) -> bool:
        """Return whether another visitor may be accepted, if each of the awaited connections becomes one."""
        waiting = len(self._queue) + len(self._awaited)
        return waiting < self._max_queued and self._relays.active + waiting < self._max_visitors

    # --- what an operator sees ----------------------------------------------------------------------------------------

    def note_refused(self) -> None:
        """Note that a visitor of UDP was refused because there is no room."""
        self._note("others are refused")

    def note_waiting(self) -> None:
        """Note that connections wait in the backlog because there is no room."""
        self._note("others wait")

    def _note(self, consequence: str) -> None:
        self._is_noted = True
        if self._timer is None:
            self._timer = self._end.reactor.call_later(_CHECK_INTERVAL_S, self._check)
            self.remark = f"{self._describe_limit()}: {consequence}"
            self._log(self.remark)
            self._on_changed()

    def _describe_limit(self) -> str:
        waiting = len(self._queue) + len(self._awaited)
        if self._relays.active + waiting >= self._max_visitors:
            return f"{_describe_count(self._max_visitors)} present, as many as semaphore_limit of both ends allows"
        return f"{_describe_count(waiting)} waiting for a data connection, as many as signal_queue_limit allows"

    def _check(self) -> None:
        """End the remark if no visitor has found the tunnel full since the last check, and none waits."""
        is_noted, self._is_noted, self._timer = self._is_noted, False, None
        acceptor = self._end.acceptor
        is_full = is_noted or (acceptor is not None and acceptor.count_waiting() > 0)
        if self.remark is not None and is_full:
            self._timer = self._end.reactor.call_later(_CHECK_INTERVAL_S, self._check)
            self._log(self.remark)
            return
        self.remark = None
        self._log_rest()
        self._on_changed()

    def _log(self, text: str) -> None:
        """Write a line with the number of visitors that were refused since the last one, at most once in a minute."""
        now, refused = monotonic(), self._end.stats.beyond_limit.total
        if now - self._logged_at < _LOG_INTERVAL_S:
            return
        count, self._logged_at, self._logged_refused = refused - self._logged_refused, now, refused
        kind = EventKind.REFUSED if count else EventKind.LISTEN
        self._event_log.log_warn(kind, f"{text} ({count} more since the last such line)" if count > 1 else text)

    def _log_rest(self) -> None:
        """Write how many visitors were refused since the last line."""
        refused = self._end.stats.beyond_limit.total
        count, self._logged_refused = refused - self._logged_refused, refused
        if count:
            were = f"{plural(count, 'more visitor')} {'was' if count == 1 else 'were'}"
            self._event_log.log_warn(EventKind.REFUSED, f"{were} refused because there was no room")

    def close(self) -> None:
        """Stop the timer. Calling it twice is allowed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._log_rest()


def _describe_count(count: int) -> str:
    return f"{plural(count, 'visitor')} {'is' if count == 1 else 'are'}"
