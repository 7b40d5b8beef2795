"""A man in the middle between the two ends: records, cuts, replays, or terminates their TLS connections."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.peers import SOCKET_TIMEOUT_S, Address, connect

TLS_FIRST_BYTE = 0x16


@dataclass(eq=False)
class InterceptedConnection:
    """One connection through the proxy."""

    near: socket.socket
    far: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    """the first bytes from the client, in clear text if the proxy terminates the TLS connection"""
    encrypted: bool = False
    over: bool = False

    def cut(self) -> None:
        """Shut down both sides."""
        for sock in (self.near, self.far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class InterceptingProxy:
    """A TCP proxy in front of a tunnel port.

    ``change`` may alter the first bytes that a client sends on a connection. ``mangle`` may alter and split all data in
    both directions. With ``interception_contexts`` the proxy terminates TLS connections and reads the clear text.
    """

    def __init__(
        self,
        upstream: Address | None = None,
        *,
        change: Callable[[bytes], bytes] = lambda data: data,
        interception_contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    ) -> None:
        self.mangle: Callable[[InterceptedConnection, bytes], Iterable[bytes]] = lambda _passage, data: [data]
        self._upstream = upstream
        self._change = change
        self._contexts = interception_contexts
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.passages: list[InterceptedConnection] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def intercept(self, port: int) -> int:
        """Proxy to this port of loopback; return the proxy's own port (for ``through`` of ``start_pair``)."""
        self._upstream = ("127.0.0.1", port)
        return self.port

    @property
    def controls(self) -> list[InterceptedConnection]:
        """The open control channels."""
        return [passage for passage in self.passages if passage.encrypted and not passage.over]

    @property
    def data(self) -> list[InterceptedConnection]:
        """The unencrypted data connections, closed ones included."""
        return [passage for passage in self.passages if not passage.encrypted and passage.sent]

    def close(self) -> None:
        """Stop listening and shut down all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for passage in list(self.passages):
            passage.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._proxy, args=(near,), daemon=True).start()

    def _proxy(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
            closing.enter_context(near)
            assert self._upstream is not None, "the proxy has no upstream yet"
            first = near.recv(1, socket.MSG_PEEK)
            far: socket.socket
            encrypted = first[:1] == bytes([TLS_FIRST_BYTE])
            if encrypted and self._contexts:
                as_server, as_client = self._contexts
                near = closing.enter_context(as_server.wrap_socket(near, server_side=True))
                # Before Python 3.12, wrapping a connection that was reset loses the socket: it is wrapped before that.
                far = closing.enter_context(as_client.wrap_socket(socket.socket(), server_hostname="localhost"))
                far.settimeout(SOCKET_TIMEOUT_S)
                far.connect(self._upstream)
            else:
                far = closing.enter_context(connect(self._upstream))
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            passage = InterceptedConnection(near, far, encrypted=encrypted)
            self.passages.append(passage)
            back = threading.Thread(target=self._pump, args=(passage, far, near), daemon=True)
            back.start()
            self._pump(passage, near, far, passage.sent, self._change)
            back.join()
            passage.over = True

    def _pump(
        self,
        passage: InterceptedConnection,
        source: socket.socket,
        sink: socket.socket,
        record: bytearray | None = None,
        change: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        try:
            while data := source.recv(1 << 16):
                if record is not None and len(record) < 1 << 16:
                    record += data
                    data = change(data) if len(record) == len(data) else data
                for piece in self.mangle(passage, data):
                    sink.sendall(piece)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def is_closed(sock: socket.socket) -> bool:
    """Whether the peer closes before the socket timeout, whatever it sends first."""
    sock.settimeout(SOCKET_TIMEOUT_S)
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


class CertificateAuthority:
    """A certificate authority for tests that issues certificates for loopback."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._build(self._name, self._key.public_key(), is_ca=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write a certificate for 127.0.0.1, ::1 and localhost and its key; return both files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._build(subject, key.public_key(), is_ca=False)
        paths = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, is_ca: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        alternatives: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if is_ca:
            usage = x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def interception_contexts(certificate: Path, key: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server context with this certificate and a client context that accepts any certificate."""
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.load_cert_chain(certificate, key)
    as_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    as_client.check_hostname = False
    as_client.verify_mode = ssl.CERT_NONE
    return as_server, as_client
