"""A release of this checkout, built once for all tests, and releases before it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cln_backup

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
VERSION = cln_backup.__version__
BIN = Path(sys.executable).parent
LAST_RELEASE = "bbffa9ee38e9636af94edefd3d6c383b8bcee8ff"
"""The commit of release 0.1.0."""

_IDENTITY = {
    "GIT_AUTHOR_NAME": "x",
    "GIT_AUTHOR_EMAIL": "x@localhost",
    "GIT_COMMITTER_NAME": "x",
    "GIT_COMMITTER_EMAIL": "x@localhost",
    "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
}


def git(*arguments: str) -> bytes:
    """What git prints about this checkout."""
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout


def listed(*options: str) -> set[str]:
    """The names of files of this checkout, as git knows them."""
    names = git("ls-files", "-z", *options).decode().split("\0")
    return {name for name in names if name and (ROOT / name).exists()}


def run(*command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Runs a command; returns what it says, and fails if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_checkout(checkout: Path, umask: str) -> None:
    """Copies this checkout as a user with this umask would clone it, with one commit."""
    for name in listed("--cached", "--others", "--exclude-standard"):
        copy = checkout / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
        copy.chmod((ROOT / name).stat().st_mode & ~int(umask, 8))
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        run("git", *arguments, cwd=checkout, env=_IDENTITY)


def build_release(checkout: Path, to: Path, umask: str) -> None:
    """Builds a release of a copy of this checkout."""
    copy_checkout(checkout, umask)
    script = f"umask {umask} && exec contrib/release/build '{to}'"
    run("bash", "-c", script, cwd=checkout, env={"TOOLS": str(BIN)})


def install(environment: Path, wheel: Path) -> Path:
    """Installs a wheel into a virtual environment, with the libraries of this one; its programs."""
    if not environment.exists():
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        (site,) = environment.glob("lib/python*/site-packages")
        (here,) = BIN.parent.glob("lib/python*/site-packages")
        (site / "libraries.pth").write_text(f"{here}\n")
    python = environment / "bin" / "python"
    run(BIN / "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return environment / "bin"


def skip_without_overlay(tmp_path: Path) -> None:
    """Skips a test where one file system cannot be laid over another."""
    over = tmp_path / "tried"
    over.mkdir()
    mount = ["mount", "-t", "overlay", "overlay", "-o", "lowerdir=/usr:/etc", str(over)]
    if subprocess.run(["unshare", "-m", *mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no overlay file system")
