"""The list of nodes and the certificate, changed while the server runs."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.socket.token_file import create_token
from cln_backup.model.errors import AccessDenied, Unreachable
from cln_backup.server import certificate
from tests.histories import add_all, append, payment, started_node, told, told_by
from tests.socket.serving import ServerProcess, server_process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PATIENCE_S = 120.0


class Listed:
    """A server with a list of nodes, which can be changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.path = str(path / "nodes")
        self._lines: dict[str, str] = {}
        for name in ("alice", "bob"):
            self.line(name)
        self.write()

    def file_url(self, name: str) -> str:
        return f"file://{self._path}/{name}.bkp"

    def line(self, name: str, token: str = "", backup: str = "") -> None:
        token = token or name
        token_hash = create_token(str(self._path / f"{token}.token"))
        if not (self._path / f"{backup or name}.bkp").exists():
            create_backend(self.file_url(backup or name), None)
        self._lines[name] = f"{name} {self.file_url(backup or name)} {token_hash}"

    def remove(self, name: str) -> None:
        del self._lines[name]

    def write(self, more: str = "") -> None:
        (self._path / "nodes").write_text("\n".join(self._lines.values()) + more + "\n")

    def renew(self, server: ServerProcess, says: str = "of which") -> None:
        """Has the server read the list, and waits until it has."""
        server.process.send_signal(signal.SIGHUP)
        _until_said(server, says)

    def url(self, server: ServerProcess, name: str, token: str = "") -> str:
        return f"{server.url}?node={name}&token-file={self._path}/{token or name}.token&deadline=20"


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    return Listed(tmp_path)


@pytest.fixture
def server(listed: Listed) -> Iterator[ServerProcess]:
    with server_process("--nodes", listed.path) as server:
        yield server


def test_node_that_is_added_comes_in_and_the_others_go_on(
    listed: Listed, server: ServerProcess
) -> None:
    with open_writer(listed.url(server, "alice")) as alice:
        add_all(alice, started_node())
        used = alice._link.session  # type: ignore[attr-defined]
        listed.line("carol")
        with pytest.raises(AccessDenied):
            open_reader(listed.url(server, "carol"))
        listed.write()
        listed.renew(server)
        append(listed.url(server, "carol"), started_node())
        alice.add_change(payment(4))
        assert alice._link.session is used  # type: ignore[attr-defined]
    assert told_by(listed.file_url("alice"))[-1] == told([payment(4)])[0]
    assert told_by(listed.file_url("carol")) == told(started_node())


def test_node_that_is_removed_is_refused_and_its_backup_let_go(
    listed: Listed, server: ServerProcess
) -> None:
    with open_writer(listed.url(server, "alice")) as alice:
        add_all(alice, started_node())
        listed.remove("alice")
        listed.write()
        listed.renew(server)
        with pytest.raises(AccessDenied, match="Unknown node or wrong token"):
            alice.add_change(payment(4))
    append(listed.file_url("alice"), [payment(4)])  # it is not locked any more
    append(listed.url(server, "bob"), started_node())


def test_token_that_is_replaced_lets_nobody_in_any_more(
    listed: Listed, server: ServerProcess
) -> None:
    with open_writer(listed.url(server, "alice")) as alice:
        add_all(alice, started_node())
        listed.line("alice", "alice-2")
        listed.write()
        listed.renew(server)
        with pytest.raises(AccessDenied, match="Unknown node or wrong token"):
            alice.add_change(payment(4))
    append(listed.url(server, "alice", "alice-2"), [payment(4)])
    assert told_by(listed.file_url("alice")) == told([*started_node(), payment(4)])


def test_writer_of_a_backup_with_a_new_name_goes_on_under_it(
    listed: Listed, server: ServerProcess
) -> None:
    append(listed.url(server, "alice"), started_node())
    listed.remove("alice")
    listed.line("alicia", backup="alice")
    listed.write()
    listed.renew(server)
    append(listed.url(server, "alicia"), [payment(4)])
    assert told_by(listed.file_url("alice")) == told([*started_node(), payment(4)])


def test_list_that_cannot_be_right_changes_nothing(listed: Listed, server: ServerProcess) -> None:
    with open_writer(listed.url(server, "alice")) as alice:
        add_all(alice, started_node())
        used = alice._link.session  # type: ignore[attr-defined]
        listed.remove("bob")
        listed.write("\nbob without a backup")
        listed.renew(server, "Cannot reload the list of nodes")
        alice.add_change(payment(4))
        assert alice._link.session is used  # type: ignore[attr-defined]
    append(listed.url(server, "bob"), started_node())


def test_writer_is_never_refused_while_the_list_is_read_again_and_again(
    listed: Listed, server: ServerProcess
) -> None:
    with open_writer(listed.url(server, "alice")) as alice:
        add_all(alice, started_node())
        for version in range(4, 24):
            # Another line for the same node: its connection is closed, and it comes back.
            listed._lines["alice"] = listed._lines["alice"].replace("//", "//" + version % 2 * "/")
            listed.write()
            server.process.send_signal(signal.SIGHUP)
            alice.add_change(payment(version))
    history = [*started_node(), *(payment(version) for version in range(4, 24))]
    assert told_by(listed.file_url("alice")) == told(history)


def test_damaged_backup_of_one_node_keeps_no_other_out(tmp_path: Path, listed: Listed) -> None:
    append(listed.file_url("alice"), started_node())
    (tmp_path / "alice.bkp").write_bytes(b"\xff" * 600)
    with server_process("--nodes", str(tmp_path / "nodes")) as server:
        append(listed.url(server, "bob"), started_node())
        assert "alice: " in "".join(server.said)


def test_renewed_certificate_is_shown_after_sighup(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    tls = tmp_path / "tls"
    with server_process("--tls-dir", str(tls), url) as server:

        def fingerprint() -> str:
            found: list[str] = re.findall("[0-9a-f]{64}", "".join(server.said))
            return found[-1]

        old = fingerprint()
        with open_writer(f"{server.url}?fingerprint={old}") as writer:
            add_all(writer, started_node())
            kept = {path: path.read_bytes() for path in tls.iterdir()}
            for path in kept:
                path.unlink()
            certificate.make(str(tls))
            new_key = (tls / "server.key").read_bytes()
            (tls / "server.key").write_bytes(kept[tls / "server.key"])
            server.process.send_signal(signal.SIGHUP)  # a key that does not fit
            _until_said(server, "Cannot load the new certificate")
            told_by(f"{server.url}?fingerprint={old}")
            (tls / "server.key").write_bytes(new_key)
            server.process.send_signal(signal.SIGHUP)
            _until_said(server, "its fingerprint is")
            assert fingerprint() != old
            assert told_by(f"{server.url}?fingerprint={fingerprint()}") == told(started_node())
            with pytest.raises((AccessDenied, Unreachable)):
                open_reader(f"{server.url}?fingerprint={old}&deadline=1")
            writer.add_change(payment(4))  # its connection is still open


def _until_said(server: ServerProcess, text: str) -> None:
    wait_until(lambda: text in "".join(server.said), lambda: "".join(server.said))
