"""Protection against replayed prefaces (RFC 4303 §3.4.3)."""

from __future__ import annotations


class ReplayWindow:
    """Accepts each id once, within a window below the highest id that was accepted; older ids never.

    Ids come nearly in order, so it remembers those that were passed over. A bit for each id of the window, as in the
    RFC, would cost a copy of all bits for every id.
    """

    __slots__ = ("_highest", "_missing", "_size")

    def __init__(self, size: int = 8192) -> None:
        self._size = size
        self._highest = -1
        self._missing: set[int] = set()  # ids below the highest that did not come yet

    def __len__(self) -> int:
        """Number of ids that it remembers: at most twice the size of the window."""
        return len(self._missing)

    def accept(self, ident: int) -> bool:
        """Whether this id is new; from now on it is not."""
        ahead = ident - self._highest
        if ahead == 1:
            self._highest = ident
            return True
        if ahead > 0:
            self._missing.update(range(max(self._highest + 1, ident - self._size + 1), ident))
            self._highest = ident
            if len(self._missing) > 2 * self._size:
                oldest = ident - self._size
                self._missing = {missing for missing in self._missing if missing > oldest}
            return True
        if -ahead >= self._size or ident not in self._missing:
            return False
        self._missing.remove(ident)
        return True
