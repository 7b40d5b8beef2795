"""TLS without sockets: contexts, the server's own certificate, and a session that turns bytes into bytes.

A session works on memory BIOs rather than on a socket. One read from the socket then feeds many records, one write
carries many, and a half-close (close_notify, after which the other direction goes on: RFC 8446 §6.1) cannot swallow
data, which ``SSLSocket.unwrap`` would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Final

from tunnel.model.errors import TunnelError
from tunnel.model.spec import DataTls, TunnelSpec

RECORD: Final = 16384
"""Bytes of plaintext in one TLS record at most (RFC 8446 §5.1)."""

_MAKER: Final = str(Path(__file__).resolve().with_name("certificate.py"))


class TlsError(TunnelError):
    """TLS failed or cannot be set up; the message is a sentence for our own log."""


class Identity:
    """The certificate that a process makes for all its servers, once, when the first of them needs it."""

    def __init__(self) -> None:
        self._making: asyncio.Task[ssl.SSLContext] | None = None

    async def context(self) -> ssl.SSLContext:
        """A server's context with that certificate. Raises TlsError."""
        if self._making is None or (self._making.done() and not _succeeded(self._making)):
            self._making = asyncio.create_task(_own_context())
        return await asyncio.shield(self._making)


def _succeeded(task: asyncio.Task[ssl.SSLContext]) -> bool:
    return not task.cancelled() and task.exception() is None


def _run_maker() -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", _MAKER]
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)  # noqa: S603  our own file


async def _own_context() -> ssl.SSLContext:
    # In a thread: a subprocess of asyncio's own, cut short with its loop, is neither reaped nor closed by anybody.
    maker = await asyncio.to_thread(_run_maker)
    if maker.returncode != 0:
        last = maker.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise TlsError(f"cannot make a certificate: {last or 'the maker ended'}")
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # Only files can be loaded; a file in memory never touches a disk.
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, maker.stdout)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is ever resumed: tickets would be dead weight on every handshake
    return context


async def server_context(spec: TunnelSpec, identity: Identity) -> ssl.SSLContext:
    """The context of a server: its certificate files, else the process's own certificate. Raises TlsError."""
    if spec.tls_cert is None or spec.tls_key is None:
        return await identity.context()
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(spec.tls_cert, spec.tls_key)
    except OSError as error:
        detail = error.strerror if not isinstance(error, ssl.SSLError) else "they are not a certificate and its key"
        raise TlsError(f"cannot use {spec.tls_cert} with {spec.tls_key}: {detail}") from None
    return context


def client_context(spec: TunnelSpec) -> ssl.SSLContext:
    """The context of a client's control channel: verified for tls=2, else bound by the proof alone. Raises TlsError."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if spec.data_tls is not DataTls.VERIFIED:
        return _trusting(context)
    try:
        if spec.tls_ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(spec.tls_ca)
    except OSError as error:
        detail = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificate"
        raise TlsError(f"cannot use {spec.tls_ca}: {detail}") from None
    return context


def pinned_context() -> ssl.SSLContext:
    """The context of a client's data connections, whose certificate is compared with the control channel's."""
    return _trusting(_context(ssl.PROTOCOL_TLS_CLIENT))


def _trusting(context: ssl.SSLContext) -> ssl.SSLContext:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsSession:
    """One end of one TLS connection: ciphertext in and out on one side, plaintext on the other."""

    __slots__ = ("_ahead", "_incoming", "_outgoing", "_tls", "closed", "ready")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, host: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=host)
        self._ahead = b""  # plaintext that had to be read before its time
        self.ready = False
        """whether the handshake is complete"""
        self.closed = False
        """whether the other end has said close_notify"""

    def feed(self, data: bytes | memoryview) -> None:
        """Take ciphertext that arrived."""
        self._incoming.write(data)

    def feed_from(self, sock: socket.SocketType) -> None:
        """Take all ciphertext that a socket has now. Raises TlsError at its end, OSError where it is broken."""
        with contextlib.suppress(BlockingIOError):
            while data := sock.recv(RECORD):
                self.feed(data)
            raise TlsError("the other end closed the connection")

    def feed_eof(self) -> None:
        """The connection ended; without a close_notify before it, reading will raise TlsError."""
        self._incoming.write_eof()

    @property
    def readable(self) -> bool:
        """Whether ``read_into`` may find anything: plaintext, ciphertext that was not looked at, or the end."""
        incoming = self._incoming
        return bool(incoming.pending or self._ahead or self._tls.pending() or incoming.eof or self.closed)

    def take(self) -> bytes:
        """Ciphertext to send now."""
        return self._outgoing.read()

    @property
    def pending_out(self) -> int:
        """Ciphertext to send, in bytes."""
        return self._outgoing.pending

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is complete. Raises TlsError."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise TlsError(f"the server's certificate is not accepted: {error.verify_message}") from None
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"the TLS handshake failed ({_detail(error)})") from None
        self.ready = True
        return True

    def read_into(self, buffer: memoryview) -> int:
        """Plaintext into ``buffer``: its length in bytes, 0 while there is none (or, with ``closed``, no more).

        Raises TlsError.
        """
        if self._ahead:
            got = min(len(buffer), len(self._ahead))
            buffer[:got] = self._ahead[:got]
            self._ahead = self._ahead[got:]
            return got
        try:
            got = int(self._tls.read(len(buffer), buffer))
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError:
            got = 0
        except ssl.SSLError as error:
            raise TlsError(f"TLS failed ({_detail(error)})") from None
        self.closed = not got  # Python tells close_notify by 0, or by an exception if this end has said it before
        return got

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt ``data``; ``take`` gives the result. Raises TlsError."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsError(f"TLS failed ({_detail(error)})") from None

    def close_notify(self) -> None:
        """Say that no more plaintext will come from here; reading goes on.

        Python goes on to look for the other end's close_notify, and takes data in its stead for a fatal error. So what
        is there is read first.
        """
        record = memoryview(bytearray(RECORD))
        ahead = []
        with contextlib.suppress(TlsError):
            while not self.closed and (got := self.read_into(record)):
                ahead.append(bytes(record[:got]))
        self._ahead = b"".join(ahead)
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            return  # it is said; the other end's own word is waited for by reading, or nobody listens any more

    def certificate(self) -> bytes:
        """The other end's certificate as DER, or nothing where it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""


def own_certificate(context: ssl.SSLContext) -> bytes:
    """The certificate that a server's context shows, as DER."""
    server = TlsSession(context, server_side=True)
    client = TlsSession(pinned_context(), server_side=False)
    while not client.handshake():  # the context does not tell; a handshake in memory does
        server.feed(client.take())
        server.handshake()
        client.feed(server.take())
    return client.certificate()


def _detail(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else type(error).__name__
