"""What the dashboard knows by watching one source: the view, how it hangs on its daemon, what was said just now."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tui import model
from tui.bars import Attached
from tui.happenings import summary
from tui.sources import Beat, Change, Happened, Lost, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tui.model import Json, View
    from tui.sources import Heard, Source

_NOTICE: Final = 12.0  # seconds for which the result of a reload stays
_HAPPENED: Final = 500


class Watch:
    """One per dashboard; knows no screen."""

    def __init__(
        self,
        source: Source,
        *,
        is_read_only: bool = False,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self.now = now
        """the monotonic clock"""
        self.wall = wall
        """seconds since the epoch"""
        self.view: View = model.View()
        self.notice: str | None = None
        """what the last reload did, for a while"""
        self.happened: deque[Json] = deque(maxlen=_HAPPENED)
        """events since somebody last looked at them"""
        self._is_read_only = is_read_only
        self._lost: str | None = None
        self._heard = now()
        self._notice_until = 0.0

    @property
    def is_read_only(self) -> bool:
        """Whether commands are barred, by the user's wish or by the daemon."""
        return self._is_read_only or self.view.is_read_only

    @property
    def is_lost(self) -> bool:
        """Whether the daemon does not answer just now."""
        return self._lost is not None

    def attached(self) -> Attached:
        """How we hang on the daemon just now."""
        source, lost_for = self.source, self.now() - self._heard
        return Attached(source.place, self.is_read_only, self._lost, lost_for, teller=source.nature.teller)

    def hear(self, message: Heard) -> bool:
        """Fold one message into what is known; whether the daemon is there again, or has another file or fault."""
        now = self.now()
        match message:
            case Lost(reason):
                self._lost = reason
                return False
            case Status(data):
                self.view = model.begin(data, model.moment(data.get("ts")) or self.wall(), now, self.view)
                self._lost, self._heard = None, now
                return True
            case Change(data):
                before = _of_file(self.view)
                self.view = model.change(self.view, data, now)
                self._heard = now
                return _of_file(self.view) != before
            case Beat():
                self._heard = now
                return False
            case Happened(data):
                self._heard = now
                self._note(data)
                return False

    def _note(self, event: Json) -> None:
        self.happened.append(event)
        results = event.get("results")
        if event.get("kind") == "reload" and results:
            self.announce_reload(str(event.get("host") or ""), event)

    def announce(self, text: str) -> None:
        """Show a notice under the header for a while."""
        self.notice, self._notice_until = text, self.now() + _NOTICE

    def announce_reload(self, host: str, result: Json) -> None:
        """The same of what a reload did."""
        where = f"{host}: generation" if host else "Generation"
        self.announce(f"{where} {result.get('generation')}: {summary(result.get('results') or {})}")

    def look_at(self, names: Collection[str], closely: Collection[str]) -> None:
        """These are on the screen; of some of them, the past is too."""
        if closely != self.view.looked_at:
            self.view = replace(self.view, looked_at=closely)
        self.source.follow(names)

    def tick(self) -> None:
        """Time has passed: silence is knowledge too, and notices grow old."""
        now = self.now()
        if self._lost is None and self.view.status:
            self.view = model.quiet(self.view, now)
        if self.notice and now > self._notice_until:
            self.notice = None


def _of_file(view: View) -> tuple[object, object]:
    """What a reload changes, and what becomes of it when the file is wrong."""
    return view.status.get("generation"), view.status.get("config")
