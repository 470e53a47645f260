"""TLS for clients: the server is authenticated by an authority or a pinned certificate."""

from __future__ import annotations

import os
import ssl
from hmac import compare_digest
from typing import TYPE_CHECKING

from cln_backup.model.errors import AccessDenied, BadSettings
from cln_backup.storage import fsio
from cln_backup.wire.credentials import fingerprint_of

if TYPE_CHECKING:
    import socket

    from cln_backup.backends.socket.url import SocketUrl

_PIN_BYTES = 64


def wrap(sock: socket.socket, url: SocketUrl) -> ssl.SSLSocket:
    """Encrypts a connection, and authenticates the server.

    With `pin`, the fingerprint of the first certificate ever seen is written to that file, and is
    durable before anything is sent to the server.

    Raises:
        AccessDenied: the server is not the trusted one.
        BadSettings: a file that the URL names cannot be used.
        OSError: the handshake failed otherwise.
    """
    if url.fingerprint is None and url.pin is None:
        return _wrap_trusted(sock, url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint below replaces the authorities
    wrapped = context.wrap_socket(sock, server_hostname=url.server.host)
    try:
        _check_fingerprint(wrapped, url)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def _check_fingerprint(wrapped: ssl.SSLSocket, url: SocketUrl) -> None:
    certificate = wrapped.getpeercert(binary_form=True)
    assert certificate is not None
    found = fingerprint_of(certificate)
    wanted = url.fingerprint if url.pin is None else _pinned(url.pin, found)
    assert wanted is not None
    if not compare_digest(found, wanted):
        where = url.pin if url.pin is not None else "the URL"
        raise AccessDenied(
            f"Certificate mismatch: a different server, or a man-in-the-middle attack. Nothing was "
            f"sent. The server at {url.server} has the fingerprint {found}; the one in {where} is "
            f"{wanted}. If the server was set up again, put its new fingerprint there."
        )


def _wrap_trusted(sock: socket.socket, url: SocketUrl) -> ssl.SSLSocket:
    try:
        context = ssl.create_default_context(cafile=url.ca)
    except OSError as error:
        raise BadSettings(
            f"Cannot read the certificates in {url.ca}: {error.strerror or error}."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        return context.wrap_socket(sock, server_hostname=url.server.host)
    except ssl.SSLCertVerificationError as error:
        raise AccessDenied(
            f"The certificate of the server at {url.server} is not trusted: "
            f"{error.verify_message}. Nothing was sent. If the certificate is self-signed, add to "
            "the URL fingerprint=… as `backup-cli server` logs it at its start, or "
            "pin=/path/of/a/file to trust the first one seen."
        ) from None


def _pinned(path: str, found: str) -> str:
    """The fingerprint in the file; on first use, stores the one found."""
    if not os.path.exists(path):
        fsio.write_file(path, found.encode() + b"\n", op="write pin")
        return found
    fd = fsio.open_existing(path, writable=False, op="read pin")
    try:
        content = fsio.read_at(fd, _PIN_BYTES + 1, 0, op="read pin")
    finally:
        os.close(fd)
    try:
        fingerprint = content.decode("ascii").strip()
        if len(bytes.fromhex(fingerprint)) * 2 != _PIN_BYTES:
            raise ValueError
    except ValueError:
        raise BadSettings(
            f"{path} does not contain a certificate's fingerprint. Nothing was sent. Correct it, "
            "or remove it to trust the next certificate seen."
        ) from None
    return fingerprint
