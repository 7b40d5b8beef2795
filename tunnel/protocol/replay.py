"""Protection against replayed prefaces (RFC 4303 §3.4.3)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class ReplayWindow:
    """Accepts each id once, within a window below the highest id that was accepted; older ids never."""

    size: int = 8192
    _highest: int = -1
    _seen: int = 0  # bit n: the id n below the highest was accepted
    _mask: int = field(init=False)

    def __post_init__(self) -> None:
        self._mask = (1 << self.size) - 1

    def accept(self, ident: int) -> bool:
        """Whether this id is new; from now on it is not."""
        ahead = ident - self._highest
        if ahead > 0:
            kept = 0 if ahead >= self.size else self._seen << ahead
            self._seen = (kept | 1) & self._mask
            self._highest = ident
            return True
        if -ahead >= self.size:
            return False
        bit = 1 << -ahead
        if self._seen & bit:
            return False
        self._seen |= bit
        return True
