"""JSON-RPC messages out of a byte stream, found as lightningd finds them.

lightningd's parser needs no separator: a message ends with the brace that closes it
(`common/jsonrpc_io.c`). Plugins end theirs with an empty line, which is quicker to find.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

# strict=False: lightningd's parser takes control characters inside a string as they are.
_DECODER = json.JSONDecoder(strict=False)
_BRACKETS_AND_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"|["\[\]{}]', re.DOTALL)
SEPARATOR = b"\n\n"


class MalformedError(Exception):
    """The bytes are not a JSON-RPC message; lightningd closes the connection then."""


class MessageStream:
    """Collects what was read and gives back whole messages."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, chunk: bytes) -> None:
        """Add what was read."""
        self._buffer = self._buffer + chunk if self._buffer else chunk

    def next(self) -> Message | None:
        """Take the next whole message; `None` while there is none.

        Raises:
            MalformedError: what was read cannot become a message.
        """
        if not self._buffer:
            return None
        found = self._up_to_separator()
        return found if found is not None else self._up_to_closing_brace()

    def _up_to_separator(self) -> Message | None:
        end = self._buffer.find(SEPARATOR)
        if end <= 0:
            return None
        try:
            message = _decode(self._buffer[:end])
        except ValueError:
            return None  # the empty line may be inside a message
        self._buffer = self._buffer[end + len(SEPARATOR) :]
        return _checked(message)

    def _up_to_closing_brace(self) -> Message | None:
        self._buffer = self._buffer.lstrip()
        if b"}" not in self._buffer:
            return None  # lightningd does not even look before there is one
        if not self._buffer.startswith(b"{"):
            raise self._failure()
        depth = 0
        for match in _BRACKETS_AND_STRINGS.finditer(self._buffer):
            token = match[0]
            if token == b'"':
                return None  # a string that continues in unread input
            if token in (b"{", b"["):
                depth += 1
            elif token in (b"}", b"]"):
                depth -= 1
            if depth == 0:
                try:
                    message = _decode(self._buffer[: match.end()])
                except ValueError:
                    raise self._failure() from None
                self._buffer = self._buffer[match.end() :]
                return _checked(message)
        return None

    def _failure(self) -> MalformedError:
        text = self._buffer.decode("utf-8", "backslashreplace")
        return MalformedError(f"Failed to parse RPC JSON response '{text}'")


def _decode(raw: bytes) -> object:
    """Parse one message; UTF-8 that is not valid is a `ValueError`, as in lightningd."""
    return _DECODER.decode(raw.decode())


def _checked(message: object) -> Message:
    if isinstance(message, dict) and "jsonrpc" in message:
        return message
    raise MalformedError(
        f"JSON-RPC message does not contain \"jsonrpc\" field: '{encode(message).decode()}'"
    )


def encode(value: object) -> bytes:
    """Write a value as compact JSON in UTF-8; lone surrogates become their original bytes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogateescape")
