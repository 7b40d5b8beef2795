"""The keys of one engine as the handshake uses them, computed in a thread before the first handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.protocol.keys import BaseKey
from tunnel.runtime.key_stretching import derive_base_key

if TYPE_CHECKING:
    from tunnel.model.spec import TunnelSpec


class KeyRing:
    """The keys that the spec of an engine contains."""

    def __init__(self, spec: TunnelSpec) -> None:
        self._spec = spec
        self.keys: tuple[BaseKey, ...] = ()
        """empty until ``load`` has returned; then one for each key of the spec, or the one of an open tunnel"""

    async def load(self) -> None:
        """Compute the keys; again only if the last attempt failed. Safe to cancel. Raises NetError."""
        if not self.keys:
            key = self._spec.key
            self.keys = (BaseKey(await derive_base_key(key), is_open=key is None),)
