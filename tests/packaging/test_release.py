"""`make release`: the same bytes each time, checksums, a list of parts, a signature."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.packaging.release import BIN, ROOT, VERSION, build_release, copy_checkout, run
from tests.soak import SOAK

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)


def _sums(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.name != "SHA256SUMS"
    }


def test_archive_and_wheel_are_equal_in_a_second_build(release: Path, tmp_path: Path) -> None:
    """From another path, with another umask, and later; by the build's own first step."""
    checkout, again = tmp_path / "a checkout elsewhere", tmp_path / "again"
    copy_checkout(checkout, "077")
    epoch = run("git", "log", "-1", "--format=%ct", cwd=checkout).strip()
    arguments = ("-m", "build", "--no-isolation", "--outdir", again, checkout)
    run(BIN / "python", *arguments, cwd=tmp_path, env={"SOURCE_DATE_EPOCH": epoch})
    found = _sums(again)
    assert len(found) == 2
    assert found == {name: digest for name, digest in _sums(release).items() if name in found}


@pytest.mark.skipif(not SOAK, reason="CLN_BACKUP_SOAK is not set")
def test_two_builds_are_equal_byte_for_byte(release: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    build_release(tmp_path / "a checkout elsewhere", again, "077")
    assert _sums(again) == _sums(release)
    assert (again / "SHA256SUMS").read_bytes() == (release / "SHA256SUMS").read_bytes()
    shutil.rmtree(again)


def test_checksums_are_of_all_files(release: Path) -> None:
    lines = [line.split("  ") for line in (release / "SHA256SUMS").read_text().splitlines()]
    assert {name: digest for digest, name in lines} == _sums(release)
    kinds = sorted(name.replace(VERSION, "N") for name in _sums(release))
    assert [re.sub(r"N_\w+\.deb", "N_ARCH.deb", kind) for kind in kinds] == [
        "cln-backup_N_ARCH.deb",
        "cln_backup-N-py3-none-any.whl",
        "cln_backup-N.cdx.json",
        "cln_backup-N.tar.gz",
    ]


def test_list_of_parts_has_each_library_of_the_package(release: Path) -> None:
    listed = json.loads((release / f"cln_backup-{VERSION}.cdx.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    parts = {
        (each["name"].lower().replace("_", "-"), each["version"]) for each in listed["components"]
    }
    pins = (ROOT / "contrib" / "release" / "requirements.txt").read_text()
    unconditional = re.findall(r"^([\w.-]+)==(\S+) \\$", pins, re.MULTILINE)
    assert len(unconditional) > 10
    assert {("cln-backup", VERSION), *unconditional} <= parts
    assert listed["metadata"]["timestamp"].startswith("2026-01-02T03:04:05")  # of the commit


def test_signature_as_the_documents_make_and_verify_it(release: Path, tmp_path: Path) -> None:
    sums = tmp_path / "SHA256SUMS"
    shutil.copy(release / "SHA256SUMS", sums)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    run("ssh-keygen", "-Y", "sign", "-f", tmp_path / "key", "-n", "file", sums)
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "allowed_signers").write_text(f"release@cln-backup {public}")
    verify = [
        *("ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed_signers")),
        *("-I", "release@cln-backup", "-n", "file", "-s", f"{sums}.sig"),
    ]
    good = sums.read_bytes()
    assert subprocess.run(verify, input=good, capture_output=True, check=False).returncode == 0
    bad = b"0" + good[1:] if good[:1] != b"0" else b"1" + good[1:]
    assert subprocess.run(verify, input=bad, capture_output=True, check=False).returncode != 0
