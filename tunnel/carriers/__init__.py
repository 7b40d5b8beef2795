"""How data connections travel between the two ends: the table of carriers.

A data connection starts with a preface that names it, in the clear. What follows is the carrier's, which makes the
flows of relays over it. Each link has one carrier, made when its handshake is complete.

To add a carrier: one module like ``tunnel.carriers.encrypted``, and a row in ``CARRIERS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tunnel.carriers.tcp import PlainCarrier
from tunnel.model.spec import Carrier

if TYPE_CHECKING:
    from tunnel.forwarding.base import FlowSource

__all__ = ["CARRIERS", "create_carrier", "prepare_carrier"]


def _create_encrypted(secret: bytes, scratch: memoryview, *, is_client: bool) -> FlowSource:
    from tunnel.carriers.encrypted import EncryptedCarrier  # noqa: PLC0415  7 MB of memory, only where they are needed

    return EncryptedCarrier(secret, scratch, is_client=is_client)


def _create_plain(_secret: bytes, _scratch: memoryview, *, is_client: bool) -> FlowSource:
    return PlainCarrier()


CARRIERS: Final[Mapping[Carrier, Callable[..., FlowSource]]] = MappingProxyType(
    {Carrier.TCP: _create_plain, Carrier.ENCRYPTED: _create_encrypted}
)
"""What makes the carrier of a link, from the link's secret and the reactor's shared buffer."""


def prepare_carrier(carrier: Carrier) -> None:
    """Import what a carrier needs, before the first link would have to wait for it."""
    if carrier is Carrier.ENCRYPTED:
        importlib.import_module("tunnel.carriers.encrypted")


def create_carrier(carrier: Carrier, secret: bytes, scratch: memoryview, *, is_client: bool) -> FlowSource:
    """Create the carrier of one link, from what its handshake agreed on."""
    return CARRIERS[carrier](secret, scratch, is_client=is_client)
