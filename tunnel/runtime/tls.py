"""TLS without sockets: contexts, the self-signed certificate, and a session that turns bytes into bytes.

A session works on memory BIOs rather than on a socket: one read from the socket then feeds many records, and one write
carries many.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tunnel.model.errors import TunnelError
from tunnel.model.files import MAX_CERTIFICATE_BYTES, read_file
from tunnel.model.spec import DataTls, TunnelSpec
from tunnel.runtime.blocking_calls import ThreadShortageError
from tunnel.runtime.python_programs import file_command, python_environment
from tunnel.runtime.sockets import NetError

MAX_HANDSHAKE_BYTES: Final = 1 << 17
"""Bytes that a peer may send before its handshake is complete. OpenSSL itself sets no limit to some of them (empty
records, HelloRequest); a chain of certificates may have 100 KB there."""

_TLS_REASONS: Final = {
    "HTTP_REQUEST": "the other end speaks HTTP",
    "WRONG_VERSION_NUMBER": "the other end does not speak TLS",
    "TLSV1_ALERT_UNKNOWN_CA": "the other end does not accept this certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other end does not accept this certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other end does not speak TLS 1.3",
}
"""What OpenSSL's reasons mean, where its words do not say it."""

_Result = TypeVar("_Result")
_CERTIFICATE_PROGRAM: Final = str(Path(__file__).resolve().with_name("certificate.py"))


class TlsError(TunnelError):
    """TLS failed or cannot be set up; the message is a sentence for our own log."""


class SelfSignedCertificate:
    """The certificate that a process makes for all its servers, once, when the first of them needs it."""

    def __init__(self) -> None:
        self._making: asyncio.Task[ssl.SSLContext] | None = None

    async def context(self) -> ssl.SSLContext:
        """Return a server context with that certificate. Safe to cancel: others may wait for it.

        Raises TlsError, and NetError while no thread or process can be started.
        """
        if self._making is None or (self._making.done() and not _succeeded(self._making)):
            self._making = asyncio.create_task(_self_signed_context())
        return await asyncio.shield(self._making)


def _succeeded(task: asyncio.Task[ssl.SSLContext]) -> bool:
    return not task.cancelled() and task.exception() is None


async def _run_in_thread(function: Callable[[], _Result]) -> _Result:
    """Return the result of a blocking function. Raises what it raises, and NetError while no thread can be started."""
    try:
        return await asyncio.to_thread(function)
    except ThreadShortageError as error:
        raise NetError(str(error), error.errno) from None


def _run_certificate_program() -> subprocess.CompletedProcess[bytes]:
    try:
        return _start_certificate_program()
    except OSError as error:
        text = f"the program that makes a certificate cannot be started: {error.strerror}"
        raise NetError(f"{text}; raise the pids limit" if error.errno == errno.EAGAIN else text) from None


def _start_certificate_program() -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603  our own file
        file_command(_CERTIFICATE_PROGRAM), check=False, stdin=subprocess.DEVNULL, capture_output=True,
        env=python_environment(os.environ),
    )  # fmt: skip


async def _self_signed_context() -> ssl.SSLContext:
    # In a thread: an asyncio subprocess that is interrupted with its loop is neither reaped nor closed.
    program = await _run_in_thread(_run_certificate_program)
    if program.returncode != 0:
        last_line = program.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise TlsError(f"cannot make a certificate: {last_line or 'its program failed'}")
    context = _make_context(ssl.PROTOCOL_TLS_SERVER)
    try:
        _load_certificate(context, program.stdout, program.stdout)
    except OSError as error:
        raise TlsError(f"cannot use the certificate that was made: {error.strerror or error}") from None
    return context


def _load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load certificates and their private key, both as PEM. Raises OSError, and TlsError for a key with a passphrase.

    OpenSSL loads them only from files. A file in memory never touches a disk; where the system denies that, or has no
    /proc, a private file takes its place for a moment.
    """
    with contextlib.ExitStack() as stack:
        paths: list[str] = []
        for pem in (certificate, key):
            path = _memory_file(stack) or _private_file(stack)
            with open(path, "wb") as stream:  # noqa: PTH123  the path of a descriptor
                stream.write(pem)
            paths.append(path)
        context.load_cert_chain(paths[0], paths[1], password=_refuse_passphrase)


def _memory_file(stack: contextlib.ExitStack) -> str | None:
    """Return the path of a file in memory that exists as long as the stack, or None where that is not possible."""
    try:
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    except OSError:
        return None
    stack.callback(os.close, descriptor)
    path = f"/proc/self/fd/{descriptor}"
    return path if os.access(path, os.R_OK | os.W_OK) else None


def _private_file(stack: contextlib.ExitStack) -> str:
    """Return the path of a file that only this user can read and that is deleted with the stack. Raises OSError."""
    descriptor, path = tempfile.mkstemp(prefix="nodepass-orch-")
    os.close(descriptor)
    stack.callback(os.unlink, path)
    return path


def _refuse_passphrase() -> str:
    """Stand in for OpenSSL's prompt, which would block the event loop until the user answers it."""
    raise TlsError("its private key has a passphrase; store it without one (openssl pkey -in KEY -out NEW_KEY)")


def _make_context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is ever resumed: tickets would be useless bytes in every handshake
    return context


