"""The small files of a node: which are kept, which are not, and what `init` does with them."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import place_at
from cln_backup.model.node_files import MAX_BYTES, NodeFiles, Wanted
from cln_backup.node.settings import Settings, create_settings, read_settings
from cln_backup.node.small_files import candidates, collect, signature
from cln_backup.operations.initialize import initialize
from cln_backup.operations.node_files import keep
from tests import programs

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.node_files import KeptSet

CONFIG = b"network=regtest\nstatictor=127.0.0.1:9051/torblob=abc\n"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """The network directory of a node, with all that it may have."""
    directory = tmp_path / "lightning" / "regtest"
    (directory / "certs").mkdir(parents=True)
    (directory.parent / "config").write_bytes(CONFIG)
    for name in (
        *("ca.pem", "ca-key.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem"),
        *("emergency.recover", "config", "accounts.sqlite3"),
        *("hsm_secret", "gossip_store", "lightningd.log", "lightning-rune", "backup.key"),
    ):
        (directory / name).write_bytes(f"# {name}\n".encode())
    (directory / "ca-key.pem").chmod(0o600)
    return directory


def names(files: NodeFiles) -> list[str]:
    return [file.name for file in files.files]


KEPT = [
    "base/config",
    "network/accounts.sqlite3",
    "network/ca-key.pem",
    "network/ca.pem",
    "network/client-key.pem",
    "network/client.pem",
    "network/config",
    "network/emergency.recover",
    "network/server-key.pem",
    "network/server.pem",
]


def test_what_a_node_needs_is_kept_and_nothing_else(network: Path) -> None:
    files, notices = collect(str(network), Wanted())
    assert names(files) == KEPT
    assert notices == ()
    found = files.named("network/ca-key.pem")
    assert found is not None
    assert (found.mode, found.content) == (0o600, b"# ca-key.pem\n")
    assert found.mtime_ms == (network / "ca-key.pem").stat().st_mtime_ns // 1_000_000


def test_secret_is_kept_only_if_it_is_wanted(network: Path) -> None:
    files, _ = collect(str(network), Wanted(hsm_secret=True))
    assert names(files) == sorted([*KEPT, "network/hsm_secret"])


def test_included_files_are_kept_if_they_are_the_nodes(network: Path, tmp_path: Path) -> None:
    base, elsewhere = network.parent, tmp_path / "elsewhere"
    elsewhere.write_text("secret\n")
    (base / "more").mkdir()
    (base / "config").write_text(
        f"include more/one.conf\ninclude {elsewhere}\ninclude ../elsewhere\ninclude missing\n"
    )
    (base / "more" / "one.conf").write_text("include two.conf\ninclude one.conf\n")
    (base / "more" / "two.conf").write_text("alias=x\n")
    (network / "config").write_text("include config.setconfig\n")
    (network / "config.setconfig").write_text("min-capacity-sat=1\n")
    found = names(collect(str(network), Wanted()).files)
    added = ["base/more/one.conf", "base/more/two.conf", "network/config.setconfig"]
    assert found == sorted([*KEPT, *added])


def test_links_and_other_kinds_of_files_are_left_out(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "elsewhere"
    secret.write_text("secret\n")
    for name in ("ca.pem", "client.pem", "server.pem", "emergency.recover"):
        (network / name).unlink()
    (network / "ca.pem").symlink_to(secret)
    os.mkfifo(network / "client.pem")
    (network / "server.pem").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(network)  # the path of a socket is limited
        listening.bind("emergency.recover")
        files, notices = collect(str(network), Wanted())
    gone = {f"network/{name}" for name in ("ca.pem", "client.pem", "server.pem")}
    assert names(files) == [n for n in KEPT if n not in gone | {"network/emergency.recover"}]
    assert [notice.partition(" is not kept: ")[2] for notice in notices] == [
        "it is a symbolic link.",
        *["it is not a regular file."] * 3,
    ]


def test_directory_that_is_reached_by_a_link_is_the_nodes(network: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(network.parent)
    assert names(collect(str(tmp_path / "link" / "regtest"), Wanted()).files) == KEPT


def test_large_files_are_left_out_and_said(network: Path) -> None:
    (network / "accounts.sqlite3").write_bytes(bytes((2 << 20) + 1))
    (network / "ca.pem").write_bytes(bytes(2 << 20))
    (network / "client.pem").write_bytes(bytes((2 << 20) - 100))
    files, notices = collect(str(network), Wanted())
    assert sum(len(file.content) for file in files.files) <= MAX_BYTES
    assert "network/accounts.sqlite3" not in names(files)
    assert any("accounts.sqlite3 is not kept: it has 2097153 bytes" in one for one in notices)
    assert any("server-key.pem" in one for one in notices) == (
        "network/server-key.pem" not in names(files)
    )


def test_database_with_a_journal_stays_as_it_was(network: Path) -> None:
    before, _ = collect(str(network), Wanted())
    (network / "accounts.sqlite3").write_bytes(b"half of a transaction")
    (network / "accounts.sqlite3-journal").write_bytes(b"journal")
    files, notices = collect(str(network), Wanted(), before)
    assert files.named("network/accounts.sqlite3") == before.named("network/accounts.sqlite3")
    assert notices == (
        f"{network}/accounts.sqlite3 stays as it was kept before: it was being written.",
    )


def test_files_of_tor_stay_when_their_directory_cannot_be_read(
    network: Path, tmp_path: Path
) -> None:
    tor = tmp_path / "tor"
    tor.mkdir()
    for name in ("hostname", "hs_ed25519_secret_key", "hs_ed25519_public_key", "other"):
        (tor / name).write_text(name)
    wanted = Wanted(tor_dir=str(tor))
    before, notices = collect(str(network), wanted)
    added = ["tor/hostname", "tor/hs_ed25519_public_key", "tor/hs_ed25519_secret_key"]
    assert names(before) == [*KEPT, *added]
    assert notices == ()
    tor.rename(tmp_path / "gone")
    files, notices = collect(str(network), wanted, before)
    assert names(files) == [*KEPT, *added]
    assert notices == (
        f"The files in {tor} stay as they were kept before: No such file or directory.",
    )
    files, notices = collect(str(network), wanted)
    assert names(files) == KEPT
    assert "are not kept" in notices[0]


def test_signature_differs_when_a_file_changes(network: Path) -> None:
    before = signature(candidates(str(network), Wanted()))
    assert signature(candidates(str(network), Wanted())) == before
    (network / "client.pem").write_text("renewed")
    after = signature(candidates(str(network), Wanted()))
    assert [name for name in after if after[name] != before[name]] == ["network/client.pem"]


def newest_of(url: str) -> KeptSet | None:
    with place_at(url).open_reader() as reader:
        assert reader.kept_files is not None
        return reader.kept_files.newest()


def test_only_a_change_of_the_content_makes_a_new_set(network: Path, tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/node"
    initialize(url, None)
    with place_at(url).open_reader() as reader:
        assert reader.kept_files is not None
        assert keep(reader.kept_files, str(network), Wanted()).is_new
        os.utime(network / "config", (1, 1))
        assert not keep(reader.kept_files, str(network), Wanted()).is_new
        (network / "config").write_text("alias=y\n")
        assert keep(reader.kept_files, str(network), Wanted()).is_new
        (network / "config").unlink()
        assert "network/config" not in keep(reader.kept_files, str(network), Wanted()).names


def test_secret_never_gets_into_a_backup_without_encryption(network: Path, tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/node"
    initialize(url, None)
    with place_at(url).open_reader() as reader:
        assert reader.kept_files is not None
        kept = keep(reader.kept_files, str(network), Wanted(True, hsm_secret=True))
    assert list(kept.names) == KEPT
    assert kept.notices == ("hsm_secret is not kept: the backup is not encrypted.",)


@pytest.fixture
def fresh(network: Path) -> Path:
    """The same directory before its first `init`."""
    (network / "backup.key").unlink()
    (network / "hsm_secret").write_bytes(bytes(range(32)))
    return network


def test_encrypted_backup_has_the_files_from_the_start(fresh: Path, tmp_path: Path) -> None:
    done = initialize(f"dir://{tmp_path}/node", str(fresh), encrypt=True)
    found = newest_of(done.backend_url)
    assert found is not None
    assert list(done.node_files or ()) == names(found.files)
    assert names(found.files) == sorted([*KEPT, "network/backup.lock"])
    lock = found.files.named("network/backup.lock")
    assert lock is not None
    assert lock.content == (fresh / "backup.lock").read_bytes()


def test_plain_backup_has_none_unless_they_are_asked_for(fresh: Path, tmp_path: Path) -> None:
    done = initialize(f"dir://{tmp_path}/one", str(fresh))
    assert done.node_files is None
    assert newest_of(done.backend_url) is None
    (fresh / "backup.lock").unlink()
    done = initialize(f"dir://{tmp_path}/two", str(fresh), files=Wanted(keep=True))
    assert newest_of(done.backend_url) is not None
    assert read_settings(str(fresh)).files == Wanted(keep=True)


def test_settings_of_the_files_come_back(tmp_path: Path) -> None:
    settings = Settings("dir:///a", files=Wanted(False, hsm_secret=True, tor_dir="/tor"))
    create_settings(str(tmp_path), settings)
    assert read_settings(str(tmp_path)) == settings


INIT = ("init", "--lightning-dir")


def test_init_says_what_it_keeps_and_what_a_kept_secret_means(fresh: Path, tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/node"
    done = programs.run(*INIT, fresh, "--encrypt", "--with-hsm-secret", url)
    assert done.returncode == 0, done.stderr
    assert "The node's files in the backup: config, accounts.sqlite3, backup.lock" in done.stdout
    assert "ARE THE NODE'S FUNDS" in done.stderr
    assert "hsm_secret is not in the backup" not in done.stderr
    assert read_settings(str(fresh)).files == Wanted(hsm_secret=True)
    found = newest_of(read_settings(str(fresh)).backend_url)
    assert found is not None
    secret = found.files.named("network/hsm_secret")
    assert secret is not None
    assert secret.content == bytes(range(32))


@pytest.mark.parametrize(
    ("options", "url", "said"),
    [
        (("--with-hsm-secret",), "dir://{}/node", "add --encrypt"),
        (("--node-files",), "file://{}/node", "no place for the node's small files"),
        (("--no-node-files", "--with-hsm-secret"), "dir://{}/node", "excludes"),
    ],
)
def test_init_refuses_what_it_cannot_keep(
    options: tuple[str, ...], url: str, said: str, fresh: Path, tmp_path: Path
) -> None:
    before = sorted(path.name for path in fresh.iterdir())
    done = programs.run(*INIT, fresh, *options, url.format(tmp_path))
    assert done.returncode != 0
    assert said in done.stderr
    assert sorted(path.name for path in fresh.iterdir()) == before
    assert not (tmp_path / "node").exists()


def test_init_reports_the_files_as_json(fresh: Path, tmp_path: Path) -> None:
    tor = tmp_path / "tor"
    tor.mkdir()
    (tor / "hostname").write_text("x.onion")
    done = programs.run(*INIT, fresh, "--json", "--tor-dir", tor, f"dir://{tmp_path}/node")
    fields = json.loads(done.stdout)
    assert fields["node_files"] == sorted([*KEPT, "network/backup.lock", "tor/hostname"])
    assert fields["node_files_notices"] == []
