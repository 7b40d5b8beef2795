"""TCP sockets: made, bound, accepted, connected and formatted; socket errors as the ends of sentences."""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import os
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.model.address import Address
from tunnel.model.errors import TunnelError
from tunnel.model.spec import Proto

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BACKLOG: Final = 4096
"""Connections that the kernel keeps for a listener (it takes net.core.somaxconn if that is less)."""

_PLAIN: Final = int(socket.SOCK_STREAM)
_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

PROTOS: Final = {_PLAIN: Proto.TCP, int(socket.SOCK_DGRAM): Proto.UDP}
"""What a visitor or target speaks, by the ``type`` of its socket."""

SockAddr = tuple[str, int] | tuple[str, int, int, int]

# Looked up once: they are used for every connection.
_SOCKET: Final = socket.SOL_SOCKET
_OOBINLINE: Final = socket.SO_OOBINLINE
_TCP: Final = socket.IPPROTO_TCP
_NODELAY: Final = socket.TCP_NODELAY
_QUICKACK: Final = socket.TCP_QUICKACK
_CONGESTION: Final = socket.TCP_CONGESTION
_IN_PROGRESS: Final = errno.EINPROGRESS
_ESTABLISHED: Final = 1  # TCP_ESTABLISHED, linux/tcp_states.h: the first byte of struct tcp_info

_RENO: Final = int.from_bytes(b"reno", sys.byteorder)
"""As a number, because ``setsockopt`` takes three times as long with bytes."""

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; socket(7)
_DROP_ALL: Final = array.array("B", struct.pack("=HBBI", 0x06, 0, 0, 0))
"""A packet filter of one instruction, ``ret 0``: nothing passes (struct sock_filter, linux/filter.h)."""

_UNMEASURED: Final = 0xFFFFFFFF
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_REASONS: Final = {
    errno.ECONNREFUSED: "it refused the connection",
    errno.ETIMEDOUT: "it did not answer in time",
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "its network cannot be reached from here",
    errno.ECONNRESET: "it reset the connection",
    errno.EPERM: "the firewall of this host forbids it",
    errno.EMFILE: "this process has no file descriptors left",
    errno.ENFILE: "this host has no file descriptors left",
}
_BIND_REASONS: Final = _REASONS | {
    errno.EADDRINUSE: "the address is in use by another program",
    errno.EADDRNOTAVAIL: "the address is not one of this host",
    errno.EACCES: "this user may not use that port; one below 1024 needs the capability CAP_NET_BIND_SERVICE",
}
_CONNECT_REASONS: Final = _REASONS | {
    errno.EADDRNOTAVAIL: "this host has no local port left for it (net.ipv4.ip_local_port_range)",
    errno.EADDRINUSE: "this host has no local port left for it (net.ipv4.ip_local_port_range)",
    errno.EACCES: "a route or security policy of this host prohibits it",
    errno.EINVAL: "a route of this host discards what is sent to it (blackhole)",
}

_LOCAL_FAULTS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENOBUFS, errno.ENOMEM}
)
_EPHEMERAL_PORTS_FILE: Final = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_EPHEMERAL_PORTS: Final = (32768, 60999)  # where the file cannot be read

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for zero seconds: closing sends a reset (socket(7))."""


class NetError(TunnelError, OSError):
    """An address cannot be used; the message is a full sentence, ``errno`` is set where the kernel gave one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.errno = code


def describe_error(error: BaseException) -> str:
    """Return the reason of a failure on an existing connection, as the end of a sentence."""
    return _describe(error, _REASONS)


def describe_bind_error(error: BaseException) -> str:
    """Return why a listener cannot be opened, as the end of a sentence."""
    return _describe(error, _BIND_REASONS)


def describe_connect_error(error: BaseException) -> str:
    """Return why a connection cannot be made, as the end of a sentence; some codes mean other things than for bind."""
    return _describe(error, _CONNECT_REASONS)


