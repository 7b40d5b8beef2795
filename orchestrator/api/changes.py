"""What differs between two looks at all tunnels: little to send, however many there are."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from tunnel.state import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_KEYS: Final = tuple(field.name for field in fields(Snapshot))


class Picture:
    """All tunnels as somebody who watches has been told of them."""

    def __init__(self, head: Mapping[str, Any], snapshots: Iterable[Snapshot]) -> None:
        self._head = dict(head)
        self._tunnels = {snapshot.name: snapshot for snapshot in snapshots}

    def update(self, head: Mapping[str, Any], snapshots: Iterable[Snapshot]) -> dict[str, Any] | None:
        """``changed``, ``removed`` and ``status`` since the last time; None if nothing differs.

        A cooldown that merely goes by is no difference: whoever watches has a clock too.
        """
        changed = {}
        known, self._tunnels = self._tunnels, {}
        for snapshot in snapshots:
            before = known.pop(snapshot.name, None)
            keys = _differing(before, snapshot)
            self._tunnels[snapshot.name] = snapshot if keys or before is None else before
            if keys:
                whole = snapshot.as_json()
                changed[snapshot.name] = whole if before is None else {key: whole[key] for key in keys}
        status = {key: value for key, value in head.items() if self._head.get(key) != value}
        self._head = dict(head)
        if not (changed or known or status):
            return None
        return {"changed": changed, "removed": list(known), "status": status}


def _differing(before: Snapshot | None, now: Snapshot) -> tuple[str, ...]:
    if before is None:
        return _KEYS
    if before == now:
        return ()
    if before.cooldown.attempt == now.cooldown.attempt and before.state is now.state:
        now = replace(now, cooldown=before.cooldown)
    return tuple(key for key in _KEYS if getattr(before, key) != getattr(now, key))
