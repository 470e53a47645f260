"""Writes, syncs, renames and removes files; no package other than `storage` does.

Every call carries an `op`, the name of the step that it is part of ("append entry", "sync head"),
which appears in the error message; tests fail or crash the process at these names. All errors of
the operating system become `StorageError` here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING

from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import interruption, ownership, rename
from cln_backup.storage.os_errors import storage_error, storage_errors
from cln_backup.storage.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK_BYTES = 1 << 20
"""How much is read or written at once when a file of any size is processed."""

_PRIVATE = 0o600

_SYNCS_NO_DIRECTORIES = frozenset(
    (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
)
"""Errors of fsync on a directory if the file system (CIFS, some of FUSE) does not support it."""


def open_existing(path: str, *, writable: bool, op: str) -> int:
    """Opens a file and returns its descriptor (closed on exec).

    Symbolic links are not followed for writing: another user who can write to the backup's
    directory could make the node overwrite a file of its own, such as its secret. Only a regular
    file is opened: opening a FIFO would block.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW if writable else os.O_RDONLY
    with storage_errors(op, path):
        return open_regular(path, flags, op)


def kind_at(path: str, *, op: str) -> str | None:
    """The kind of file at a path: "file", "directory", "special", or "link" for a dangling link.

    `None` if the path does not exist. Raises `StorageError` if this user may not look: an
    inaccessible file is not a missing one.
    """
    with storage_errors(op, path):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "link" if os.path.islink(path) else None
    if stat.S_ISDIR(mode):
        return "directory"
    return "file" if stat.S_ISREG(mode) else "special"


def open_direct(path: str, *, op: str) -> int:
    """Opens a file for writing past the system's cache, or through it if that is not supported.

    Writes must be whole blocks of 4096 bytes, aligned in memory and in the file (open(2)).
    """
    fd = open_existing(path, writable=True, op=op)
    if sys.platform != "linux":
        return fd
    with contextlib.suppress(OSError), mmap.mmap(-1, mmap.PAGESIZE) as block:
        direct = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT)
        try:
            os.preadv(direct, [block], 0)
        except OSError:
            os.close(direct)
            raise
        os.close(fd)
        return direct
    return fd


def create(path: str, *, op: str, like: str | None = None) -> int:
    """Creates a file that only its owner may read; returns its descriptor, open for read and write.

    The owner is that of `like`, otherwise of the directory, if this process may change owners.
    Raises `AlreadyExists` if the path exists, even as a link. The file is not durable yet.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(op, path):
        try:
            fd = os.open(path, flags, _PRIVATE)
        except FileExistsError:
            raise AlreadyExists(f"{path} exists; it was not changed.") from None
    ownership.give(fd, path, like)
    return fd


def create_beside(path: str, purpose: str, *, op: str, like: str | None = None) -> tuple[int, str]:
    """Creates a file of this process beside a path, as `create` does; also returns its name."""
    number = 0
    while True:
        name = f"{path}.{purpose}-{os.getpid()}" + (f"-{number}" if number else "")
        try:
            return create(name, op=op, like=like), name
        except AlreadyExists:  # left by a process that had the same id
            number += 1


def open_lock(path: str, *, op: str, like: str | None = None) -> int:
    """Opens a lock file, created as by `create` if it does not exist; never a link."""
    while True:
        with contextlib.suppress(AlreadyExists):
            return create(path, op=op, like=like)
        with storage_errors(op, path), contextlib.suppress(FileNotFoundError):
            return open_regular(path, os.O_RDWR | os.O_NOFOLLOW, op)


def write_at(fd: int, buffers: Sequence[bytes | memoryview], offset_bytes: int, *, op: str) -> int:
    """Writes all buffers in a row at the offset; returns the offset after them.

    The kernel has the bytes when it returns; they are not durable. A safe point (`interruption`).
    """
    if interruption.state.pending:
        interruption.check()
    length = 0
    for buffer in buffers:
        length += len(buffer)
    try:  # the node waits for this, and for `sync`: a `with` would cost it more
        written = os.pwritev(fd, buffers, offset_bytes)
        if written < length:  # the disk is filling up, or a signal came
            rest = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
            while written < length:
                written += os.pwrite(fd, rest[written:], offset_bytes + written)
    except OSError as error:
        raise storage_error(op, fd, error) from error
    return offset_bytes + length


def read_at(fd: int, length_bytes: int, offset_bytes: int, *, op: str) -> bytes:
    """Reads up to that many bytes; fewer only at the end of the file. A safe point."""
    if interruption.state.pending:
        interruption.check()
    with storage_errors(op, fd):
        data = os.pread(fd, length_bytes, offset_bytes)
        if len(data) == length_bytes or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < length_bytes:
            data = os.pread(fd, length_bytes - got, offset_bytes + got)
            if not data:
                break
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)


def chunks_at(fd: int, length_bytes: int, offset_bytes: int, *, op: str) -> Iterator[bytes]:
    """Reads a range in pieces of at most `CHUNK_BYTES`; stops early at the end of the file."""
    end = offset_bytes + length_bytes
    while offset_bytes < end:
        chunk = read_at(fd, min(CHUNK_BYTES, end - offset_bytes), offset_bytes, op=op)
        if not chunk:
            return
        yield chunk
        offset_bytes += len(chunk)


def size_bytes(fd: int) -> int:
    """The file's current size."""
    with storage_errors("read the size", fd):
        return os.fstat(fd).st_size


def sync(fd: int, *, op: str) -> None:
    """Puts the file's bytes on stable storage; durable when it returns.

    A failed sync is final: the kernel may have discarded the bytes and would report success for a
    retry (Rebello et al., "Can Applications Recover from fsync Failures?", 2020). After a
    `StorageError` from here, the caller must not use this descriptor any more.
    """
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)
    except OSError as error:
        raise storage_error(op, fd, error) from error


