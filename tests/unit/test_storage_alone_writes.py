"""Only the package `storage` writes, syncs, renames or removes files, or makes them another's."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cln_backup

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = Path(cln_backup.__file__).parent

_OS_CALLS = frozenset(
    (
        "chflags", "chmod", "chown", "copy_file_range", "fchmod", "fchown", "fdatasync", "fsync",
        "ftruncate", "lchmod", "lchown", "link", "makedirs", "mkdir", "mkfifo", "mknod",
        "posix_fallocate", "pwrite", "pwritev", "remove", "removedirs", "removexattr", "rename",
        "renames", "replace", "rmdir", "sendfile", "setxattr", "splice", "symlink", "sync",
        "truncate", "unlink", "utime", "write", "writev",
    )
)  # fmt: skip
_MODULES = frozenset(("bz2", "gzip", "lzma", "pathlib", "shutil", "tarfile", "tempfile", "zipfile"))
"""Modules that write files in ways of their own."""

_WRITE_FLAGS = frozenset(("O_APPEND", "O_CREAT", "O_RDWR", "O_TMPFILE", "O_TRUNC", "O_WRONLY"))

ALLOWED = {
    ("cli/boundary.py", "os.open"): "/dev/null, in the place of a closed standard output",
    ("cli/entry.py", "os.fdopen"): "/dev/null, in the place of a closed standard stream",
    ("cli/entry.py", "os.open"): "/dev/null, in the place of a closed standard stream",
    ("cli/secrets.py", "os.open"): "/dev/tty, to ask for a passphrase",
    ("monitor/figures.py", "apsw.Connection"): "SQLite writes its databases itself",
    ("plugin/guard.py", "os.write"): "a pipe between the plugin's two processes",
    ("plugin/jsonrpc.py", "os.write"): "standard output, which lightningd reads",
    ("plugin/start/aside.py", "os.open"): "/dev/null, in the place of lightningd's pipes",
    ("plugin/start/aside.py", "os.write"): "a pipe from a copy of this process",
    ("process/channel.py", "os.writev"): "a pipe between two processes",
    ("process/parent.py", "os.open"): "/dev/null, in the place of the pipes at standard streams",
    ("replay/kept_database.py", "apsw.Connection"): "SQLite writes its databases itself",
    ("replay/forward.py", "apsw.Connection"): "SQLite writes the node's database itself",
    ("replay/replica.py", "apsw.Connection"): "SQLite writes its databases itself",
    ("server/bells.py", "os.write"): "pipes that wake the connections that wait",
    ("server/listener.py", "os.write"): "a pipe that wakes the main loop",
}
"""Each module and call outside of `storage` that may write, and where to."""


def _writes(tree: ast.AST) -> Iterator[str]:
    """The names in a module that write, rename, remove or give away files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in _MODULES:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            names = [alias.name for alias in node.names]
            if module in _MODULES:
                yield module
            elif module == "os" and {*names} - {"environ", "path"}:
                yield f"from os import {', '.join(names)}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("os", "posix") and node.attr in _OS_CALLS:
                yield f"os.{node.attr}"  # also where it is passed on and not called
        elif isinstance(node, ast.Call):
            yield from _opened_to_write(node)


def _opened_to_write(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name in ("apsw.Connection", "sqlite3.connect"):
        if "SQLITE_OPEN_READONLY" not in ast.unparse(call):
            yield name
    elif name == "os.open":
        flags = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
        if flags & _WRITE_FLAGS or "O_RDONLY" not in flags:
            yield name
    elif name in ("open", "io.open", "os.fdopen"):
        modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
        if any(not _only_reads(mode) for mode in modes):
            yield name


def _only_reads(mode: ast.expr) -> bool:
    return isinstance(mode, ast.Constant) and mode.value in ("r", "rb", "rt")


def _found() -> set[tuple[str, str]]:
    found = set()
    for path in _SOURCE.rglob("*.py"):
        module = path.relative_to(_SOURCE).as_posix()
        if not module.startswith("storage/"):
            found |= {(module, name) for name in _writes(ast.parse(path.read_bytes()))}
    return found


def test_no_other_package_than_storage_writes_files() -> None:
    assert _found() - {*ALLOWED} == set()


def test_nothing_is_allowed_that_no_module_needs() -> None:
    assert {*ALLOWED} - _found() == set()


@pytest.mark.parametrize(
    "code",
    [
        "os.write(fd, data)",
        "step = os.unlink if gone else os.rename",
        "os.makedirs(path, exist_ok=True)",
        "os.fsync(fd)",
        "os.fchown(fd, 0, 0)",
        "os.open(path, os.O_RDWR | os.O_CLOEXEC)",
        "os.open(path, flags)",
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, mode)",
        "os.fdopen(fd, 'wb')",
        "from os import rename",
        "import tempfile",
        "from shutil import rmtree",
        "from pathlib import Path",
        "sqlite3.connect(path)",
        "apsw.Connection(path)",
    ],
)
def test_the_check_sees_each_way_to_write(code: str) -> None:
    assert [*_writes(ast.parse(code))]


@pytest.mark.parametrize(
    "code",
    [
        "os.open(path, os.O_RDONLY | os.O_CLOEXEC)",
        "open(path, 'rb')",
        "open(path, encoding='utf-8')",
        "os.close(fd)",
        "apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)",
        "from os import path",
    ],
)
def test_the_check_lets_reading_through(code: str) -> None:
    assert [*_writes(ast.parse(code))] == []
