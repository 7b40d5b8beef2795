"""The difference between two configurations, as a plan. Pure, so that ``plan`` can show what ``reload`` would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from orchestrator.config.manifest import Entry, Manifest
from tunnel.model.options import OPTIONS, Option
from tunnel.model.spec import Role
from tunnel.runtime.listeners import decide_direction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.supervisor_settings import SupervisorSettings
    from tunnel.model.spec import TunnelSpec

LIVE: Final = ("drain_timeout", "history")
"""Names of the ``supervisor:`` section that take effect while the daemon runs."""

_GOOD_ACTIONS: Final = frozenset({"added", "removed", "restarted", "changed", "unchanged"})


@dataclass(frozen=True, slots=True)
class EntryChange:
    """An entry whose configuration changed."""

    old: Entry
    new: Entry
    texts: tuple[str, ...]
    """what changed, for the user; never a key"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload does. Each name of the two configurations is in exactly one of the five."""

    add: tuple[Entry, ...] = ()
    remove: tuple[Entry, ...] = ()
    restart: tuple[EntryChange, ...] = ()
    """a new engine replaces the old one"""
    change: tuple[EntryChange, ...] = ()
    """the engine keeps running and no connection is affected; or the entry is disabled and has none"""
    leave: tuple[Entry, ...] = ()
    warnings: tuple[str, ...] = ()
    """what has no effect before the daemon is restarted"""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.add or self.remove or self.restart or self.change)

    @property
    def ending(self) -> tuple[Entry, ...]:
        """The former entries whose engines end: visitors of these are disconnected after the time of a drain."""
        disabled = (change.old for change in self.change if change.old.enabled and not change.new.enabled)
        return (*self.remove, *(change.old for change in self.restart), *disabled)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as ``GET /v1/plan`` shows it."""
        return {
            "add": [entry.name for entry in self.add],
            "remove": [entry.name for entry in self.remove],
            "restart": [{"name": change.new.name, "changes": list(change.texts)} for change in self.restart],
            "change": [{"name": change.new.name, "changes": list(change.texts)} for change in self.change],
            "unchanged": len(self.leave),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class EntryResult:
    """What a reload did to one entry."""

    action: str
    """added, removed, restarted, changed, unchanged; rejected: the old one keeps running; failed: it cannot work"""
    detail: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the tunnel is as the file describes it."""
        return self.action in _GOOD_ACTIONS

    def as_json(self) -> dict[str, Any]:
        """Return the result as the local API shows it."""
        return {"action": self.action, "detail": self.detail, "changes": list(self.changes)}


def diff_manifests(old: Manifest, new: Manifest) -> Plan:
    """Return the plan from ``old`` to ``new``. The name identifies an entry; its place in the file does not matter."""
    before = {entry.name: entry for entry in old.entries}
    after = {entry.name: entry for entry in new.entries}
    changed = [(before[name], entry) for name, entry in after.items() if name in before and before[name] != entry]
    changes = [EntryChange(one, other, tuple(_describe_changes(one, other))) for one, other in changed]
    return Plan(
        add=tuple(entry for name, entry in after.items() if name not in before),
        remove=tuple(entry for name, entry in before.items() if name not in after),
        restart=tuple(change for change in changes if needs_engine(change.old, change.new)),
        change=tuple(change for change in changes if not needs_engine(change.old, change.new)),
        leave=tuple(entry for name, entry in after.items() if before.get(name) == entry),
        warnings=tuple(_describe_ineffective(old.supervisor, new.supervisor)),
    )


def needs_engine(old: Entry, new: Entry) -> bool:
    """Return whether a running engine cannot adopt the new entry and has to be replaced."""
    if old.enabled is not new.enabled:  # the engine starts or stops in any case
        return False
    one, other = old.spec, new.spec
    if old.files != new.files or one.role is not other.role:
        return True
    if one.tunnels != other.tunnels and not _has_live_servers(one, other):
        return True
    if one.members != other.members and not _has_live_targets(one, other):
        return True
    if bool(one.publish_rules) is not bool(other.publish_rules):
        return True
    if bool(one.named_keys) is not bool(other.named_keys):  # between two sets of named keys it is a live change
        return True
    return any(option.read(one) != option.read(other) for option in OPTIONS.values() if not option.is_live)


def _has_live_servers(old: TunnelSpec, new: TunnelSpec) -> bool:
    """Whether a running client adopts other servers: it keeps one at least, whose link stays."""
    return new.role is Role.CLIENT and not set(old.tunnels).isdisjoint(new.tunnels)


def _has_live_targets(old: TunnelSpec, new: TunnelSpec) -> bool:
    """Whether a running engine adopts other targets: with several before or afterwards, in the same direction.

    One address in place of another may be where visitors are accepted, so that another engine is needed.
    """
    if not (old.targets or new.targets):
        return False
    return old.role is Role.CLIENT or decide_direction(old) is decide_direction(new)


