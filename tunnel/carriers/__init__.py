"""How data connections travel between the two ends: the table of carriers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from tunnel.carriers.base import AcceptCarrier, DialCarrier
from tunnel.carriers.encrypted import TlsAcceptCarrier, TlsDialCarrier
from tunnel.carriers.tcp import PlainAcceptCarrier, PlainDialCarrier
from tunnel.model.spec import Carrier

__all__ = ["AcceptCarrier", "DialCarrier", "create_accept_carrier", "create_dial_carrier"]


class _CarrierRow(NamedTuple):
    dial: Callable[[bytes, bytes], DialCarrier]
    accept: Callable[[bytes, ssl.SSLContext], AcceptCarrier]


CARRIERS: Final[Mapping[Carrier, _CarrierRow]] = MappingProxyType(
    {
        Carrier.TCP: _CarrierRow(
            lambda secret, _certificate: PlainDialCarrier(secret), lambda _secret, _context: PlainAcceptCarrier()
        ),
        Carrier.TLS: _CarrierRow(TlsDialCarrier, TlsAcceptCarrier),
    }
)
"""Both sides of each carrier."""


def create_dial_carrier(carrier: Carrier, secret: bytes, certificate: bytes) -> DialCarrier:
    """Create a client's carrier for one link, from what its handshake agreed on.

    ``certificate`` is the one that the control channel presented, as DER.
    """
    return CARRIERS[carrier].dial(secret, certificate)


def create_accept_carrier(carrier: Carrier, secret: bytes, context: ssl.SSLContext) -> AcceptCarrier:
    """Create a server's carrier for one link; ``context`` is the one of the control channel."""
    return CARRIERS[carrier].accept(secret, context)