def forget_cached(fd: int) -> None:
    """Asks the system to read the file from its storage the next time, if it supports that."""
    if hasattr(os, "posix_fadvise"):
        with storage_errors("read again", fd):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def truncate(fd: int, length_bytes: int, *, op: str) -> None:
    """Truncates the file; durable after a `sync`."""
    with storage_errors(op, fd):
        os.ftruncate(fd, length_bytes)


def sync_directory(path: str, *, op: str) -> bool:
    """Makes the names in a directory durable, after files in it were created, renamed or removed.

    Returns `False` if the file system does not support it: then names are not guaranteed to be
    durable.
    """
    with storage_errors(op, path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _SYNCS_NO_DIRECTORIES:
                raise
            return False
        finally:
            os.close(fd)
    return True


def publish(built: str, path: str, *, op: str, withdraws: bool = True) -> None:
    """Renames a file that was built beside and synced to its final name; never replaces anything.

    Durable when it returns. If that fails, the name is removed again, so that a retry finds it
    free, unless other processes may already use the file (then `withdraws` is false).

    Raises:
        AlreadyExists: the name has come to exist meanwhile.
        StorageError.
    """
    with storage_errors(op, path):
        try:
            _name(built, path)
        except FileExistsError:
            raise AlreadyExists(f"{path} exists; it was not changed.") from None
    try:
        sync_directory(os.path.dirname(path) or ".", op=op)
    except StorageError as error:
        if withdraws:
            try:
                os.unlink(path)
            except OSError:
                raise StorageError(
                    f"{error}. {path} is complete, but its name may be lost with the power. Remove "
                    "it before you try again."
                ) from error
        raise


def _name(built: str, path: str) -> None:
    """Renames a file, unless the name exists (`FileExistsError`); safe against races.

    Not race-free on a file system that has neither hard links nor a rename without replacement.
    """
    try:
        os.link(built, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if not rename.without_replacing(built, path):
            if os.path.lexists(path):
                raise FileExistsError from None
            os.rename(built, path)
    else:
        os.unlink(built)


def replace(built: str, path: str, *, op: str) -> None:
    """Replaces a file atomically by one that was built beside it and synced.

    Durable when it returns.
    """
    with storage_errors(op, path):
        os.replace(built, path)
    sync_directory(os.path.dirname(path) or ".", op=op)


def keep(path: str, name: str, *, op: str) -> str:
    """Gives a file a second, new name, so that no later step can lose it.

    Returns the name: the requested one, or with a number appended. Durable when it returns.
    """
    number = 1
    kept = name
    with storage_errors(op, name):
        while True:
            try:
                os.link(path, kept)
                break
            except FileExistsError:
                number += 1
                kept = f"{name}-{number}"
            except OSError:  # a file system without hard links
                copy(path, kept, op="keep a copy")
                break
    sync_directory(os.path.dirname(name) or ".", op=op)
    return kept


def copy(path: str, name: str, *, op: str) -> None:
    """Copies a file to a new name. The contents are durable when it returns, the name is not.

    Raises `AlreadyExists` if the name exists.
    """
    source = open_existing(path, writable=False, op=op)
    try:
        target = create(name, op=op, like=path)
        try:
            offset = 0
            while chunk := read_at(source, CHUNK_BYTES, offset, op=op):
                offset = write_at(target, [chunk], offset, op=op)
            sync(target, op=op)
        finally:
            os.close(target)
    finally:
        os.close(source)


def preallocate(fd: int, length_bytes: int, *, op: str) -> None:
    """Fills a new file with zeros and syncs it, so that a later sync writes data only.

    Allocation alone is not enough: the file system records when a part is first written to, which
    costs one more write at each sync. Durable when it returns.
    """
    offset = 0
    for piece in zeros(length_bytes):
        offset = write_at(fd, [piece], offset, op=op)
    sync(fd, op=op)


def zeros(length_bytes: int) -> Iterator[bytes]:
    """So many zeros, in pieces of at most `CHUNK_BYTES`."""
    piece = bytes(min(CHUNK_BYTES, length_bytes))
    for at in range(0, length_bytes, CHUNK_BYTES):
        yield piece[: length_bytes - at]


def remove(path: str, *, op: str) -> None:
    """Removes a file that this program made; it is not an error if the file does not exist."""
    with storage_errors(op, path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_file(path: str, content: bytes, *, op: str, new: bool = False) -> None:
    """Writes a small file as a whole, replacing an existing one; durable when it returns.

    With `new`, raises `AlreadyExists` if the path exists, and changes nothing.
    """
    fd, built = create_beside(path, "unfinished", op=op, like=None if new else path)
    try:
        write_at(fd, [content], 0, op=op)
        sync(fd, op=op)
        (publish if new else replace)(built, path, op=op)
    except BaseException:
        remove(built, op=op)
        raise
    finally:
        os.close(fd)


def keep_times(fd: int, like_fd: int) -> None:
    """Sets a file's modification time to that of another file."""
    with storage_errors("set the time of", fd):
        times = os.fstat(like_fd)
        os.utime(fd, ns=(times.st_atime_ns, times.st_mtime_ns))


def set_time(fd: int, at_ms: int) -> None:
    """Sets a file's modification time, in milliseconds since 1970."""
    with storage_errors("set the time of", fd):
        os.utime(fd, ns=(at_ms * 1_000_000, at_ms * 1_000_000))


def is_sole_name(path: str) -> bool:
    """Whether the path is a regular file, not a symbolic link, with no second (hard) link."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
