"""The limits of a link: what each end has configured, and what both ends agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunnel.model.settings import Settings

_BUILT_IN: Final = Settings()


@dataclass(frozen=True, slots=True)
class ConfiguredLimits:
    """The limits that are written in the configuration of one end; None where only a built-in default applies."""

    pool_min: int | None = None
    pool_max: int | None = None
    visitors: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that both ends of a link observe."""

    pool_min: int
    pool_max: int
    visitors: int


def configured_limits(settings: Settings) -> ConfiguredLimits:
    """Return what this end has configured, as the handshake sends it to the peer."""
    explicit = settings.explicit
    return ConfiguredLimits(
        settings.min_pool_capacity if "min_pool_capacity" in explicit else None,
        settings.max_pool_capacity if "max_pool_capacity" in explicit else None,
        settings.semaphore_limit if "semaphore_limit" in explicit else None,
    )


def default_limits(settings: Settings) -> Limits:
    """Return the limits that apply where neither end has configured one."""
    return Limits(settings.min_pool_capacity, settings.max_pool_capacity, settings.semaphore_limit)


def negotiate_limits(ours: ConfiguredLimits, theirs: ConfiguredLimits, defaults: Limits) -> Limits:
    """Compute the limits of a link from the configuration of its two ends.

    A limit that only one end has configured applies to both. If both have: the larger minimum, the smaller maximum
    and the smaller number of visitors, because an end configures a limit to be protected by it. A maximum above the
    built-in one has to be configured at both ends: a peer alone must not make this end hold more connections.
    """
    pool_max = _lower_maximum(ours.pool_max, theirs.pool_max, _BUILT_IN.max_pool_capacity, defaults.pool_max)
    visitors = _lower_maximum(ours.visitors, theirs.visitors, _BUILT_IN.semaphore_limit, defaults.visitors)
    minima = [value for value in (ours.pool_min, theirs.pool_min) if value is not None]
    return Limits(min(max(minima, default=defaults.pool_min), pool_max), pool_max, visitors)


def _lower_maximum(ours: int | None, theirs: int | None, built_in: int, default: int) -> int:
    if ours is None and theirs is None:
        return default
    return min(built_in if value is None else value for value in (ours, theirs))
