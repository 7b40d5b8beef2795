"""What lies between two configurations, as a plan: pure, so that ``plan`` can show what ``reload`` would do."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from orchestrator.config.manifest import Entry, Manifest
from tunnel.model.settings import NAMES, Settings, as_text
from tunnel.model.spec import LogLevel, TunnelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.schema import SupervisorSettings

LIVE: Final = ("drain_timeout",)
"""Names of the ``supervisor:`` section that take effect while the daemon runs."""

_SPEC_NAMES: Final = {"tunnel": "tunnel address", "target": "target address", "data_tls": "tls"}
_HOT: Final = ("log", "settings")  # fields of a spec that a running engine adopts
_Changes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EntryChange:
    """An entry that is not what it was."""

    old: Entry
    new: Entry
    texts: tuple[str, ...]
    """what changed, for people; never a key"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload does. Each name of the two configurations is in exactly one of the five."""

    add: tuple[Entry, ...] = ()
    remove: tuple[Entry, ...] = ()
    restart: tuple[EntryChange, ...] = ()
    """the engine has to be another one"""
    change: tuple[EntryChange, ...] = ()
    """the engine goes on, no connection is touched; or there is none to begin with"""
    leave: tuple[Entry, ...] = ()
    warnings: tuple[str, ...] = ()
    """what has no effect before the daemon itself is started anew"""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.add or self.remove or self.restart or self.change)

    def as_json(self) -> dict[str, Any]:
        """The plan as ``GET /v1/plan`` gives it."""
        return {
            "add": [entry.name for entry in self.add],
            "remove": [entry.name for entry in self.remove],
            "restart": [{"name": step.new.name, "changes": list(step.texts)} for step in self.restart],
            "change": [{"name": step.new.name, "changes": list(step.texts)} for step in self.change],
            "unchanged": len(self.leave),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class EntryResult:
    """What a reload did to one entry."""

    action: str
    """added, removed, restarted, changed, unchanged; rejected: the old one serves on; failed: it cannot work"""
    detail: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the tunnel is what the file says."""
        return self.action not in {"rejected", "failed"}

    def as_json(self) -> dict[str, Any]:
        """The result as the local API gives it."""
        return {"action": self.action, "detail": self.detail, "changes": list(self.changes)}


def diff_manifests(old: Manifest, new: Manifest) -> Plan:
    """The way from ``old`` to ``new``. An entry is known by its name; where it stands does not matter."""
    before = {entry.name: entry for entry in old.entries}
    after = {entry.name: entry for entry in new.entries}
    changed = [(before[name], entry) for name, entry in after.items() if name in before and before[name] != entry]
    changes = [EntryChange(one, other, _texts(one, other)) for one, other in changed]
    return Plan(
        add=tuple(entry for name, entry in after.items() if name not in before),
        remove=tuple(entry for name, entry in before.items() if name not in after),
        restart=tuple(step for step in changes if needs_engine(step.old, step.new)),
        change=tuple(step for step in changes if not needs_engine(step.old, step.new)),
        leave=tuple(entry for name, entry in after.items() if before.get(name) == entry),
        warnings=tuple(_without_effect(old.supervisor, new.supervisor)),
    )


def needs_engine(old: Entry, new: Entry) -> bool:
    """Whether an engine, should one run, cannot become what the entry says now."""
    if old.enabled is not new.enabled:  # then it comes or goes
        return False
    return old.files != new.files or replace(old.spec, **{name: getattr(new.spec, name) for name in _HOT}) != new.spec


def effective_settings(old: SupervisorSettings, new: SupervisorSettings) -> SupervisorSettings:
    """The daemon's own settings after a reload: the old ones, and of the new what takes effect at once."""
    return old.model_copy(update={name: getattr(new, name) for name in LIVE})


def _texts(old: Entry, new: Entry) -> _Changes:
    texts = [f"enabled: {_shown(old.enabled)} → {_shown(new.enabled)}"] if old.enabled is not new.enabled else []
    texts += _spec_texts(old.spec, new.spec)
    if old.tags != new.tags:
        texts.append(f"tags: {_shown(old.tags)} → {_shown(new.tags)}")
    texts += [
        f"{name}: another content"
        for name in sorted({*old.files, *new.files})
        if old.files.get(name) != new.files.get(name) and not any(text.startswith(f"{name}:") for text in texts)
    ]
    return tuple(texts)


def _spec_texts(old: TunnelSpec, new: TunnelSpec) -> Iterator[str]:
    for field in fields(TunnelSpec):
        one, other = getattr(old, field.name), getattr(new, field.name)
        if one == other:
            continue
        if isinstance(one, Settings) and isinstance(other, Settings):
            yield from _settings_texts(one, other)
        elif field.name == "key":
            yield "key: " + ("removed" if other is None else "added" if one is None else "another one")
        elif field.name == "data_port":
            yield f"data_port: {_port(one)} → {_port(other)}"
        else:
            yield f"{_SPEC_NAMES.get(field.name, field.name)}: {_shown(one)} → {_shown(other)}"


def _settings_texts(old: Settings, new: Settings) -> Iterator[str]:
    one, other = as_text(old), as_text(new)
    for name in NAMES:
        if one[name] != other[name]:
            yield f"{name}: {one[name]} → {other[name]}"
        elif (name in old.explicit) is not (
            name in new.explicit
        ):  # the other end of the tunnel hears what was written down
            yield f"{name}: {other[name]}, {'written down now' if name in new.explicit else 'no longer written down'}"


def _port(port: int | None) -> str:
    return "tunnel" if port is None else str(port or "random")


def _shown(value: object) -> str:
    """A value as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, LogLevel):
        return value.name.lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "none" if value is None else str(value)


def _without_effect(old: SupervisorSettings, new: SupervisorSettings) -> Iterator[str]:
    for path, one, other in _differences(old, new, "supervisor"):
        if path.rpartition(".")[2] not in LIVE:
            yield f"{path}: {one} → {other} takes effect when the daemon is started anew"


def _differences(old: BaseModel, new: BaseModel, path: str) -> Iterator[tuple[str, str, str]]:
    for name in type(old).model_fields:
        one, other = getattr(old, name), getattr(new, name)
        if isinstance(one, BaseModel) and isinstance(other, BaseModel):
            yield from _differences(one, other, f"{path}.{name}")
        elif one != other:
            yield f"{path}.{name}", *("set" if isinstance(v, BaseModel) else _shown(v) for v in (one, other))  # type: ignore[misc]
