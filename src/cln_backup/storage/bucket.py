"""A bucket: objects of at most some MiB, elsewhere, that are stored by one request each.

The interface below `RemoteObjects`, of an object store and of this project's own server. Of two
processes that store an object under one name, exactly one succeeds.
"""

from __future__ import annotations

import contextlib
import re
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


MAX_KEY_CHARACTERS: Final = 3 * 128 + 2
FENCE_BYTES: Final = 48
"""The length of a fence, which no other object of a log has; no fence is ever removed."""

_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_KEY: Final = re.compile(rf"{_PART}(/{_PART}){{0,2}}")
_DIRECTORY: Final = re.compile(rf"({_PART}/){{0,2}}")


class Found(NamedTuple):
    """A part of an object, and the metadata of the whole.

    Attributes:
        stored_at: in seconds since 1970, by the store's clock.
    """

    content: bytes
    size_bytes: int
    stored_at: float


class Listed(NamedTuple):
    """An object in a listing.

    Attributes:
        stored_at: as of `Found`.
    """

    key: str
    size_bytes: int
    stored_at: float


class Bucket(ABC):
    """The objects below one prefix.

    A key has the characters of an object's name, and slashes. A request whose answer is lost is
    made again until a limit; every method raises:

    - `Unreachable`: not answered until the limit. A write may have arrived or not.
    - `AccessDenied`: the credentials, or the rights that they give.
    - `BadUrl`, `StorageError`: another fault, which a retry does not end.

    Attributes:
        where: the place, for messages.
        limit_s: how long a request is made again.
    """

    def __init__(self, where: str, limit_s: float) -> None:
        self.where = where
        self.limit_s = limit_s
        self._end_at: float | None = None

    @contextlib.contextmanager
    def within(self, limit_s: float | None) -> Iterator[None]:
        """Requests in the block have this limit, counted from the start of it; `None` has none."""
        before = self._end_at
        if limit_s is not None:
            self._end_at = time.monotonic() + limit_s
        try:
            yield
        finally:
            self._end_at = before

    def _limit_at(self) -> float:
        """When the requests of this moment are given up, by the monotonic clock."""
        return time.monotonic() + self.limit_s if self._end_at is None else self._end_at

    @abstractmethod
    def put_new(self, key: str, content: bytes) -> bool:
        """Stores an object, unless there is one; returns whether the object there is this one.

        On stable storage when it returns `True`. A lost answer is settled by reading the object
        back: so the content must be one that no other process would store.
        """

    @abstractmethod
    def read(self, key: str, offset_bytes: int, length_bytes: int) -> Found | None:
        """A range of an object, fewer bytes only at its end; `None` if there is no such object."""

    @abstractmethod
    def status(self, key: str) -> Listed | None:
        """The metadata of an object; `None` if it does not exist."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[Listed]:
        """All objects whose key starts with a prefix, in the order of their keys.

        The prefix is empty, or a directory with the slash at its end. All objects stored before
        are included.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; those that do not exist are ignored. Durable when it returns."""

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Releases connections; a later request makes new ones."""


def is_key(key: str) -> bool:
    """Whether an object may have this key: at most three names, with slashes between."""
    return len(key) <= MAX_KEY_CHARACTERS and _KEY.fullmatch(key) is not None


def is_directory(prefix: str) -> bool:
    """Whether a listing may have this prefix: at most two names, each with a slash after it."""
    return _DIRECTORY.fullmatch(prefix) is not None
