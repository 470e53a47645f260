"""The doctor reads the small files in the backup, rather than believe that they are there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import place_at
from cln_backup.backends.secrets import Secret
from cln_backup.formats.key_slots import SecretKind
from cln_backup.model.health import Level
from cln_backup.model.node_files import NodeFile, NodeFiles, Wanted
from cln_backup.operations.doctor.examine import examine
from cln_backup.operations.initialize import initialize
from tests.histories import build_database, started_node
from tests.plugin.home import PLUGIN

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A node that is stopped."""
    path = tmp_path / "bitcoin"
    path.mkdir(mode=0o700)
    build_database(path / "lightningd.sqlite3", started_node())
    (path / "hsm_secret").write_bytes(os.urandom(32))
    (path / "hsm_secret").chmod(0o400)
    return path


def _levels(directory: Path) -> dict[str, Level]:
    """The codes that are not good."""
    found = examine(str(directory), None, str(PLUGIN)).findings
    return {each.code: each.level for each in found if each.level is not Level.GOOD}


def test_damaged_small_files_are_not_said_to_be_there(directory: Path, tmp_path: Path) -> None:
    (directory / "config").write_text("alias=node\n")
    done = initialize(f"dir://{tmp_path}/backup", str(directory), encrypt=True)
    assert "node-files" not in _levels(directory)
    newest = tmp_path / "backup" / "files-0000000001"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    assert _levels(directory)["node-files"] is Level.WARNING
    with place_at(done.backend_url).open_reader() as reader:
        assert reader.kept_files is not None
        reader.kept_files.put(NodeFiles(1, (NodeFile("network/config", 0o600, 1, b""),)))
    assert "node-files" not in _levels(directory)


def test_hsm_secret_that_did_not_get_into_the_backup_is_not_said_to_be_there(
    directory: Path, tmp_path: Path
) -> None:
    secret = Secret(SecretKind.PASSPHRASE, b"correct horse")
    done = initialize(
        f"dir://{tmp_path}/backup",
        str(directory),
        encrypt=True,
        secret=secret,
        files=Wanted(hsm_secret=True),
    )
    assert "hsm-secret-not-copied" not in _levels(directory)
    with place_at(done.backend_url).open_reader() as reader:
        assert reader.kept_files is not None
        reader.kept_files.put(NodeFiles(1, (NodeFile("network/config", 0o600, 1, b""),)))
    assert _levels(directory)["hsm-secret-not-copied"] is Level.WARNING
