"""A database on the other side of a network: certificates and passwords.

The server has no TLS of its own here: a proxy before it has, on an address that is not loopback's.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cln_backup.backends import create_backend, place_at
from cln_backup.model.errors import AccessDenied, BadUrl
from tests import postgres_cluster
from tests.histories import append, started_node, told, told_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ADDRESS = "127.0.0.2"
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_PASSWORD = "not-in-any-message"  # noqa: S105 - of this test


class _Far(NamedTuple):
    """A database behind TLS.

    Attributes:
        authority: the certificate that its own is signed by.
        passfile: as libpq reads them, with the right password.
    """

    port: int
    authority: Path
    passfile: Path

    def url(self, node: str, *more: str) -> str:
        options = "".join(f"&{option}" for option in more)
        return (
            f"postgresql://far@localhost:{self.port}/postgres?node={node}&hostaddr={_ADDRESS}"
            f"&deadline=5{options}"
        )

    def verified(self, node: str, *more: str) -> str:
        return self.url(node, "sslmode=verify-full", f"sslrootcert={self.authority}", *more)


def _certificate(path: Path, name: str) -> None:
    """A key and a certificate of its own for a host, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(names)
        .issuer_name(names)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(
        key.private_bytes(*form, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )


def _connect(client: socket.socket, context: ssl.SSLContext, server: str) -> None:
    """Passes one connection on; with TLS, if the client asks for it, as libpq does."""
    with contextlib.suppress(OSError), client, socket.socket(socket.AF_UNIX) as near:
        near.connect(server)
        first = client.recv(8, socket.MSG_WAITALL)
        if first != _SSL_REQUEST:
            near.sendall(first)
            _pass_on(client, near)
            return
        client.sendall(b"S")
        with context.wrap_socket(client, server_side=True) as far:
            _pass_on(far, near)


def _pass_on(far: socket.socket, near: socket.socket) -> None:
    while True:
        ends, _, _ = select.select([far, near], [], [])
        for one, other in ((far, near), (near, far)):
            if one in ends:
                data = one.recv(1 << 16)
                while isinstance(one, ssl.SSLSocket) and one.pending():
                    data += one.recv(1 << 16)
                if not data:
                    return
                other.sendall(data)


def _serve(listener: socket.socket, context: ssl.SSLContext, server: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_connect, args=(client, context, server), daemon=True).start()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Far]:
    try:
        listener = socket.create_server((_ADDRESS, 0))
    except OSError:
        pytest.skip("does not apply: loopback has one address here")
    directory = tmp_path_factory.mktemp("far")
    own = directory / "own.pem"
    _certificate(own, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    with postgres_cluster.private() as server, listener:
        server.sql(f"CREATE ROLE far LOGIN PASSWORD '{_PASSWORD}'")
        server.sql("GRANT node TO far")
        rules = server.data / "pg_hba.conf"
        rules.write_text("local all far scram-sha-256\n" + rules.read_text())
        server.sql("SELECT pg_reload_conf()")
        near = str(server.directory / ".s.PGSQL.5432")
        threading.Thread(target=_serve, args=(listener, context, near), daemon=True).start()
        passfile = directory / "passfile"
        passfile.write_text(f"localhost:*:postgres:far:{_PASSWORD}\n")
        passfile.chmod(0o600)
        yield _Far(listener.getsockname()[1], own, passfile)


def test_verified_certificate_and_a_password_in_a_file(far: _Far) -> None:
    url = far.verified("one", f"passfile={far.passfile}")
    create_backend(url, None)
    append(url, started_node())
    assert told_by(url) == told(started_node())


def test_service_file_has_it_all(
    far: _Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = tmp_path / "services"
    services.write_text(
        f"[far]\nhost=localhost\nhostaddr={_ADDRESS}\nport={far.port}\ndbname=postgres\nuser=far\n"
        f"password={_PASSWORD}\nsslmode=verify-full\nsslrootcert={far.authority}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    url = "postgresql:///?service=far&node=two&deadline=5"
    create_backend(url, None)
    append(url, started_node())
    assert told_by(url) == told(started_node())


@pytest.mark.parametrize("mode", ["prefer", "require"])
def test_certificate_must_be_verified(far: _Far, mode: str) -> None:
    url = far.url("three", f"sslmode={mode}", f"passfile={far.passfile}")
    with pytest.raises(BadUrl, match="without a verified certificate"):
        create_backend(url, None)
    create_backend(f"{url}&insecure=yes".replace("three", f"three.{mode}"), None)


def test_other_certificate_is_refused(far: _Far, tmp_path: Path) -> None:
    _certificate(tmp_path / "other.pem", "localhost")
    for name in ("other.pem", "none.pem"):
        url = far.url("four", "sslmode=verify-full", f"sslrootcert={tmp_path}/{name}")
        with pytest.raises(AccessDenied, match="Certificate mismatch"):
            create_backend(url, None)
    url = far.verified("four").replace("localhost", "db.example")
    with pytest.raises(AccessDenied, match="does not match host name"):
        create_backend(url, None)


def test_missing_or_wrong_password_is_refused(
    far: _Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.pgpass
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with pytest.raises(AccessDenied, match="wants a password"):
        create_backend(far.verified("five"), None)
    wrong = tmp_path / "wrong"
    wrong.write_text("*:*:*:*:something-else\n")
    wrong.chmod(0o600)
    url = far.verified("five", f"passfile={wrong}")
    with pytest.raises(AccessDenied, match="refused the connection") as error:
        place_at(url).open_reader()
    assert "something-else" not in str(error.value)
