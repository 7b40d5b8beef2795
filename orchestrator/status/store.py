"""The latest value of every tunnel, and the revision at which each of its fields last changed.

A store answers "what changed since revision N" for any number of readers: streams, the broker, workers, screens.
A reader remembers one number and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress
from operator import attrgetter, ne
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from orchestrator.status.contract import DaemonInfo, encode_info, encode_snapshot, field_names
from tunnel.model.snapshot import Snapshot

if TYPE_CHECKING:
    from orchestrator.status.json_types import DeltaJson

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MAX_REMOVALS: Final = 1024
"""Removals that are remembered; a reader who has not asked since an older one is given everything anew."""

_SNAPSHOT_FIELDS: Final = field_names(Snapshot)
_read_fields: Final = attrgetter(*_SNAPSHOT_FIELDS)


@dataclass(frozen=True, slots=True)
class ValueChange(Generic[Value]):
    """A value, and the names of its fields that changed; None: the reader has not seen any of it."""

    value: Value
    fields: Collection[str] | None


@dataclass(frozen=True, slots=True)
class StatusDelta(Generic[Key, Value]):
    """What changed since a revision."""

    revision: int
    """where the next delta of the same reader begins"""
    changed: Mapping[Key, ValueChange[Value]] = field(default_factory=dict)
    removed: tuple[Key, ...] = ()
    """keys that are gone; the reader may never have seen one that came and went since"""
    daemon: ValueChange[DaemonInfo] | None = None
    is_full: bool = False
    """whether ``changed`` is all there is: the reader forgets everything else"""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to pass on."""
        return not (self.changed or self.removed or self.daemon or self.is_full)


class _Record(Generic[Value]):
    """A value with its history. Most tunnels never change: the revisions of fields exist only where one did."""

    __slots__ = ("added_at", "changed_at", "facts", "field_revisions", "value")

    def __init__(self, value: Value, revision: int) -> None:
        self.value = value
        self.added_at = self.changed_at = revision
        self.field_revisions: dict[str, int] = {}
        self.facts: object = None

    def replace(self, value: Value, changed: Iterable[str], revision: int) -> None:
        self.value = value
        self.changed_at = revision
        self.field_revisions.update(dict.fromkeys(changed, revision))

    def since(self, revision: int) -> ValueChange[Value]:
        if self.added_at > revision:
            return ValueChange(self.value, None)
        return ValueChange(self.value, tuple(name for name, at in self.field_revisions.items() if at > revision))


def changed_snapshot_fields(before: Snapshot, now: Snapshot) -> list[str]:
    """Names of the fields in which two snapshots differ.

    A cooldown of which only the remaining time has passed is no difference: readers have a clock of their own.
    """
    changed = [*compress(_SNAPSHOT_FIELDS, map(ne, _read_fields(before), _read_fields(now)))]
    is_same_cooldown = before.cooldown.attempt == now.cooldown.attempt and before.state is now.state
    if is_same_cooldown and "cooldown" in changed:
        changed.remove("cooldown")
    return changed


