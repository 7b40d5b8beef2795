"""The exceptions of the package ``tunnel``, as one tree, and the hint that their messages share.

::

    TunnelError
    ├── InvalidValueError      a text is not a valid value of its kind (also a ValueError)
    │   ├── UrlError           a URL that describes no tunnel
    │   └── OptionError        an option is unknown or its value is invalid
    ├── FileError              a file that the user names cannot be read (also an OSError; model.files)
    ├── NetError               an address cannot be resolved, bound or dialled (also an OSError; runtime.sockets)
    ├── SelfConnectError       a socket is its own peer (also an OSError; runtime.connect_race)
    ├── ThreadShortageError    the system grants no further thread (also an OSError; runtime.blocking_calls)
    ├── TlsError               certificate or key files cannot be used (runtime.tls)
    ├── ProxyHeaderError       a balancer's connection does not start with a valid PROXY header (protocol.proxy_header)
    ├── ProtocolError          the peer sent bytes that the protocol does not allow (protocol.errors)
    │   ├── RecordError        a record of an encrypted data connection was changed or moved (protocol.records)
    │   ├── DatagramFrameError a length that no datagram can have (protocol.datagram_frames)
    │   └── DatagramRecordError a datagram was forged, changed or repeated (protocol.datagram_records)
    ├── HandshakeRefusedError  one end refused the other in the handshake (protocol.errors)
    │   └── WrongServiceError  the client has the key, and wants another service (protocol.errors)
    ├── ChannelLostError       the control channel ended (engine.control_channel)
    └── LinkFailedError        an attempt to establish a link failed (engine.link_connector)

``except TunnelError`` catches whatever can go wrong at run time. A defect of this program is not in the tree: it
raises AssertionError (``state.InvalidTransitionError``) or a built-in exception.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


_MAX_COMPARED: Final = 100  # characters of a name: comparing a long one takes seconds
_MIN_BEGINNING: Final = 3  # characters of a name that is only begun
_SHORT: Final = 5  # characters: two of three that agree are close enough
_SHORT_CUTOFF: Final = 0.6
_CUTOFF: Final = 0.75
"""of the similarity that SequenceMatcher.ratio returns; with less, a hint names another thing than was meant"""
_MAX_LISTED: Final = 15  # known names in a message


class TunnelError(Exception):
    """The base of every exception that this package raises for a caller to handle."""


class InvalidValueError(TunnelError, ValueError):
    """A text is not a valid value of its kind.

    ``quoted`` are the parts of the text that fill the braces ``{}`` of the message, as they are to be shown. A caller
    that must not show the text, because a variable with a secret is in it, shows ``quoting`` of something else.
    """

    def __init__(self, message: str, *quoted: object) -> None:
        super().__init__(message.format(*quoted) if quoted else message)
        self.message = message
        self.quoted = quoted

    def quoting(self, text: str) -> str:
        """Return the message with another text in place of each part of the value."""
        return self.message.format(*(text for _ in self.quoted)) if self.quoted else self.message


class UrlError(InvalidValueError):
    """A text is not a valid tunnel URL. ``offset`` counts characters from the start of the URL to the fault."""

    def __init__(self, message: str, offset: int, *quoted: object) -> None:
        super().__init__(message, *quoted)
        self.offset = offset


class OptionError(InvalidValueError):
    """An option is unknown or its value is invalid; ``source`` and ``name`` tell which value of which layer."""

    def __init__(self, name: str, message: str, source: str, *quoted: object) -> None:
        super().__init__(message, *quoted)
        self.name = name
        self.source = source


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'X'?`` for the known name that is most similar, or an empty text.

    A name that is only begun is similar to the one known name that begins in the same way.
    """
    names, wanted = list(known), name[:_MAX_COMPARED].lower()
    cutoff = _SHORT_CUTOFF if len(wanted) <= _SHORT else _CUTOFF
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff)
    if not close and len(wanted) >= _MIN_BEGINNING:
        close = [each for each in names if each.startswith(wanted)]
    return f"; did you mean {close[0]!r}?" if len(close) == 1 else ""


def name_known(name: str, known: Iterable[str], place: str) -> str:
    """Return what ``did_you_mean`` does, else ``; known are …``: all known names, or the place that lists many."""
    names = list(known)
    listed = ", ".join(names) if len(names) <= _MAX_LISTED else f"listed by {place}"
    return did_you_mean(name, names) or f"; known are {listed}"
