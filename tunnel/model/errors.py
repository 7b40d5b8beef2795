"""The exceptions of the package ``tunnel``, as one tree, and the hint that their messages share.

::

    TunnelError
    ├── UrlError               a URL that describes no tunnel (also a ValueError)
    ├── OptionError            an option is unknown or its value is invalid (also a ValueError)
    ├── FileError              a file that the user names cannot be read (also an OSError; model.files)
    ├── NetError               an address cannot be resolved, bound or dialled (also an OSError; runtime.sockets)
    ├── SelfConnectError       a socket is its own peer (also an OSError; runtime.connect_race)
    ├── ThreadShortageError    the system grants no further thread (also an OSError; runtime.blocking_calls)
    ├── TlsError               certificate or key files cannot be used (runtime.tls)
    ├── ProtocolError          the peer sent bytes that the protocol does not allow (protocol.errors)
    ├── HandshakeRefusedError  one end refused the other in the handshake (protocol.errors)
    ├── ChannelLostError       the control channel ended (engine.control_channel)
    └── LinkFailedError        an attempt to establish a link failed (engine.link_connector)

``except TunnelError`` catches whatever can go wrong at run time. A defect of this program is not in the tree: it
raises AssertionError (``state.InvalidTransitionError``) or a built-in exception.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class TunnelError(Exception):
    """The base of every exception that this package raises for a caller to handle."""


class UrlError(TunnelError, ValueError):
    """A text is not a valid tunnel URL. ``offset`` counts characters from the start of the URL to the fault."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class OptionError(TunnelError, ValueError):
    """An option is unknown or its value is invalid; ``source`` and ``name`` tell which value of which layer."""

    def __init__(self, name: str, message: str, source: str) -> None:
        super().__init__(message)
        self.name = name
        self.source = source


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'X'?`` for the known name that is most similar, or an empty text."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