async def server_context(spec: TunnelSpec, certificate: SelfSignedCertificate) -> ssl.SSLContext:
    """Return a server's context: its certificate files, else the self-signed certificate.

    Raises TlsError, and NetError while no thread or process can be started.
    """
    if spec.tls_cert is None or spec.tls_key is None:
        return await certificate.context()
    return await _run_in_thread(partial(certificate_files_context, spec.tls_cert, spec.tls_key))


def certificate_files_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context with these files. Blocks on the disk. Raises TlsError."""
    context = _make_context(ssl.PROTOCOL_TLS_SERVER)
    pem = [_read_pem(file) for file in (certificate, key)]
    try:
        _load_certificate(context, *pem)
    except ssl.SSLError:
        raise TlsError(f"cannot use {certificate} with {key}: they are not a certificate and its key") from None
    except (OSError, TlsError) as error:
        detail = (error.strerror if isinstance(error, OSError) else None) or error
        raise TlsError(f"cannot use {certificate} with {key}: {detail}") from None
    return context


def _read_pem(file: Path) -> bytes:
    try:
        return read_file(file, MAX_CERTIFICATE_BYTES).data
    except OSError as error:
        raise TlsError(f"cannot read {file}: {error.strerror}") from None


async def client_context(spec: TunnelSpec) -> ssl.SSLContext:
    """Return the context of a client's control channel: verified for tls=2, else only bound by the proof.

    Raises TlsError, and NetError while no thread can be started.
    """
    if spec.data_tls is not DataTls.VERIFIED:
        return _without_verification(_make_context(ssl.PROTOCOL_TLS_CLIENT))
    return await _run_in_thread(partial(verifying_context, spec.tls_ca))


def verifying_context(ca: Path | None) -> ssl.SSLContext:
    """Return a client's context that verifies with the certificates of a file, or of this host if there is no file.

    Blocks on the disk. Raises TlsError.
    """
    context = _make_context(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False  # RFC 9525 §2: a name counts only as subjectAltName
    if ca is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cadata=read_file(ca, MAX_CERTIFICATE_BYTES).text())
    except (ssl.SSLError, ValueError):  # ValueError: not ASCII
        raise TlsError(f"cannot use {ca}: it contains no certificate") from None
    except OSError as error:
        raise TlsError(f"cannot use {ca}: {error.strerror}") from None
    return context


def pinned_context() -> ssl.SSLContext:
    """Return a client's context that accepts any certificate: the proof of the handshake covers which one it was."""
    return _without_verification(_make_context(ssl.PROTOCOL_TLS_CLIENT))


def _without_verification(context: ssl.SSLContext) -> ssl.SSLContext:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsSession:
    """One end of one TLS connection: ciphertext in and out on one side, plaintext on the other."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "is_established", "peer_closed")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, host: str | None = None) -> None:
        """``host``: the name or address that the server's certificate has to be for. Raises TlsError if none can be."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=host)
        except ValueError:  # also UnicodeError
            raise TlsError(f"no certificate can be for the host name {host!r}") from None
        self.is_established = False
        """whether the handshake is complete"""
        self.peer_closed = False
        """whether the peer's close_notify was received"""

    def receive_data(self, data: bytes | memoryview) -> None:
        """Add ciphertext that was received."""
        self._incoming.write(data)

    @property
    def has_input(self) -> bool:
        """Whether ``read_into`` may find something: plaintext, or unread ciphertext."""
        return bool(self._incoming.pending or self._tls.pending())

    def data_to_send(self) -> bytes:
        """Return ciphertext to send now, and forget it here."""
        return self._outgoing.read()

    @property
    def bytes_to_send(self) -> int:
        """Bytes of ciphertext that ``data_to_send`` would return."""
        return self._outgoing.pending

    def do_handshake(self) -> bool:
        """Continue the handshake; return whether it is complete. Raises TlsError."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise TlsError(
                f"the server's certificate is not accepted: {error.verify_message}; tls_ca has to name its authority"
            ) from None
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"the TLS handshake failed ({_detail(error)})") from None
        self.is_established = True
        return True

    def read_into(self, buffer: memoryview) -> int:
        """Read plaintext into ``buffer``; return its bytes, 0 while there is none (or no more, with ``peer_closed``).

        Raises TlsError.
        """
        try:
            got = int(self._tls.read(len(buffer), buffer))
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError:
            got = 0
        except ssl.SSLError as error:
            raise TlsError(f"TLS failed ({_detail(error)})") from None
        self.peer_closed = not got
        return got

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt ``data``; ``data_to_send`` returns the result. Raises TlsError."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsError(f"TLS failed ({_detail(error)})") from None

    def peer_certificate(self) -> bytes:
        """Return the peer's certificate as DER, or nothing if it presented none."""
        return self._tls.getpeercert(binary_form=True) or b""


def presented_certificate(context: ssl.SSLContext) -> bytes:
    """Return the certificate that a server context presents, as DER."""
    server = TlsSession(context, server_side=True)
    client = TlsSession(pinned_context(), server_side=False)
    while not client.do_handshake():  # ``SSLContext`` has no method for it; a handshake in memory shows it
        server.receive_data(client.data_to_send())
        server.do_handshake()
        client.receive_data(server.data_to_send())
    return client.peer_certificate()


def _detail(error: Exception) -> str:
    reason = str(getattr(error, "reason", None) or type(error).__name__)
    return _TLS_REASONS.get(reason) or reason.lower().replace("_", " ")
