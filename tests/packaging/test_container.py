"""The container's recipe: its command under its constraints, without an engine for containers.

The user, the command and the health check are those of the recipe. The root file system is this
machine's, read-only; the user is not root and has no capabilities; only the volumes can be
written to; the network is a namespace of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from cln_backup.backends.socket.token_file import create_token
from tests.packaging.release import BIN, ROOT, skip_without_overlay

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount file systems"),
]
_RECIPE = (ROOT / "contrib" / "container" / "Containerfile").read_text()

_SCRIPT = """
set -e
cd "$1"
ip link set lo up
mkdir over lib
mount -t tmpfs tmpfs over
mkdir over/written over/work over/root
mount -t overlay overlay -o lowerdir=/,upperdir=over/written,workdir=over/work over/root
root=$PWD/over/root
mkdir -p $root/opt/cln-backup/bin $root/srv/backup $root/var/lib/cln-backup $root/etc/cln-backup
ln -sfn PYTHON $root/opt/cln-backup/bin/python
printf '#!/bin/sh\\nexec PYTHON CLI "$@"\\n' >$root/opt/cln-backup/bin/backup-cli
chmod 755 $root/opt/cln-backup/bin/backup-cli
cp nodes $root/etc/cln-backup/nodes
chown -R UID:GID srv lib
mount --bind srv $root/srv/backup
mount --bind lib $root/var/lib/cln-backup
mount -t proc proc $root/proc
mount --bind /dev $root/dev
for directory in PARENTS; do chmod o+x "$root$directory"; done
mount -o remount,ro $root
as_user() {
  exec chroot $root setpriv --reuid UID --regid GID --clear-groups --no-new-privs \\
    --bounding-set=-all --inh-caps=-all env -i HOME=/ PYTHONDONTWRITEBYTECODE=1 "$@"
}
as_user COMMAND &
server=$!
for _ in $(seq 300); do
  if (as_user HEALTH 2>/dev/null); then echo "# healthy"; break; fi
  kill -0 $server
  sleep 0.2
done
(as_user touch /etc/cln-backup/x 2>&1) || true
(as_user touch /opt/cln-backup/x 2>&1) || true
(as_user touch /srv/backup/x) && echo "# written"
(as_user id -u)
kill -TERM $server
wait $server && echo "# ended"
"""


def _words(pattern: str) -> list[str]:
    found = re.search(rf"^{pattern} (\[.*\])$", _RECIPE, re.MULTILINE)
    assert found, pattern
    words: list[str] = json.loads(found[1])
    return words


def _parents() -> list[str]:
    """The directories of the program, which may be closed to other users of this machine."""
    programs = (BIN / "python", (BIN / "python").resolve(), ROOT / "src")
    return [str(parent) for program in programs for parent in program.parents]


def test_command_runs_as_the_recipe_says(tmp_path: Path) -> None:
    skip_without_overlay(tmp_path)
    user = re.search(r"^USER (\d+):(\d+)$", _RECIPE, re.MULTILINE)
    assert user
    assert int(user[1]) > 0
    assert _words("VOLUME") == ["/srv/backup", "/var/lib/cln-backup"]
    (tmp_path / "srv").mkdir(mode=0o700)
    create_backend(f"file://{tmp_path}/srv/alice.bkp", None)
    token = create_token(str(tmp_path / "token"))
    (tmp_path / "nodes").write_text(f"alice file:///srv/backup/alice.bkp {token}\n")
    script = _SCRIPT
    for name, value in (
        ("UID", user[1]),
        ("GID", user[2]),
        ("PARENTS", shlex.join(_parents())),
        ("PYTHON", str(BIN / "python")),
        ("CLI", str(BIN / "backup-cli")),
        ("COMMAND", shlex.join(_words("ENTRYPOINT") + _words("CMD"))),
        ("HEALTH", shlex.join(_words(r"HEALTHCHECK .* CMD"))),
    ):
        script = re.sub(rf"\b{name}\b", value.replace("\\", r"\\"), script)
    done = subprocess.run(
        ["unshare", "-m", "-n", "bash", "-c", script, "bash", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("#", "touch", user[1]))]
    assert said == [
        "# healthy",
        "touch: cannot touch '/etc/cln-backup/x': Read-only file system",
        "touch: cannot touch '/opt/cln-backup/x': Read-only file system",
        "# written",
        user[1],
        "# ended",
    ], done.stdout + done.stderr
