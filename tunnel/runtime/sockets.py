"""Sockets of TCP: made, bound, resolved and named. Errors become sentences here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import sys
import time
from typing import Final

from tunnel.model.address import Address
from tunnel.model.errors import TunnelError
from tunnel.model.spec import Direction, Mode, Role, TunnelSpec

BACKLOG: Final = 4096
"""Connections that the kernel holds for a listener (it takes net.core.somaxconn if that is less)."""

_PLAIN: Final = int(socket.SOCK_STREAM)
_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

SockAddr = tuple[str, int] | tuple[str, int, int, int]

_RENO: Final = int.from_bytes(b"reno", sys.byteorder)
"""As a number, for ``setsockopt`` takes three times as long over bytes."""

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_NAME_TTL: Final = 5.0  # seconds that a resolved name is trusted for targets: a burst asks once, a change is soon seen
_SENTENCES: Final = {
    errno.ECONNREFUSED: "it refused the connection",
    errno.ETIMEDOUT: "it did not answer in time",
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "its network cannot be reached from here",
    errno.ECONNRESET: "it reset the connection",
    errno.EADDRINUSE: "the address is in use by another program",
    errno.EADDRNOTAVAIL: "the address is not one of this host",
    errno.EACCES: "this user may not use that port",
    errno.EPERM: "the firewall of this host forbids it",
    errno.EMFILE: "this process has no file descriptors left",
    errno.ENFILE: "this host has no file descriptors left",
}


class NetError(TunnelError, OSError):
    """Something with an address went wrong; the message is a sentence."""


def describe(error: BaseException) -> str:
    """What went wrong, as the end of a sentence."""
    if isinstance(error, NetError):
        return str(error)
    if isinstance(error, TimeoutError) and not getattr(error, "errno", None):
        return _SENTENCES[errno.ETIMEDOUT]
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, OSError) and error.errno is not None:
        return _SENTENCES.get(error.errno) or os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def show(address: object) -> str:
    """A socket's address as ``host:port``, IPv6 in brackets, an IPv4 one behind IPv6 as itself."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "?"
    host = str(address[0]).removeprefix("::ffff:") if "." in str(address[0]) else str(address[0])
    return str(Address(host, int(address[1])))


def peer_of(sock: socket.SocketType) -> str:
    """Who is at the other end, as far as that is still known: of a connection that was reset it is not."""
    try:
        return show(sock.getpeername())
    except OSError:
        return show(None)


def no_delay(sock: socket.SocketType) -> None:
    """Send small writes at once. On a listener: inherited by all it accepts."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def keep_alive(sock: socket.SocketType) -> None:
    """Notice a dead peer within a minute, and keep address translators awake. On a listener: inherited as well.

    Four system calls, which a connection is only worth that lives for some seconds.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def limit_silence(sock: socket.SocketType, seconds: float) -> None:
    """End a connection whose bytes nobody acknowledged for so long: for control channels only.

    On a data connection it would also end one whose reader merely pauses (zero window).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


@functools.lru_cache(maxsize=64)
def is_paced_in_vain(host: str) -> bool:
    """Whether connections to this address, or accepted on it, are better made with ``no_pacing``.

    So it is on loopback where this host's default is BBR. There is nothing to control there, but BBR meters out what is
    sent all the same: a relay then needs twice the CPU per byte and gets no further than the timers allow.
    """
    return (host == "::1" or host.startswith("127.")) and _default_control().startswith(b"bbr")


def _default_control() -> bytes:
    """The algorithm of congestion control that this host gives to new connections."""
    try:
        with socket.socket() as probe:
            return probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    except OSError:
        return b""


def no_pacing(sock: socket.SocketType) -> None:
    """Have Reno, which any user may (tcp(7)). On a listener: inherited by all it accepts.

    Before the connection is made, for the pacing of the first algorithm stays on.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _RENO)


async def resolve(address: Address) -> list[tuple[socket.AddressFamily, SockAddr]]:
    """The socket addresses of a host and port, asked anew every time. Raises OSError."""
    host = address.host
    if (ip := address.ip) is not None:
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return [(family, (host, address.port) if ip.version == 4 else (host, address.port, 0, 0))]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # not even a question for the name service
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]  # type: ignore[misc]  # TCP has no other shapes


async def listen(address: Address, *, what: str, client_speaks_first: bool = False) -> socket.SocketType:
    """A non-blocking listener on an address; an empty host or ``::`` takes IPv4 as well, as in Go.

    ``client_speaks_first`` lets the kernel keep connections until their first bytes are there. ``what`` names it in the
    error. Raises NetError, with ``errno``.
    """
    try:
        if not address.host:
            address = Address("::" if _has_ipv6() else "0.0.0.0", address.port)
        candidates = await resolve(address)
        family, sockaddr = next((c for c in candidates if c[0] == socket.AF_INET), candidates[0])
        sock = socket.SocketType(family, _STREAM)
    except OSError as error:
        raise _listen_error(error, address, what) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
        no_delay(sock)
        keep_alive(sock)
        if is_paced_in_vain(sockaddr[0]):
            no_pacing(sock)
        if client_speaks_first:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _listen_error(error, address, what) from None
    return sock