class StatusStore(Generic[Key, Value]):
    """Used on one event loop only. A revision is a number that grows by one with each change."""

    def __init__(self, changed_fields: Callable[[Value, Value], Collection[str]]) -> None:
        """``changed_fields`` names the fields in which two values differ; for tunnels: ``snapshot_store``."""
        self._changed_fields = changed_fields
        self._revision = 0
        self._records: dict[Key, _Record[Value]] = {}
        self._by_change: dict[Key, _Record[Value]] = {}
        """the same records, the one that changed last at the end"""
        self._removed: dict[Key, int] = {}
        """the revision of each removal, the latest at the end"""
        self._complete_since = 0
        """the oldest revision that every later removal is known of"""
        self._daemon: _Record[DaemonInfo] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    # --- writing --------------------------------------------------------------------------------------------------

    def update(self, key: Key, value: Value) -> bool:
        """Store a value; whether it differs from the one before."""
        record = self._records.get(key)
        if record is None:
            self._removed.pop(key, None)
            self._records[key] = self._by_change[key] = _Record(value, self._advance())
            return True
        if record.value is value:
            return False
        changed = self._changed_fields(record.value, value)
        if not changed:
            record.value = value  # what is no difference, such as the time that passed, is still newer
            return False
        record.replace(value, changed, self._advance())
        del self._by_change[key]
        self._by_change[key] = record
        return True

    def observe(self, key: Key, facts: object, build: Callable[[], Value]) -> bool:
        """As ``update``, for values that cost more to build than to compare: built only where ``facts`` changed."""
        record = self._records.get(key)
        if record is not None and record.facts is not None and record.facts == facts:
            return False
        is_changed = self.update(key, build())
        self._records[key].facts = facts
        return is_changed

    def remove(self, key: Key) -> None:
        """Forget a value; readers learn of the removal."""
        if self._records.pop(key, None) is None:
            return
        del self._by_change[key]
        self._removed[key] = self._advance()
        if len(self._removed) > MAX_REMOVALS:
            oldest = next(iter(self._removed))
            self._complete_since = self._removed.pop(oldest)

    def retain(self, keys: Collection[Key]) -> None:
        """Remove every value but those of ``keys``, whose order the store takes over."""
        for key in [key for key in self._records if key not in keys]:
            self.remove(key)
        if [*self._records] != [key for key in keys if key in self._records]:
            self._records = {key: self._records[key] for key in keys if key in self._records}

    def update_daemon(self, info: DaemonInfo) -> None:
        """Store the daemon's own status."""
        if self._daemon is None:
            self._daemon = _Record(info, self._advance())
            return
        before = self._daemon.value
        changed = [name for name in field_names(DaemonInfo) if getattr(before, name) != getattr(info, name)]
        if changed:
            self._daemon.replace(info, changed, self._advance())

    def _advance(self) -> int:
        self._revision += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        return self._revision

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision of the latest change; 0 where nothing was ever stored."""
        return self._revision

    @property
    def daemon(self) -> DaemonInfo | None:
        """The daemon's own status, if it was stored."""
        return self._daemon.value if self._daemon is not None else None

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._records)

    def get(self, key: Key) -> Value | None:
        """The latest value of a key."""
        record = self._records.get(key)
        return None if record is None else record.value

    def snapshots(self) -> tuple[Value, ...]:
        """All values, in the order of ``retain`` or else in which they came."""
        return tuple(record.value for record in self._records.values())

    def changes_since(self, revision: int) -> StatusDelta[Key, Value]:
        """What changed after ``revision`` (0: everything there is); costs what changed, not what there is."""
        if revision == self._revision:
            return StatusDelta(revision)
        is_full = revision < self._complete_since or revision == 0
        if is_full:
            changed = {key: record.since(-1) for key, record in self._records.items()}
            daemon = None if self._daemon is None else self._daemon.since(-1)
            return StatusDelta(self._revision, changed, (), daemon, is_full=True)
        return StatusDelta(
            self._revision, self._changed_since(revision), self._removed_since(revision), self._daemon_since(revision)
        )

    def _changed_since(self, revision: int) -> dict[Key, ValueChange[Value]]:
        found = {}
        for key, record in reversed(self._by_change.items()):
            if record.changed_at <= revision:
                break
            found[key] = record.since(revision)
        return found

    def _removed_since(self, revision: int) -> tuple[Key, ...]:
        found = []
        for key, at in reversed(self._removed.items()):
            if at <= revision:
                break
            found.append(key)
        return tuple(found)

    def _daemon_since(self, revision: int) -> ValueChange[DaemonInfo] | None:
        record = self._daemon
        return None if record is None or record.changed_at <= revision else record.since(revision)

    async def wait_beyond(self, revision: int) -> int:
        """Wait until something changed after ``revision``; the revision then. Safe to cancel."""
        while self._revision <= revision:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._revision


def snapshot_store() -> StatusStore[Any, Snapshot]:
    """A store of tunnels."""
    return StatusStore(changed_snapshot_fields)


def encode_delta(delta: StatusDelta[str, Snapshot]) -> DeltaJson:
    """What a stream of the local API sends: ``changed``, ``removed`` and ``status``, each only what differs."""
    return {
        "changed": {name: encode_snapshot(change.value, change.fields) for name, change in delta.changed.items()},
        "removed": list(delta.removed),
        "status": encode_info(delta.daemon.value, delta.daemon.fields) if delta.daemon else {},
    }
