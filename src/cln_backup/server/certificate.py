"""The server's certificate: given by the operator, or made by the server itself."""

from __future__ import annotations

import os
import ssl

from cln_backup.model.errors import BadSettings
from cln_backup.storage import directories, fsio
from cln_backup.wire.credentials import fingerprint_of

_COMMON_NAME = "cln-backup server"
_DAYS = 36_500
"""Clients trust the fingerprint; an expiry date would only cause an outage."""


def load(certificate: str, key: str) -> ssl.SSLContext:
    """TLS with the certificate and key in two PEM files.

    Raises:
        BadSettings: they cannot be read, or do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    use(context, certificate, key)
    return context


def use(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Uses the certificate in two PEM files for new connections. Raises `BadSettings`."""
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise BadSettings(
            f"Cannot use the certificate {certificate} with the key {key}: "
            f"{error.strerror or error}"
        ) from error


def fingerprint(certificate: str) -> str:
    """SHA-256 of the first certificate in a PEM file, for clients to pin. Raises `BadSettings`."""
    fd = fsio.open_existing(certificate, writable=False, op="read certificate")
    try:
        content = fsio.read_at(fd, 1 << 20, 0, op="read certificate").decode("ascii", "replace")
    finally:
        os.close(fd)
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = content[content.find(begin) : content.find(end) + len(end)]
    try:
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(first))
    except ValueError:
        raise BadSettings(f"{certificate} does not contain a PEM certificate.") from None


def make(directory: str) -> tuple[str, str]:
    """The paths of a certificate and key in a directory; they are made if they do not exist.

    Durable when it returns. Needs the package `cryptography`.

    Raises:
        BadSettings: the package is not installed.
        AlreadyExists: the path is a file, not a directory.
        StorageError: they cannot be written.
    """
    certificate = os.path.join(directory, "server.crt")
    key = os.path.join(directory, "server.key")
    if os.path.exists(certificate) and os.path.exists(key):
        return certificate, key
    try:
        import datetime as dt

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise BadSettings(
            "The Python package cryptography, which makes the certificate, is not installed. "
            "Reinstall cln-backup, or name a certificate with --tls-cert and --tls-key."
        ) from None
    directories.make_with_parents(
        os.path.abspath(directory), op="make directory of the certificate"
    )
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _COMMON_NAME)])
    start = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=1)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=_DAYS))
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    fsio.write_file(key, secret, op="write server key")
    public = signed.public_bytes(serialization.Encoding.PEM)
    fsio.write_file(certificate, public, op="write server certificate")
    return certificate, key
