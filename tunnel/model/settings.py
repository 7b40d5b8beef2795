"""The nine variables of a tunnel: defaults, Go-style durations, precedence between the places they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from tunnel.model.times import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class SettingError(ValueError):
    """A setting's value makes no sense; the message is one sentence that names the setting and the way out."""

    def __init__(self, name: str, message: str, source: str | None = None) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.source = source


def _count(lowest: int, highest: int, default: int) -> Any:  # noqa: ANN401  dataclasses.field() is typed as its default
    return field(default=default, metadata={"lowest": lowest, "highest": highest})


def _duration(default: float, *, lowest: float = 0.001) -> Any:  # noqa: ANN401  as above
    return field(default=default, metadata={"lowest": lowest, "duration": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a tunnel's nine variables say. Durations in seconds, the rest in the unit its line names."""

    semaphore_limit: int = _count(1, 1_000_000, 1024)
    """visitors served at once; more wait in the kernel's backlog"""
    signal_queue_limit: int = _count(1, 1_000_000, 1024)
    """visitors that wait for a data connection; at the limit no more are accepted"""
    signal_buffer: int = _count(1, 1 << 24, 1024)
    """bytes read from the control channel at once"""
    min_pool_capacity: int = _count(1, 65_536, 8)
    """idle data connections kept at the least"""
    max_pool_capacity: int = _count(1, 65_536, 1024)
    """idle data connections kept at the most"""
    report_interval: float = _duration(5.0)
    """seconds between pings; three of silence end the link"""
    server_cooldown: float = _duration(5.0)
    """longest wait of a server between two attempts"""
    client_cooldown: float = _duration(5.0)
    """longest wait of a client between two attempts"""
    shutdown_timeout: float = _duration(5.0, lowest=0.0)
    """how long a shutdown lets present visitors finish"""
    explicit: frozenset[str] = frozenset()
    """names that somebody wrote down, as opposed to built-in defaults"""


NAMES: Final = tuple(f.name for f in fields(Settings) if f.name != "explicit")
"""The nine names in lower case, as URLs and files write them; the environment has them in upper case."""

DURATIONS: Final = frozenset(f.name for f in fields(Settings) if f.metadata.get("duration"))
"""Those of them that are durations; the others are whole numbers."""


def parse_setting(name: str, value: object) -> int | float:
    """One setting from what stands in a URL, a file or the environment. Raises SettingError."""
    meta = next(f.metadata for f in fields(Settings) if f.name == name)
    if meta.get("duration"):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            raise SettingError(name, f"a duration needs a unit: {value}s?")
        if not isinstance(value, (int, float, str)) or isinstance(value, bool):
            raise SettingError(name, "not a duration, as in 500ms, 5s or 1m30s")
        try:
            seconds = parse_duration(str(value).strip())
        except ValueError as error:
            raise SettingError(name, str(error)) from None
        if seconds < meta["lowest"]:
            raise SettingError(name, f"{value!r} is too short; the least is {format_duration(meta['lowest'])}")
        return seconds
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise SettingError(name, "not a whole number")
    text = str(value).strip()
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text):
        raise SettingError(name, f"{text[:40]!r} is not a whole number")
    number = int(text)
    if not meta["lowest"] <= number <= meta["highest"]:
        raise SettingError(
            name, f"{number} is out of range; it must lie between {meta['lowest']} and {meta['highest']}"
        )
    return number


def resolve(layers: Sequence[tuple[str, Mapping[str, object]]]) -> Settings:
    """Settings from layers of (source, values), the strongest first; what none of them names is built in.

    ``source`` names the layer in errors ("the URL", "defaults", "the environment"). Names a layer has beyond the
    nine are not looked at. Raises SettingError, whose ``source`` is the layer at fault.
    """
    chosen: dict[str, int | float] = {}
    origin: dict[str, str] = {}
    for source, values in layers:
        for name in NAMES:
            if name not in values:
                continue
            try:
                value = parse_setting(name, values[name])
            except SettingError as error:
                error.source = source
                raise
            if name not in chosen:
                chosen[name], origin[name] = value, source
    settings = Settings(**chosen, explicit=frozenset(chosen))  # type: ignore[arg-type]  # parse_setting gives each name its own type
    if settings.min_pool_capacity <= settings.max_pool_capacity:
        return settings
    if "min_pool_capacity" not in chosen:  # a built-in minimum gives way to a maximum that somebody chose
        chosen["min_pool_capacity"] = settings.max_pool_capacity
        return Settings(**chosen, explicit=settings.explicit)  # type: ignore[arg-type]
    raise SettingError(
        "min_pool_capacity",
        f"{settings.min_pool_capacity} is above max_pool_capacity {settings.max_pool_capacity}",
        origin["min_pool_capacity"],
    )


def from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """The layer of the environment: the nine variables in upper case; an empty one counts as not set."""
    return {name: environ[name.upper()] for name in NAMES if environ.get(name.upper(), "").strip()}


def as_text(settings: Settings) -> dict[str, str]:
    """The nine as a person would write them."""
    values = {name: getattr(settings, name) for name in NAMES}
    return {name: format_duration(v) if name in DURATIONS else str(v) for name, v in values.items()}
