"""The wheel: installed with pipx, put in place of the last release, taken away again."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from hashlib import sha256
from subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING

import pytest

from tests import captured, programs
from tests.packaging.release import BIN, LAST_RELEASE, VERSION, git, install, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)
_RECORDING = captured.COMMITTED / "small" / "payee.jsonl.xz"


def _wheel(release: Path) -> Path:
    (wheel,) = release.glob("*.whl")
    return wheel


def test_pipx_installs_and_uninstalls_the_wheel(release: Path, tmp_path: Path) -> None:
    places = {
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
        "PIPX_DEFAULT_PYTHON": sys.executable,
    }
    pipx = (sys.executable, "-m", "pipx")
    command = (*pipx, "install", "--pip-args=--no-compile", f"{_wheel(release)}[metrics]")
    run(*command, env=places)
    assert {path.name for path in (tmp_path / "bin").iterdir()} == {"backup-cli", "cln-backup"}
    assert run(tmp_path / "bin" / "backup-cli", "--version") == f"backup-cli, version {VERSION}\n"
    assert run(tmp_path / "bin" / "cln-backup", "--version").startswith(
        f"cln-backup {VERSION} is a plugin"
    )
    assert (tmp_path / "man" / "man1" / "backup-cli.1").exists()
    python = tmp_path / "pipx" / "venvs" / "cln-backup" / "bin" / "python"
    run(python, "-c", "import prometheus_client")
    run(*pipx, "uninstall", "cln-backup", env=places)
    assert list((tmp_path / "bin").iterdir()) == []
    assert not python.parents[1].exists()
    assert [path for path in (tmp_path / "man").rglob("*") if not path.is_dir()] == []


def _wheel_of_last_release(tmp_path: Path) -> Path:
    try:
        packed = git("archive", LAST_RELEASE)
    except subprocess.CalledProcessError:
        pytest.skip("not a git checkout with its whole history")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path / "last", filter="data")
    out = tmp_path / "wheels"
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out)
    run(*build, tmp_path / "last", cwd=tmp_path)
    return _wheel(out)


def _contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def _node_makes_changes(node: Path, bin_: Path) -> None:
    """A node makes its next 40 changes with an installed plugin."""
    command = [
        *(node, "--capture", _RECORDING, "--calls", 40),
        *("--important-plugin", bin_ / "cln-backup", "--synchronous", "full"),
    ]
    with programs.start("simulator", *command, stdout=PIPE, stderr=STDOUT, text=True) as ran:
        said, _ = ran.communicate()
    assert ran.returncode == 0, said


def test_upgrade_from_the_last_release_and_back(release: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    old = _wheel_of_last_release(tmp_path)
    bin_ = install(environment, old)
    cli = bin_ / "backup-cli"
    assert "0.1.0" in run(cli, "--version")
    nodes = {f"{each}://{tmp_path}/{each}": tmp_path / f"node-{each}" for each in ("dir", "file")}
    for url, node in nodes.items():
        node.mkdir()
        run(cli, "init", "--lightning-dir", node, url)
        _node_makes_changes(node, bin_)

    install(environment, _wheel(release))
    assert VERSION in run(cli, "--version")
    for url, node in nodes.items():
        _node_makes_changes(node, bin_)
        assert "all 80 changes" in run(cli, "verify", url)

    install(environment, old)
    kept = _contents(tmp_path / "node-dir"), _contents(tmp_path / "dir")
    said = subprocess.run(
        [cli, "verify", f"dir://{tmp_path}/dir"], capture_output=True, text=True, check=False
    )
    assert said.returncode != 0
    assert "a header of a kind that this program does not know" in said.stderr
    assert (_contents(tmp_path / "node-dir"), _contents(tmp_path / "dir")) == kept
    _node_makes_changes(tmp_path / "node-file", bin_)
    run(cli, "verify", f"file://{tmp_path}/file")

    kept_in_file = (tmp_path / "file").read_bytes(), _contents(tmp_path / "node-file")
    run(BIN / "pip", "--python", bin_ / "python", "uninstall", "--yes", "cln-backup")
    assert not cli.exists()
    assert (_contents(tmp_path / "node-dir"), _contents(tmp_path / "dir")) == kept
    assert ((tmp_path / "file").read_bytes(), _contents(tmp_path / "node-file")) == kept_in_file
