"""What the columns of ``ps``, ``fleet ps`` and the dashboard show: one row for each title, for the help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PS: Final = "ps"
TOP: Final = "top"
_BOTH: Final = (PS, TOP)


@dataclass(frozen=True, slots=True)
class ColumnMeaning:
    """A column: what it shows, and what to do about an odd value."""

    title: str
    screens: tuple[str, ...]
    """the commands that show it"""
    text: str


COLUMN_MEANINGS: Final = (
    ColumnMeaning(
        "NAME", _BOTH, "The name of the entry in the file; of a service that a client published ENTRY/SERVICE."
    ),
    ColumnMeaning("HOST", (TOP,), "The daemon of a fleet that runs the tunnel."),
    ColumnMeaning(
        "ROLE",
        _BOTH,
        "The server listens on the tunnel address, the client connects to it. In top with the direction.",
    ),
    ColumnMeaning(
        "DIRECTION",
        (PS,),
        "Which end accepts visitors: reverse means the server, forward the client; - is not decided yet. mode decides.",
    ),
    ColumnMeaning(
        "STATE", _BOTH, "The state, in a cooldown with the seconds left. nodepass-orch help states has the meanings."
    ),
    ColumnMeaning("TUNNEL", _BOTH, "The tunnel address, on which the server listens and to which the client connects."),
    ColumnMeaning(
        "TARGET",
        _BOTH,
        "The address on which this end accepts visitors, or which it dials for them: the other end has the other one.",
    ),
    ColumnMeaning(
        "TARGETS",
        (PS,),
        "Of several targets how many are up, and how many there are. ps --json has the reason of each (targets).",
    ),
    ColumnMeaning(
        "POOL",
        _BOTH,
        "Idle data connections that are ready for visitors / how many the tunnel wants at this moment. The number "
        "wanted follows the demand, between min_pool_capacity and max_pool_capacity; a few more than wanted are kept. "
        "None idle while the tunnel is up means that visitors wait: raise min_pool_capacity, or see whether the client "
        "reaches the server's data port.",
    ),
    ColumnMeaning(
        "SIGNALS",
        (TOP,),
        "Visitors that wait for a data connection / how many may wait (signal_queue_limit). If visitors keep waiting, "
        "the pool is too small for the demand: raise min_pool_capacity.",
    ),
    ColumnMeaning("SIG", (TOP,), "Visitors that wait for a data connection: SIGNALS on a narrow screen."),
    ColumnMeaning("VISITORS", _BOTH, "Visitors that are present. nodepass-orch visitors lists them, in top the key V."),
    ColumnMeaning("FROM VISITORS", (PS,), "Bytes that came from visitors, since the daemon started."),
    ColumnMeaning("TO VISITORS", (PS,), "Bytes that went to visitors, since the daemon started."),
    ColumnMeaning("RATE FROM", (PS,), "Bytes per second from visitors, the mean of the last seconds."),
    ColumnMeaning("RATE TO", (PS,), "Bytes per second to visitors, the mean of the last seconds."),
    ColumnMeaning("↓/s", (TOP,), "Bytes per second to visitors."),
    ColumnMeaning("↑/s", (TOP,), "Bytes per second from visitors."),
    ColumnMeaning(
        "RTT", (TOP,), "The round trip between client and server, in milliseconds, over the control channel."
    ),
    ColumnMeaning(
        "AUTH",
        _BOTH,
        "key: both ends prove that they have the same key. open: every peer that finds the port is accepted; write a "
        "key (nodepass-orch keygen).",
    ),
    ColumnMeaning("SERVICE", (PS,), "The name that both ends agree on (service), where entries share a port or a key."),
    ColumnMeaning(
        "KEY",
        (PS,),
        "Which of the named keys (keys:) the present client has; +2 means two other clients with other keys.",
    ),
    ColumnMeaning("PUBLISHED BY", (PS,), "The named key whose client has published the service (publish:)."),
    ColumnMeaning("WORKER", (PS,), "The number of the worker process that runs the tunnel (supervisor: workers)."),
    ColumnMeaning(
        "REFUSED",
        (PS,),
        "Visitors that this end has refused since the daemon started; shown if there is one. ps --json has the number "
        "of each reason (refused), the log the addresses.",
    ),
    ColumnMeaning(
        "LINKS",
        (PS,),
        "Links that can serve visitors / how many there may be: the clients of a server (clients), or the servers of a "
        "client. If some are missing, ps --json names the present ones (links) and the reason of each server "
        "(servers); in top the key m.",
    ),
    ColumnMeaning(
        "PROTO", (PS,), "What visitors speak: tcp, udp or both (proto). Not shown if all tunnels are of tcp."
    ),
    ColumnMeaning(
        "UDP",
        (PS,),
        "How datagrams travel between client and server: as datagrams, or as a stream over data connections. ps --json "
        "has the reason of a stream (links[].udp_reason); mostly a firewall keeps UDP from the tunnel port.",
    ),
    ColumnMeaning(
        "REASON",
        _BOTH,
        "Why the tunnel is not up, or what limits one that is. On a narrow terminal on lines below the tunnel.",
    ),
)
