"""Errors of the wire protocol."""

from __future__ import annotations

from tunnel.model.errors import TunnelError


class ProtocolError(TunnelError):
    """The peer sent something that the protocol does not allow; the message says what, for the local log."""


class HandshakeRefusedError(TunnelError):
    """The peer is not accepted; the message is the exact reason, for the local log alone."""


class WrongServiceError(HandshakeRefusedError):
    """The client has the key, and wants another service."""