def effective_settings(old: SupervisorSettings, new: SupervisorSettings) -> SupervisorSettings:
    """Return the daemon's settings after a reload: the old ones, and the new values of those that change live."""
    values = dict(new)
    return old.model_copy(update={name: values[name] for name in LIVE})


def _describe_changes(old: Entry, new: Entry) -> Iterator[str]:
    if old.enabled is not new.enabled:
        yield f"enabled: {_format_value(old.enabled)} → {_format_value(new.enabled)}"
    one, other = old.spec, new.spec
    if one.role is not other.role:
        yield f"role: {one.role} → {other.role}"
    yield from _describe_servers(one, other)
    yield from _describe_targets(one, other)
    if one.key != other.key:
        yield "key: " + ("removed" if other.key is None else "added" if one.key is None else "changed")
    yield from _describe_named_keys(one, other)
    yield from _describe_rules(one, other)
    for option in OPTIONS.values():
        if not option.is_secret:
            yield from _describe_option(option, one, other)
    if old.tags != new.tags:
        yield f"tags: {_format_value(old.tags)} → {_format_value(new.tags)}"
    for name in sorted({*old.files, *new.files}):
        is_other_file = OPTIONS[name].read(one) != OPTIONS[name].read(other)
        if old.files.get(name) != new.files.get(name) and not is_other_file:
            yield f"{name}: the content of the file changed"


def _describe_servers(old: TunnelSpec, new: TunnelSpec) -> Iterator[str]:
    if not (old.other_servers or new.other_servers):
        if old.tunnel != new.tunnel:
            yield f"tunnel address: {old.tunnel} → {new.tunnel}"
        return
    before, after = ({server.address: server for server in spec.servers} for spec in (old, new))
    yield from (f"server {server}: added" for address, server in after.items() if address not in before)
    yield from (f"server {address}: removed" for address in before if address not in after)
    shared = [(server, after[address]) for address, server in before.items() if address in after]
    yield from (f"server {one} → {other}" for one, other in shared if one != other)
    if set(old.tunnels) == set(new.tunnels) and old.tunnels != new.tunnels:
        yield "servers: another order"


def _describe_targets(old: TunnelSpec, new: TunnelSpec) -> Iterator[str]:
    if not (old.targets or new.targets):
        if old.target != new.target:
            yield f"target address: {old.target} → {new.target}"
        return
    before, after = ({each.address: each for each in spec.members} for spec in (old, new))
    for address in {**before, **after}:
        one, other = before.get(address), after.get(address)
        if one is None:
            yield f"target {other}: added"
        elif other is None:
            yield f"target {one}: removed"
        elif one != other:
            yield f"target {one} → {other}"
    if set(before) == set(after) and [*before] != [*after]:
        yield "targets: another order"


def _describe_named_keys(old: TunnelSpec, new: TunnelSpec) -> Iterator[str]:
    before, after = ({named.name: named.key for named in spec.named_keys} for spec in (old, new))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            what = "removed" if name not in after else "added" if name not in before else "changed"
            yield f"key {name}: {what}"


def _describe_rules(old: TunnelSpec, new: TunnelSpec) -> Iterator[str]:
    before, after = ("; ".join(map(str, spec.publish_rules)) or "none" for spec in (old, new))
    if before != after:
        yield f"publish: {before} → {after}"
    elif old.publish_rules != new.publish_rules:
        yield "publish: other keys or limits"


def _describe_option(option: Option, old: TunnelSpec, new: TunnelSpec) -> Iterator[str]:
    name = option.name
    if option.read(old) != option.read(new):
        yield f"{name}: {option.describe_change(old, new)}"
    elif option.is_setting and (name in old.settings.explicit) is not (name in new.settings.explicit):
        # the other end of the tunnel learns which settings are explicit
        verb = "now set explicitly" if name in new.settings.explicit else "no longer set explicitly"
        yield f"{name}: {option.format(new)}, {verb}"


def _format_value(value: object) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) is tuple:
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, BaseModel):
        return "set"
    return "none" if value is None else str(value)


def _describe_ineffective(old: SupervisorSettings, new: SupervisorSettings) -> Iterator[str]:
    for name, before, after in _differences(old, new, "supervisor"):
        if name.rpartition(".")[2] not in LIVE:
            yield f"{name}: {before} → {after} takes effect when the daemon is restarted"


def _differences(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[tuple[str, str, str]]:
    after = dict(new)
    for name, one in old:
        other = after[name]
        if isinstance(one, BaseModel) and isinstance(other, BaseModel):
            yield from _differences(one, other, f"{prefix}.{name}")
        elif one != other:
            yield f"{prefix}.{name}", _format_value(one), _format_value(other)
