"""The messages between lightningd and a plugin, and the pipe that they arrive through.

Each message is JSON, ended by an empty line. An answer repeats the id as it was written. Text may
contain bytes that are not valid UTF-8 (lightningd escapes control characters only).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
from typing import Any, Literal

import msgspec

from cln_backup.model.errors import BadChange

MAILBOX_BYTES = 1 << 20
_END = b"\n\n"
_ESCAPED_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")


class Message(msgspec.Struct):
    """A request of lightningd, or a notification, which has an empty id."""

    method: str
    id: msgspec.Raw = msgspec.Raw(b"")
    params: msgspec.Raw = msgspec.Raw(b"{}")


class DbWrite(msgspec.Struct):
    """The parameters of `db_write`."""

    data_version: int
    writes: list[str]


class Call(msgspec.Struct):
    """A `db_write` whose text is valid UTF-8, decoded with its parameters."""

    method: Literal["db_write"]
    params: DbWrite
    id: msgspec.Raw = msgspec.Raw(b"")


class InitConfiguration(msgspec.Struct, frozen=True):
    """The description of the node in `init`."""

    lightning_dir: str = msgspec.field(name="lightning-dir", default=".")
    rpc_file: str = msgspec.field(name="rpc-file", default="lightning-rpc")
    startup: bool = True


class Init(msgspec.Struct):
    """The parameters of `init`."""

    options: dict[str, Any] = {}
    configuration: InitConfiguration = InitConfiguration()


_call = msgspec.json.Decoder(Call)
_message = msgspec.json.Decoder(Message)
_init = msgspec.json.Decoder(Init)


def decode(text: bytes) -> Call | Message:
    """Decodes a message: a `db_write` completely, any other except for its parameters.

    Raises:
        BadChange: it is neither a request nor a notification.
    """
    try:
        return _call.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return _message.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadChange("lightningd sent an invalid message.") from None


def decode_db_write(message: Call | Message) -> DbWrite:
    """The parameters of `db_write`; invalid UTF-8 becomes lone surrogates (PEP 383).

    Raises:
        BadChange: they do not have the form that lightningd sends.
    """
    if isinstance(message, Call):
        return message.params
    params = bytes(message.params)
    try:
        if _ESCAPED_SURROGATE.search(params):  # would look like a stray byte
            raise ValueError
        fields = json.loads(params.decode("utf-8", "surrogateescape"))
        return msgspec.convert(fields, DbWrite)
    except (ValueError, RecursionError):
        raise BadChange(
            "lightningd sent a db_write that cannot be understood; nothing was stored. Is this "
            "release of lightningd newer than cln-backup? Go back to the release that worked, and "
            "report this."
        ) from None


def decode_init(params: msgspec.Raw) -> Init:
    """The parameters of `init`. Raises `BadChange`."""
    try:
        return _init.decode(params)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadChange("lightningd sent an invalid init.") from None


def asks_for_force(params: msgspec.Raw) -> bool:
    """Whether `backup-compact` was given `force`. Raises `BadChange`."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        given = msgspec.json.decode(params)
        if given in ([], {}, [False], {"force": False}):
            return False
        if given in ([True], {"force": True}):
            return True
    raise BadChange("backup-compact takes force=true or no parameter.")


def proceed(request_id: bytes) -> bytes:
    """The answer to a `db_write` whose change is durable."""
    return b'{"jsonrpc":"2.0","id":%b,"result":{"result":"continue"}}\n\n' % request_id


def answer(request_id: bytes, result: object) -> bytes:
    """The encoded answer to a request."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n\n' % (request_id, msgspec.json.encode(result))


def error(request_id: bytes, message: str) -> bytes:
    """The encoded answer to a failed request."""
    fields = {"code": -1, "message": message}
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}\n\n' % (request_id, msgspec.json.encode(fields))


def notification(topic: str, params: object) -> bytes:
    """An encoded notification, which lightningd passes on to the plugins that subscribe to it."""
    fields = {"jsonrpc": "2.0", "method": topic, "params": params}
    return msgspec.json.encode(fields) + _END


def log(level: str, message: str) -> bytes:
    r"""A line for lightningd's log; `level` is `debug`, `info`, `warn` or `error`.

    In plain UTF-8: lightningd shows a message with a `\u` escape in it as it was sent.
    """
    text = "".join(sign if sign.isprintable() else " " for sign in message)
    fields = {"level": level, "message": text}
    return (
        json.dumps({"jsonrpc": "2.0", "method": "log", "params": fields}, ensure_ascii=False)
        + "\n\n"
    ).encode("utf-8", "replace")


def write(data: bytes) -> None:
    """Writes complete messages to lightningd. Raises `BrokenPipeError` if it has ended."""
    while data:
        data = data[os.write(1, data) :]


class Mailbox:
    """Memory with the input read from lightningd and not answered yet.

    It is shared with the guard, which finds in it the request that the worker died over. The rest
    after the text is zeros, which JSON does not contain, so the length is not stored, and cannot
    be out of date. For a message larger than the mailbox, the start is kept, which has its id.
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, MAILBOX_BYTES)

    def text(self) -> bytes:
        """Its contents."""
        end = self.memory.find(b"\x00")
        return self.memory[: end if end >= 0 else MAILBOX_BYTES]


class Reader:
    """Reads messages from a pipe, through a mailbox."""

    def __init__(self, fd: int, mailbox: Mailbox) -> None:
        self._fd = fd
        self._memory = mailbox.memory
        self._view = memoryview(mailbox.memory)
        self._used = 0
        self._searched = 0
        self._large: bytearray | None = None
        self._taken = 0

    def read(self) -> bool:
        """Waits for input and reads it; `False` if lightningd has closed the pipe."""
        if self._used == MAILBOX_BYTES:
            if self._large is None:
                self._large = bytearray(self._memory)
            data = os.read(self._fd, MAILBOX_BYTES)
            self._large += data
            return bool(data)
        count = os.readv(self._fd, [self._view[self._used :]])
        self._used += count
        return count > 0

    def has_begun(self) -> bool:
        """Whether an incomplete message was read."""
        return self._used > 0

    def take(self) -> bytes | None:
        """The next complete message, if there is one; it stays in the mailbox until `drop`."""
        source = self._memory if self._large is None else self._large
        used = self._used if self._large is None else len(self._large)
        end = source.find(b"\n", max(0, self._searched - 1), used)
        if end >= 0 and source[end + 1 : end + 2] != b"\n":  # not written by lightningd
            end = source.find(_END, end, used)
        if end < 0:
            self._searched = used
            return None
        self._taken = end + len(_END)
        return bytes(source[:end])

    def drop(self) -> None:
        """Removes the message that `take` returned from the mailbox: it is answered."""
        if self._large is not None:
            rest = bytes(self._large[self._taken :])
            self._large = bytearray(rest) if len(rest) >= MAILBOX_BYTES else None
        else:
            rest = self._memory[self._taken : self._used]
        kept = rest[:MAILBOX_BYTES]
        self._view[: self._used] = kept.ljust(self._used, b"\x00")
        self._used = len(kept)
        self._searched = self._taken = 0