def _describe(error: BaseException, reasons: Mapping[int, str]) -> str:
    if isinstance(error, NetError):
        return str(error)
    if isinstance(error, TimeoutError) and not getattr(error, "errno", None):
        return _REASONS[errno.ETIMEDOUT]
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, OSError) and error.errno is not None:
        return reasons.get(error.errno) or os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def format_address(address: object) -> str:
    """Format a socket address as ``host:port``: IPv6 in brackets, an IPv4-mapped one as IPv4, "?" if there is none."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "?"
    host = str(address[0]).removeprefix("::ffff:") if "." in str(address[0]) else str(address[0])
    return str(Address(host, int(address[1])))


def format_peer(sock: socket.SocketType) -> str:
    """Format the peer's address, "?" where the kernel no longer knows it: after a reset it does not."""
    try:
        return format_address(sock.getpeername())
    except OSError:
        return format_address(None)


def are_local_faults(failures: Iterable[tuple[object, OSError]]) -> bool:
    """Whether connecting failed for want of something on this host alone, which proves nothing about the other one."""
    codes = [error.errno for _, error in failures]
    return bool(codes) and all(code in _LOCAL_FAULTS for code in codes)


def set_stream_options(sock: socket.SocketType) -> None:
    """Send small writes at once, and receive urgent data in line (SO_OOBINLINE), so that no byte of a stream is lost.

    Set on a listener, both are inherited by all accepted connections.
    """
    sock.setsockopt(_TCP, _NODELAY, 1)
    sock.setsockopt(_SOCKET, _OOBINLINE, 1)


def enable_keepalive(sock: socket.SocketType) -> None:
    """Notice a dead peer within a minute, and keep NAT mappings alive. Inherited from a listener as well.

    It takes four system calls, which only pay for a connection that lives for some seconds.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def set_user_timeout(sock: socket.SocketType, seconds: float) -> None:
    """End a connection whose sent bytes stay unacknowledged for so long (TCP_USER_TIMEOUT): control channels only.

    On a data connection it would also end one whose reader merely pauses (zero window).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


@functools.lru_cache(maxsize=64)
def should_disable_pacing(host: str) -> bool:
    """Whether connections to this address, or accepted on it, should be made with ``disable_pacing``.

    True on loopback where this host's default is BBR. There is no congestion to control there, but BBR paces the
    sender all the same: a relay then needs twice the CPU per byte and goes only as fast as the pacing timers allow.
    """
    return (host == "::1" or host.startswith("127.")) and _default_congestion_control().startswith(b"bbr")


def _default_congestion_control() -> bytes:
    """The congestion control algorithm that this host gives to new connections."""
    try:
        with socket.socket() as probe:
            return probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    except OSError:
        return b""


def unanswered_s(sock: socket.SocketType) -> float | None:
    """Return the seconds since the peer's last ACK if the kernel is repeating data or window probes; else None.

    Keepalive does not run while data is unacknowledged, and retransmission only ends after a quarter of an hour
    (tcp_retries2). A peer that merely pauses answers the window probes. Offsets as in struct tcp_info, linux/tcp.h.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    except OSError:
        return None
    retransmits, probes = info[2], info[3]
    if not (retransmits or probes):
        return None
    return int.from_bytes(info[56:60], sys.byteorder) / 1000


def min_round_trip_s(sock: socket.SocketType) -> float | None:
    """Return the shortest round trip that the kernel has measured of late (``tcpi_min_rtt``); None before the first."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 152)
    except OSError:
        return None
    microseconds = int.from_bytes(info[148:152], sys.byteorder) if len(info) >= 152 else _UNMEASURED
    return None if microseconds == _UNMEASURED else microseconds / 1e6


def count_backlog(listener: socket.SocketType) -> int:
    """Return how many complete connections of a listener are not accepted yet: ``tcpi_unacked`` of struct tcp_info."""
    return int.from_bytes(listener.getsockopt(_TCP, socket.TCP_INFO, 28)[24:28], sys.byteorder)


def disable_pacing(sock: socket.SocketType) -> None:
    """Use Reno, which any user may (tcp(7)). Set on a listener, it is inherited by all accepted connections.

    It has to be set before the connection is made, because the pacing of the first algorithm stays active.
    """
    sock.setsockopt(_TCP, _CONGESTION, _RENO)


