"""The limits of a link: what each end has configured, and what both ends agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunnel.model.settings import Settings

_BUILT_IN_POOL_MAX: Final = Settings().max_pool_capacity


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
    and the smaller number of visitors, because an end configures a limit to be protected by it. A larger pool than the
    built-in maximum has to be configured at both ends: a peer alone must not make this end hold more connections.
    """

    def configured(first: int | None, second: int | None) -> list[int]:
        return [value for value in (first, second) if value is not None]

    maxima = [_BUILT_IN_POOL_MAX if value is None else value for value in (ours.pool_max, theirs.pool_max)]
    pool_max = min(maxima) if configured(ours.pool_max, theirs.pool_max) else defaults.pool_max
    pool_min = max(configured(ours.pool_min, theirs.pool_min), default=defaults.pool_min)
    visitors = min(configured(ours.visitors, theirs.visitors), default=defaults.visitors)
    return Limits(min(pool_min, pool_max), pool_max, visitors)
