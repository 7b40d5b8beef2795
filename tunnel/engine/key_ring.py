"""The keys of one engine as the handshake uses them, computed in a thread before the first handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.protocol.keys import BaseKey
from tunnel.runtime.key_stretching import derive_base_key

if TYPE_CHECKING:
    from tunnel.model.keys import Key
    from tunnel.model.spec import TunnelSpec

_Source = tuple[str | None, "Key | None"]
"""The name of a key, if it has one, and the key; None for an open tunnel."""


class KeyRing:
    """The keys that the spec of an engine contains. A spec with other named keys may replace it at any time."""

    def __init__(self, spec: TunnelSpec) -> None:
        self._sources = _sources_of(spec)
        self._computed: dict[_Source, BaseKey] = {}

    @property
    def keys(self) -> tuple[BaseKey, ...]:
        """The keys that are computed: after ``load`` all of them, or the one of an open tunnel."""
        return tuple(self._computed.values())

    async def load(self) -> None:
        """Compute the keys that are not computed yet. Safe to cancel. Raises NetError."""
        for source in self._sources:
            if source not in self._computed:
                name, key = source
                base_key = BaseKey(await derive_base_key(key), name, is_open=key is None)
                if source in self._sources:  # it may have been removed meanwhile
                    self._computed[source] = base_key

    def update(self, spec: TunnelSpec) -> frozenset[str | None]:
        """Use the keys of a changed spec; return the names of those that were removed or replaced.

        New keys are accepted after the next ``load``.
        """
        before, self._sources = self._sources, _sources_of(spec)
        self._computed = {source: key for source, key in self._computed.items() if source in self._sources}
        return frozenset(name for name, key in before if (name, key) not in self._sources)

    def find_equal(self, key: BaseKey) -> BaseKey:
        """Return the key of this ring that equals ``key`` of another ring; ``key`` if there is none."""
        return next((own for own in self._computed.values() if own == key), key)

    def accepts(self, key: BaseKey) -> bool:
        """Whether a key of this ring is still accepted."""
        return any(key is present for present in self._computed.values())


def _sources_of(spec: TunnelSpec) -> tuple[_Source, ...]:
    return tuple((named.name, named.key) for named in spec.named_keys) or ((None, spec.key),)
