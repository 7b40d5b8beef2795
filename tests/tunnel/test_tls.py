"""TLS sessions in memory: bytes arrive however they are cut, changes are errors, certificates are loaded."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import os
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine_parts import no_descriptor_leak, other_pem, pem, server_context, tls_pair
from tunnel.model.address import Address
from tunnel.model.spec import DataTls, Role, TunnelSpec
from tunnel.protocol.preface import TLS_HANDSHAKE_BYTE
from tunnel.runtime import tls
from tunnel.runtime.blocking_calls import ThreadShortageError
from tunnel.runtime.sockets import NetError
from tunnel.runtime.tls import SelfSignedCertificate, TlsError, TlsSession


def read_all(session: TlsSession) -> bytes:
    """Return all plaintext that is available."""
    buffer = memoryview(bytearray(10_000))
    received = b""
    while got := session.read_into(buffer):
        received += bytes(buffer[:got])
    return received


@given(st.binary(max_size=50_000), st.lists(st.integers(1, 20_000), min_size=1, max_size=5))
def test_plaintext_arrives_however_the_ciphertext_is_cut(sent: bytes, cuts: list[int]) -> None:
    client, server = tls_pair()
    client.write(sent)
    ciphertext, received, turn = client.data_to_send(), b"", 0
    while ciphertext:
        cut = cuts[turn % len(cuts)]
        server.receive_data(ciphertext[:cut])
        ciphertext, turn = ciphertext[cut:], turn + 1
        received += read_all(server)
    assert received == sent
    assert not server.peer_closed


@given(st.integers(5, 100), st.integers(1, 255))
def test_a_changed_byte_is_detected(at: int, flip: int) -> None:
    client, server = tls_pair()
    client.write(b"x" * 100)
    ciphertext = bytearray(client.data_to_send())
    ciphertext[at] ^= flip
    server.receive_data(bytes(ciphertext))
    with pytest.raises(TlsError):
        read_all(server)


@given(st.binary(min_size=20, max_size=300).filter(lambda garbage: garbage[0] != TLS_HANDSHAKE_BYTE))
def test_garbage_fails_the_handshake(garbage: bytes) -> None:
    server = TlsSession(server_context(), server_side=True)
    server.receive_data(garbage + bytes(1 << 15))  # more than the longest record that its first bytes may announce
    with pytest.raises(TlsError, match="the TLS handshake failed"):
        server.do_handshake()


def test_the_end_that_the_peer_announces_follows_its_last_byte() -> None:
    client, server = tls_pair()
    client.write(b"last")
    with contextlib.suppress(ssl.SSLWantReadError):  # our own announcement is written, the other one has not arrived
        client._tls.unwrap()
    server.receive_data(client.data_to_send())
    assert read_all(server) == b"last"
    assert server.peer_closed


def test_both_ends_see_the_same_certificate() -> None:
    client, server = tls_pair()
    assert client.peer_certificate() == tls.presented_certificate(server_context()) != b""
    assert server.peer_certificate() == b""
    assert tls.presented_certificate(server_context(other_pem)) != client.peer_certificate()


async def test_one_self_signed_certificate_is_made_and_nothing_stays_open() -> None:
    identity = SelfSignedCertificate()
    first = await identity.context()
    with no_descriptor_leak():
        assert await identity.context() is first
        assert await SelfSignedCertificate().context() is not first


def spec(**rest: object) -> TunnelSpec:
    values: dict[str, object] = {"role": Role.SERVER, "tunnel": Address("", 1), "target": Address("", 2), **rest}
    return TunnelSpec(**values)  # type: ignore[arg-type]  # the test's own fields


async def test_certificate_files_are_loaded_and_their_errors_are_named(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("tls")
    good, other, bad, none = (folder / name for name in ("good.pem", "other.pem", "bad.pem", "none.pem"))
    good.write_bytes(pem())
    other.write_bytes(other_pem())
    bad.write_text("not a certificate")
    context = await tls.server_context(spec(tls_cert=good, tls_key=good), SelfSignedCertificate())
    assert tls.presented_certificate(context) == tls.presented_certificate(server_context())
    for cert, key in ((bad, bad), (good, other)):
        with pytest.raises(TlsError, match=f"cannot use {cert} with {key}: "):
            await tls.server_context(spec(tls_cert=cert, tls_key=key), SelfSignedCertificate())
    for cert, key in ((none, good), (good, none)):
        with pytest.raises(TlsError, match=f"cannot read {none}: No such file or directory"):
            await tls.server_context(spec(tls_cert=cert, tls_key=key), SelfSignedCertificate())
    for ca in (bad, none):
        with pytest.raises(TlsError, match=f"cannot use {ca}: "):
            await tls.client_context(spec(role=Role.CLIENT, data_tls=DataTls.VERIFIED, tls_ca=ca))


@pytest.fixture
def locked_key(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "locked.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return file


def test_a_private_key_with_a_passphrase_is_refused_without_a_prompt(locked_key: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "good.pem"
    certificate.write_bytes(pem())
    with pytest.raises(TlsError, match="its private key has a passphrase; store it without one"):
        tls.certificate_files_context(certificate, locked_key)


def test_a_fifo_as_a_certificate_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TlsError, match="it is a FIFO, not a regular file"):
        tls.certificate_files_context(tmp_path / "fifo", tmp_path / "fifo")
    with pytest.raises(TlsError, match="it is a FIFO, not a regular file"):
        tls.verifying_context(tmp_path / "fifo")


@pytest.mark.parametrize("missing", ["memfd_create", "access"])
async def test_a_certificate_is_made_where_files_in_memory_are_denied(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deny(*_: object) -> bool:
        if missing == "access":
            return False
        raise PermissionError(errno.EPERM, "denied")

    monkeypatch.setattr(os, missing, deny)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with no_descriptor_leak():
        assert tls.presented_certificate(await SelfSignedCertificate().context())
    assert os.listdir(tmp_path) == []  # noqa: PTH208  no Path method in a coroutine


def certified(name: str, *alternatives: str) -> bytes:
    """A self-signed certificate with a common name and alternative names, and its key, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if alternatives:
        names = x509.SubjectAlternativeName([x509.DNSName(other) for other in alternatives])
        builder = builder.add_extension(names, critical=False)
    pem_format, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem_format, serialization.PrivateFormat.PKCS8, plain)
    return private + builder.sign(key, hashes.SHA256()).public_bytes(pem_format)


