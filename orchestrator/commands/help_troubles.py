"""The topics of ``help`` on troubles: what a user asks when a tunnel is not up, or does not serve visitors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Trouble:
    """A topic with the other words under which users look for it."""

    name: str
    words: tuple[str, ...]
    text: str


TROUBLES: Final = (
    Trouble(
        "wrong-key",
        ("wrong key", "key", "keys", "handshake", "refused handshake", "authentication"),
        """\
wrong-key: the two ends of a tunnel prove to each other that they have the same key and the same service.

With another key, or another service, there is no link:
  at the client ps says: refused: most likely the keys or the service names differ
  at the server ps says: refused a client from ADDRESS: the client has another key, or …

Compare key and service in the two files. nodepass-orch init writes both files with one new key, nodepass-orch keygen
prints a key. In a URL, characters like / and @ of a key are percent-encoded. A saved file is applied at once.
If both are the same, something between the ends decrypts TLS, such as a proxy: the tunnel port needs plain TCP.""",
    ),
    Trouble(
        "visitors-refused",
        (
            "visitors refused",
            "visitors are refused",
            "refused visitors",
            "refused",
            "visitor refused",
            "refused visitor",
        ),
        """\
visitors-refused: the end that accepts visitors resets a connection at once; the other end learns nothing of it.

  nodepass-orch ps --json | jq '.tunnels[] | {name, refused}'     how many, by reason
  nodepass-orch logs | grep refused                               addresses and reasons
The reasons, and the options that decide them; all change while the tunnel runs:
  allow         the address is in deny, or not in allow
  per_address   it has max_per_address visitors already
  rate          it had more than rate_new new visitors per second
  proxy         a balancer in proxy_from sent no valid PROXY header: it has to send one
  quota         the quota is used up: raise it, or wait for the next period
  limit         semaphore_limit visitors were present, and it spoke UDP; visitors of TCP wait instead
Behind NAT or a balancer many visitors share one address. A client that is refused: nodepass-orch help wrong-key""",
    ),
    Trouble(
        "cooldown",
        ("retry", "unreachable", "cannot connect"),
        """\
The tunnel tries again by itself, after a growing pause; ps shows the seconds left and the reason. nodepass-orch retry
NAME tries at once. The reasons, and what helps:
  it refused the connection      no server runs at that address and port: start it, compare the port
  it did not answer in time      a firewall drops the connection, or the address is wrong: open the tunnel port
  refused: most likely the keys  nodepass-orch help wrong-key
  the target …                   the service behind the tunnel is down: start it; nodepass-orch test NAME shows the way
The pauses begin at server_cooldown and client_cooldown.""",
    ),
    Trouble(
        "log",
        ("logs", "log file", "debug", "where is the log"),
        """\
The log of a daemon:
  nodepass-orch logs             its last lines, from the daemon; -F follows, --level debug shows more
  up -d, up on a terminal        a file in the state directory: /var/lib/nodepass-orch for root, for other users
                                 ~/.local/state/nodepass-orch; up -d prints its name
  up --no-tui, a single URL      stderr; with systemd: journalctl -u nodepass-orch
For more detail: log: debug in an entry or in defaults:, or up --log-level debug. Visitors: supervisor.access_log.""",
    ),
    Trouble(
        "port-in-use",
        ("port in use", "address in use", "port"),
        """\
port-in-use: another program listens on the address that a tunnel needs. ss -ltnp 'sport = :PORT' (UDP: ss -lunp) names
it, as root. "python3" may be another daemon of this program: nodepass-orch ls lists those with their pids.
End that program, or write another port. The tunnel starts by itself when the port is free.
A port below 1024 needs a privilege: with systemd AmbientCapabilities=CAP_NET_BIND_SERVICE, else run as root.
Two entries may share a tunnel port if each has a service of its own.""",
    ),
)
"""The texts have at most 120 columns, as messages have."""


def explain_trouble(topic: str) -> str:
    """Return what to do about a trouble, by its name or another word for it; empty if there is no such topic."""
    return next((row.text for row in TROUBLES if topic == row.name or topic in row.words), "")