def _listen_error(error: OSError, address: Address, what: str) -> NetError:
    failure = NetError(f"cannot listen on {address} for {what}: {describe(error)}")
    failure.errno = error.errno
    return failure


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def family_of(sockaddr: SockAddr) -> socket.AddressFamily:
    """The family of a resolved socket address."""
    return socket.AF_INET6 if ":" in sockaddr[0] else socket.AF_INET


def accept(listener: socket.SocketType) -> tuple[socket.SocketType, object]:
    """The next connection, non-blocking, and where it comes from. Raises OSError.

    ``socket.accept`` would make two enum members anew for each connection: half of the time that it takes.
    """
    fd, peer = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001  the system call, without that
    sock = socket.SocketType(listener.family, _PLAIN, 0, fd)
    sock.setblocking(False)
    return sock, peer


def begin_connect(family: socket.AddressFamily, sockaddr: SockAddr, *, speaks_first: bool = False) -> socket.SocketType:
    """A socket that is connecting; it is writable when that is over. Raises OSError where it fails at once.

    Whoever ``speaks_first`` lets his first bytes complete the handshake, instead of a segment without any before them:
    less work for both ends. The kernel waits a fifth of a second for them at the most.
    """
    sock = socket.SocketType(family, _STREAM)
    try:
        no_delay(sock)
        if is_paced_in_vain(sockaddr[0]):
            no_pacing(sock)
        if speaks_first:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)  # tcp(7); it does not last, nor shall it
        code = sock.connect_ex(sockaddr)
        if code not in {0, errno.EINPROGRESS}:
            raise OSError(code, os.strerror(code))
    except OSError:
        sock.close()
        raise
    return sock


def connect_error(sock: socket.SocketType) -> OSError | None:
    """How a connection attempt that is over went wrong, or None."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None


class Dialled:
    """An address that is dialled again and again: its socket addresses, the one that answered last first.

    A literal is ready at once; a name is resolved again whenever the last answer is some seconds old or did not work.
    """

    def __init__(self, address: Address) -> None:
        if address.is_wildcard:  # whoever writes "every interface" as a destination means this host
            ip = address.ip
            address = Address("::1" if ip is not None and ip.version == 6 else "127.0.0.1", address.port)
        self.address = address
        self._known: list[tuple[socket.AddressFamily, SockAddr]] = []
        self._fresh_until = 0.0

    def ready(self) -> list[tuple[socket.AddressFamily, SockAddr]] | None:
        """The addresses if they are known and fresh, else None: then ``refresh``."""
        return self._known if time.monotonic() < self._fresh_until else None

    async def refresh(self) -> list[tuple[socket.AddressFamily, SockAddr]]:
        """Resolve now. Raises OSError."""
        self._known = await resolve(self.address)
        literal = self.address.ip is not None
        self._fresh_until = float("inf") if literal else time.monotonic() + _NAME_TTL
        return self._known

    def answered(self, sockaddr: SockAddr) -> None:
        """This one answered: it is the first to try."""
        if self._known and self._known[0][1] != sockaddr:
            self._known = sorted(self._known, key=lambda entry: entry[1] != sockaddr)

    def forget(self) -> None:
        """None of them worked: resolve anew next time."""
        if self.address.ip is None:
            self._fresh_until = 0.0


def direction_of(spec: TunnelSpec) -> Direction:
    """A server's direction, from its URL alone and never from timing.

    In ``auto``, a target on this host is where visitors are accepted (reverse): a wildcard, localhost, this host's own
    name, or one of its IP addresses. Anything else is dialled (forward). Other names are not resolved for this: whether
    a name resolves, and to what, may change from one minute to the next.
    """
    if spec.mode is not Mode.AUTO:
        return Direction(spec.mode.value)
    target = spec.target
    ours = target.is_wildcard or target.is_loopback or _is_own_name(target.host) or _is_own_ip(target)
    return Direction.REVERSE if ours else Direction.FORWARD


def is_entrance(spec: TunnelSpec, direction: Direction) -> bool:
    """Whether a tunnel's end accepts the visitors."""
    return (spec.role is Role.SERVER) is (direction is Direction.REVERSE)


def _is_own_name(host: str) -> bool:
    name = socket.gethostname().lower()
    return host.lower().rstrip(".") in {name, name.partition(".")[0]} or host.lower().endswith(".localhost")


def _is_own_ip(address: Address) -> bool:
    ip = address.ip
    if ip is None:
        return False
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(ip), 9))  # sends nothing; the kernel picks the address it would send from
        return str(probe.getsockname()[0]) == str(ip)
    return False