@pytest.mark.parametrize("alternatives", [(), ("tunnel.example",)], ids=["common name alone", "alternative name"])
def test_a_name_counts_only_as_alternative_name(tmp_path: Path, alternatives: tuple[str, ...]) -> None:
    file = tmp_path / "both.pem"
    file.write_bytes(certified("tunnel.example", *alternatives))
    server = TlsSession(tls.certificate_files_context(file, file), server_side=True)
    client = TlsSession(tls.verifying_context(file), server_side=False, host="tunnel.example")
    client.do_handshake()
    server.receive_data(client.data_to_send())
    server.do_handshake()
    client.receive_data(server.data_to_send())
    if alternatives:
        assert client.do_handshake()
    else:
        with pytest.raises(TlsError, match="the server's certificate is not accepted"):
            client.do_handshake()


@pytest.mark.parametrize("host", ["", ".example", "a" * 70 + ".example"])
def test_a_host_name_that_no_certificate_can_have_is_named(host: str) -> None:
    with pytest.raises(TlsError, match=f"no certificate can be for the host name '{host}'"):
        TlsSession(tls.verifying_context(None), server_side=False, host=host)


@pytest.mark.parametrize("options", [{}, {"tls_cert": Path("c"), "tls_key": Path("k")}])
async def test_a_missing_thread_is_an_ordinary_error_of_a_server(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Path]
) -> None:
    async def refuse(*_: object) -> None:
        raise ThreadShortageError("blocking calls")

    monkeypatch.setattr(asyncio, "to_thread", refuse)
    with pytest.raises(NetError, match="may start no further thread"):
        await tls.server_context(spec(**options), SelfSignedCertificate())


async def test_a_missing_process_is_an_ordinary_error_and_another_attempt_may_succeed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    certificate = SelfSignedCertificate()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", refuse)
        with pytest.raises(NetError, match=r"cannot be started: .*; raise the pids limit"):
            await certificate.context()
    assert await certificate.context() is await certificate.context()
