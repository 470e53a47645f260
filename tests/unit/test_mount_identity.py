from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.storage import mount_identity as module
from cln_backup.storage import mounts, statx
from cln_backup.storage.mount_identity import mount_identity
from tests.small_disk import small_disk

if TYPE_CHECKING:
    from pathlib import Path

_IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def test_it_is_the_same_all_the_time_and_for_all_that_lies_there(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    found = mount_identity(str(tmp_path))
    assert found == mount_identity(str(tmp_path)) == mount_identity(str(tmp_path / "inside"))


def test_it_is_another_after_each_mount(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with small_disk(tmp_path / "disk", 64) as disk:
            found = mount_identity(str(disk))
            if found is None:
                pytest.skip("Linux before 6.8 does not tell two mounts of a tmpfs apart")
            seen.add(found)
    assert len(seen) == 3
    assert mount_identity(str(tmp_path)) not in seen


def test_file_system_of_the_machine_is_the_same_in_a_private_namespace(tmp_path: Path) -> None:
    """As containers and systemd's sandbox make a new one at each start."""
    found = mount_identity(str(tmp_path))
    if found is None or found.startswith("mount "):
        pytest.skip("this file system has no entry in sysfs")
    code = (
        f"from cln_backup.storage.mount_identity import *; print(mount_identity({str(tmp_path)!r}))"
    )
    said = subprocess.run(
        [*_IN_A_NAMESPACE, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if said.returncode:
        pytest.skip("needs root, or the right to make a namespace")
    assert said.stdout.strip() == found


def test_file_system_of_a_server_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server can lose what it had taken, and the mount stays."""
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "_TABLE", str(table))
    monkeypatch.setattr(os, "major", lambda _: 0)
    for kind, known in {"nfs4": False, "fuse.sshfs": False, "virtiofs": False, "zfs": True}.items():
        table.write_text(f"22 1 0:40 / / rw - {kind} somewhere rw\n")
        if known:
            assert mount_identity(str(tmp_path)) == module._unique_mount(str(tmp_path))
        else:
            assert mount_identity(str(tmp_path)) is None


def test_what_the_system_does_not_tell_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statx, "function", lambda: None)
    assert module._unique_mount(str(tmp_path)) is None
    monkeypatch.setattr(mounts, "_TABLE", str(tmp_path / "none"))
    monkeypatch.setattr(os, "major", lambda _: 0)
    assert mount_identity(str(tmp_path)) is None
    assert mount_identity(str(tmp_path / "missing")) is None


def test_device_is_found_under_its_name_in_sysfs(tmp_path: Path) -> None:
    """Also without statx: Linux before 6.8 has no other way."""
    device = os.stat(tmp_path).st_dev
    if not os.path.exists("/proc/self/mountinfo") or not os.major(device):
        pytest.skip("this file system has no device of its own")
    mount = mounts.mount_of(str(tmp_path))
    assert mount is not None
    found = mount_identity(str(tmp_path))
    if mount.kind in ("ext4", "xfs"):
        assert found is not None
        assert found.startswith(f"{mount.kind} ")
