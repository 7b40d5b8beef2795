"""What differs between two looks at all tunnels: little to send, however many there are."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from tunnel.model.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_FEW: Final = 32  # quiet tunnels that are looked at every time, at the least
_ROUND: Final = 4.0  # seconds in which every tunnel has its turn at the latest, however quiet it is
_KEYS: Final = tuple(field.name for field in fields(Snapshot))


class Picture:
    """All tunnels as somebody who watches has been told of them: at first of none."""

    def __init__(self, interval: float) -> None:
        """``interval``: seconds between two looks."""
        self._rounds = max(1, int(_ROUND / interval))
        self._head: dict[str, Any] = {}
        self._known: dict[str, Snapshot] = {}
        self._lively: set[str] = set()
        self._changed: dict[str, dict[str, Any]] = {}
        self._looks = 0

    def due(self, names: Collection[str]) -> list[str]:
        """Which of all these tunnels to look at now: the new ones, those where something goes on, some of the others.

        To look at hundreds costs visitors more than the time it takes, for it empties the processor's caches.
        """
        lively, self._lively = self._lively, set()
        self._looks += 1
        rounds = min(self._rounds, 1 + len(names) // _FEW)
        return [
            name
            for place, name in enumerate(names, self._looks)
            if place % rounds == 0 or name in lively or name not in self._known
        ]

    def hear(self, name: str) -> None:
        """Something happened to this tunnel, or begins there: it is to be looked at next time."""
        self._lively.add(name)

    def see(self, snapshot: Snapshot) -> None:
        """One tunnel of this look."""
        before = self._known.get(snapshot.name)
        keys = _differing(before, snapshot)
        if keys or before is None:
            self._known[snapshot.name] = snapshot
        if keys:
            self._changed[snapshot.name] = snapshot.as_json(keys)
        if keys or snapshot.connections.active or snapshot.signals.queued:
            self._lively.add(snapshot.name)

    def change(self, head: Mapping[str, Any], names: Collection[str]) -> dict[str, Any] | None:
        """The look is over: ``changed``, ``removed`` and ``status`` since the last one; None if nothing differs.

        ``names`` are those of all tunnels there are. A cooldown that merely goes by is no difference: whoever watches
        has a clock too.
        """
        changed, self._changed = self._changed, {}
        removed = [name for name in self._known if name not in names]
        for name in removed:
            del self._known[name]
        status = {key: value for key, value in head.items() if self._head.get(key) != value}
        self._head = dict(head)
        if not (changed or removed or status):
            return None
        return {"changed": changed, "removed": removed, "status": status}


def _differing(before: Snapshot | None, now: Snapshot) -> tuple[str, ...]:
    if before is now:
        return ()
    if before is None:
        return _KEYS
    if before.cooldown.attempt == now.cooldown.attempt and before.state is now.state:
        now = replace(now, cooldown=before.cooldown)
    return tuple(key for key in _KEYS if getattr(before, key) != getattr(now, key))