def is_closed_by_peer(sock: socket.SocketType) -> bool:
    """Whether the peer of a connected socket has closed or reset it, or finished sending; unread bytes may be left."""
    try:
        return sock.getsockopt(_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
    except OSError:
        return False


def open_listener(family: socket.AddressFamily, sockaddr: SockAddr, *, client_speaks_first: bool) -> socket.SocketType:
    """Bind a non-blocking listener to a resolved address; ``::`` accepts IPv4 as well, as in Go. Raises OSError.

    With ``client_speaks_first`` the kernel keeps each connection back until its first bytes have arrived.
    """
    sock = socket.SocketType(family, _STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sockaddr[0] != "::"))
        set_stream_options(sock)
        enable_keepalive(sock)
        if should_disable_pacing(sockaddr[0]):
            disable_pacing(sock)
        if client_speaks_first:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def is_loopback(sockaddr: SockAddr) -> bool:
    """Whether a resolved socket address is on this host's loopback interface."""
    return sockaddr[0].startswith("127.") or sockaddr[0] == "::1"


def reset_on_close(sock: socket.SocketType) -> None:
    """Close with a reset instead of an orderly end, when it is closed."""
    with contextlib.suppress(OSError):  # the connection may be gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def family_of(sockaddr: SockAddr) -> socket.AddressFamily:
    """The family of a resolved socket address."""
    return socket.AF_INET6 if ":" in sockaddr[0] else socket.AF_INET


def drop_new_connections(listener: socket.SocketType) -> None:
    """Discard connection attempts that arrive at a listener from now on; those in its backlog can still be accepted.

    Otherwise a connection may become complete between the last accept and the close, which resets it. A peer whose
    attempt was discarded repeats it after a second, and is refused or reaches a successor. Where the system does not
    allow it, nothing changes.
    """
    program, _ = _DROP_ALL.buffer_info()
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, program))


def accept(listener: socket.SocketType) -> tuple[socket.SocketType, object]:
    """Return the next connection, non-blocking, and its peer's address. Raises OSError.

    ``socket.accept`` makes two new enum members for each connection, which is half of the time that it takes.
    """
    fd, peer = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001  the system call, without that
    sock = socket.SocketType(listener.family, _PLAIN, 0, fd)
    sock.setblocking(False)
    return sock, peer


def start_connect(family: socket.AddressFamily, sockaddr: SockAddr, *, speaks_first: bool = False) -> socket.SocketType:
    """Return a socket that is connecting; it becomes writable when the attempt is over. Raises OSError.

    With ``speaks_first`` the first bytes that this end sends complete the TCP handshake, instead of an empty ACK before
    them: less work for both ends. The kernel waits a fifth of a second for those bytes at most.
    """
    sock = socket.SocketType(family, _STREAM)
    try:
        if speaks_first:  # a data connection, whose other end sends no urgent data
            sock.setsockopt(_TCP, _NODELAY, 1)
            sock.setsockopt(_TCP, _QUICKACK, 0)  # tcp(7): not permanent, which suits us
        else:
            set_stream_options(sock)
        if should_disable_pacing(sockaddr[0]):
            disable_pacing(sock)
        code = sock.connect_ex(sockaddr)
        if code and code != _IN_PROGRESS:
            raise OSError(code, os.strerror(code))
    except OSError:
        sock.close()
        raise
    return sock


def get_connect_error(sock: socket.SocketType) -> OSError | None:
    """Return why a finished connection attempt failed, or None if it succeeded."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None


def is_connected_to_itself(sock: socket.SocketType, sockaddr: SockAddr) -> bool:
    """Whether a new connection to ``sockaddr`` ended at its own socket (TCP simultaneous open, RFC 9293 §3.5).

    That happens on this host where nothing listens on a port that the kernel may also choose as a source port.
    """
    low, high = _ephemeral_ports()
    if not low <= sockaddr[1] <= high:
        return False
    try:
        return bool(sock.getsockname()[:2] == sockaddr[:2])
    except OSError:  # reset in the meantime: its owner will see
        return False


@functools.cache
def _ephemeral_ports() -> tuple[int, int]:
    """The range from which the kernel chooses source ports."""
    try:
        low, high = map(int, Path(_EPHEMERAL_PORTS_FILE).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return _DEFAULT_EPHEMERAL_PORTS
    return low, high
