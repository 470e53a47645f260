"""Messages between a process and its child: msgspec types, over one pipe in each direction."""

from __future__ import annotations

import functools
import operator
import os
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from cln_backup.model import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH: Final = struct.Struct("!Q")
_NO_MEMORY: Final = "Not enough memory for this command. Nothing was changed."

_Detail: TypeAlias = bool | int | str | None


class Message(msgspec.Struct, tag=True, array_like=True):
    """Base of all messages."""


class Log(Message):
    """A record of the child's log, for the parent's."""

    logger: str
    level: int
    text: str


class Failed(Message):
    """The error that ended the child's work.

    Attributes:
        kind: the class in `model.errors`; empty for a bug of the program.
        details: the error's attributes.
    """

    kind: str
    text: str
    details: dict[str, _Detail]


class YieldToAll(Message):
    """Comes before the start: compute only when no other process wants to."""


class Released(Message):
    """The parent no longer listens; the child finishes its work and ends."""


def failure(error: Exception) -> Failed:
    """An error as a message. Only the project's own errors are known to contain no SQL."""
    if isinstance(error, ImportError):
        error = errors.broken_installation(error)
    elif isinstance(error, MemoryError):
        error = errors.StorageError(_NO_MEMORY)
    elif isinstance(error, OSError):
        what = "this" if error.filename is None else os.fsdecode(error.filename)
        error = errors.StorageError(f"Cannot continue with {what}: {error.strerror or error}")
    if isinstance(error, errors.BackupError):
        return Failed(type(error).__name__, str(error), dict(vars(error)))
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" in {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
    return Failed("", type(error).__name__ + where, {})


def error_of(failed: Failed, work: str) -> errors.BackupError:
    """The error in a message; `work` says what the child does."""
    if not failed.kind:
        return errors.StorageError(
            f"The process that {work} failed ({failed.text}). This is a bug in cln-backup: please "
            "report it. The backup is unchanged."
        )
    kind: type[errors.BackupError] = getattr(errors, failed.kind)
    error = kind(failed.text)
    error.__dict__.update(failed.details)
    return error


class Inbox:
    """Receives messages of some types from a pipe, and never reads past the current message."""

    def __init__(self, fd: int, types: Sequence[type[Message]]) -> None:
        self.fd = fd
        decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(_union(types))
        self._decode = decoder.decode
        self._start()

    def _start(self) -> None:
        self._has_length = False
        self._data = bytearray(_LENGTH.size)
        self._missing = memoryview(self._data)

    def step(self) -> Message | None:
        """Reads once, and waits only for the first byte; returns a message once it is complete.

        Raises:
            EOFError: the other process closed its end, or died.
        """
        count = os.readv(self.fd, [self._missing])
        if count == 0:
            raise EOFError
        self._missing = self._missing[count:]
        if self._missing:
            return None
        if not self._has_length:
            self._has_length = True
            self._data = bytearray(*_LENGTH.unpack(self._data))
            self._missing = memoryview(self._data)
            return None
        message = self._decode(self._data)
        self._start()
        return message

    def receive(self) -> Message:
        """Waits for the next message. Raises `EOFError`."""
        while (message := self.step()) is None:
            pass
        return message


def _union(types: Sequence[type[Message]]) -> type[Message]:
    union: type[Message] = functools.reduce(operator.or_, types)
    return union


def size_of(message: Message) -> int:
    """How many bytes `send` writes."""
    return _LENGTH.size + len(msgspec.msgpack.encode(message))


def send(fd: int, message: Message) -> None:
    """Writes one message to a pipe; waits while it is full. Raises `BrokenPipeError`."""
    data = msgspec.msgpack.encode(message)
    # One write if there is room: the reader is woken once.
    rest = [memoryview(_LENGTH.pack(len(data))), memoryview(data)]
    while rest:
        count = os.writev(fd, rest)
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]
