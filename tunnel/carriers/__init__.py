"""How data connections travel between the two ends: as plain TCP, or encrypted."""

from __future__ import annotations

import ssl

from tunnel.carriers.base import AcceptCarrier, DialCarrier
from tunnel.carriers.encrypted import TlsAcceptCarrier, TlsDialCarrier
from tunnel.carriers.tcp import PlainAcceptCarrier, PlainDialCarrier

__all__ = ["AcceptCarrier", "DialCarrier", "create_accept_carrier", "create_dial_carrier"]


def create_dial_carrier(*, is_encrypted: bool, secret: bytes, certificate: bytes) -> DialCarrier:
    """Create a client's carrier for one link, from what its handshake agreed on.

    ``certificate`` is the one that the control channel presented, as DER.
    """
    return TlsDialCarrier(secret, certificate) if is_encrypted else PlainDialCarrier(secret)


def create_accept_carrier(*, is_encrypted: bool, secret: bytes, context: ssl.SSLContext) -> AcceptCarrier:
    """Create a server's carrier for one link; ``context`` is the one of the control channel."""
    return TlsAcceptCarrier(secret, context) if is_encrypted else PlainAcceptCarrier()
