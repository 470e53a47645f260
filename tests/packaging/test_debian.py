"""The Debian package, installed and removed in an isolated copy of this machine's system."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.packaging.release import ROOT, VERSION, skip_without_overlay

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to install a package"),
]

# In a namespace of its own, over this machine's system: what is written stays in memory.
_SCRIPT = """
set -e
cp "$1" "$2/package.deb" && cd "$2" && mkdir over
mount -t tmpfs tmpfs over
mkdir over/written over/work over/root
mount -t overlay overlay -o lowerdir=/,upperdir=over/written,workdir=over/work over/root
mount -t proc proc over/root/proc
mount --bind /dev over/root/dev
mount -t tmpfs tmpfs over/root/tmp
cp package.deb over/root/tmp
inside() { chroot over/root "$@"; }
written() { (cd over/written && find . \\( -type f -o -type c -o -type l \\) | sort); }
inside dpkg -i /tmp/package.deb
echo "# installed"
written
echo "# run"
inside env -i PATH=/usr/bin:/bin backup-cli --version
inside env -i PATH=/usr/bin:/bin cln-backup --version 2>&1
inside id --user --name cln-backup
inside setpriv --reuid cln-backup --regid cln-backup --clear-groups \\
  env -i PATH=/usr/bin:/bin HOME=/tmp backup-cli server --help
inside env -i /usr/lib/cln-backup/bin/python -c \\
  'import apprise, cln_backup as us, jinja2, obstore, prometheus_client, psycopg; print(us)'
inside systemd-analyze verify /usr/lib/systemd/system/cln-backup-server.service
echo "# removed"
inside dpkg -r cln-backup
written
"""
_LEFT = ("./etc/", "./var/lib/dpkg/", "./var/log/", "./var/cache/", "./root/", "./run/")
"""Where the system keeps accounts, and what its packages did."""


def test_package_is_installed_and_removed_for_real(release: Path, tmp_path: Path) -> None:
    skip_without_overlay(tmp_path)
    (package,) = release.glob("*.deb")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", _SCRIPT, "bash", package, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    _, _, rest = done.stdout.partition("# installed\n")
    installed, _, rest = rest.partition("# run\n")
    ran, _, removed = rest.partition("# removed\n")
    for wanted in (
        "bin/backup-cli",
        "bin/cln-backup",
        "lib/systemd/system/cln-backup-server.service",
        "share/bash-completion/completions/backup-cli",
        "share/zsh/vendor-completions/_backup-cli",
        "share/fish/vendor_completions.d/backup-cli.fish",
        "share/man/man1/backup-cli.1.gz",
        "share/doc/cln-backup/copyright",
    ):
        assert f"./usr/{wanted}\n" in installed
    units = {path.name for path in (ROOT / "contrib" / "systemd").iterdir()}
    assert all(f"./usr/lib/systemd/system/{unit}\n" in installed for unit in units)
    assert f"backup-cli, version {VERSION}\n" in ran
    assert f"cln-backup {VERSION} is a plugin" in ran
    assert "\ncln-backup\nUsage: backup-cli server" in ran
    assert "from '/usr/lib/cln-backup/lib/python3" in ran
    left = [line for line in removed.splitlines() if line.startswith("./")]
    assert [line for line in left if not line.startswith(_LEFT)] == []
