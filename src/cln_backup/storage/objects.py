"""Objects: immutable contents, each stored as a whole under a name.

The interface below a backend. Everything in a backup except the end of its log is an object, and so
is the start of a new part of the log: of two writers that store an object under one name, exactly
one succeeds. The interface has neither paths nor descriptors, so that a network's object store can
implement it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Self

    from cln_backup.storage.source import Source

NAME_CHARACTERS: Final = 128
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_CHARACTERS - 1}}}")


class ObjectStatus(NamedTuple):
    """The metadata of an object.

    Attributes:
        stored_at: when, in seconds since 1970, by the store's clock.
    """

    size_bytes: int
    stored_at: float


class Objects(ABC):
    """A store of named objects.

    A name has 1 to 128 letters, digits, dots, dashes and underscores, and starts with a letter or a
    digit; `list` shows no other, and every other method raises `ValueError` for one.

    Storing has two halves, so that the long one need not happen under a name: `prepare` stores the
    content and `publish` gives it its name, perhaps in another process. A prepared object has a
    name of the store's own, by which it can be read and removed, and which `list` does not show.
    """

    @abstractmethod
    def prepare(self, purpose: str, content: Iterable[bytes]) -> str:
        """Stores content without a name yet; returns the store's own name for it.

        On stable storage when it returns. Memory: one piece of the content at a time.

        Args:
            purpose: one word for messages and for `prepared`.
            content: in pieces of any size.

        Raises:
            StorageError: nothing is left, as after any error that the content raises.
        """

    @abstractmethod
    def publish(self, prepared: str, name: str, *, op: str, withdraws: bool = True) -> None:
        """Gives a prepared object its name; atomic, and on stable storage when it returns.

        If two processes publish one name, exactly one succeeds. A store whose answers can be lost
        must read the object back before it raises `AlreadyExists`: the object may be its own.

        Args:
            prepared: the result of `prepare`.
            name: never one that was removed before, if a race for it matters.
            op: the step that this is part of, for messages.
            withdraws: whether to remove the name again if it may not be durable, so that a retry
                finds it free. False if other processes may already use the object.

        Raises:
            AlreadyExists: an object has the name; it is not changed.
            StorageError: the object may have its name or not.
        """

    @abstractmethod
    def prepared(self, purpose: str = "") -> Sequence[str]:
        """Objects that any process prepared and did not publish or remove, for one purpose."""

    def put_new(
        self, name: str, purpose: str, content: Iterable[bytes], *, op: str, withdraws: bool = True
    ) -> None:
        """Stores an object: `prepare`, then `publish`, with their guarantees and their errors.

        After any error, the prepared object is removed; if the process is killed meanwhile,
        nothing has the name.
        """
        require_name(name)
        prepared = self.prepare(purpose, content)
        try:
            self.publish(prepared, name, op=op, withdraws=withdraws)
        except BaseException:
            self.discard(prepared)
            raise

    @abstractmethod
    def get(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """A range of an object: up to that many bytes, fewer only at its end.

        Raises:
            StorageError: also if the object does not exist.
        """

    @abstractmethod
    def status(self, name: str) -> ObjectStatus | None:
        """The metadata of an object; `None` if it does not exist. Raises `StorageError`."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[str]:
        """The names with this prefix, sorted; all names published before are included.

        Raises `StorageError`.
        """

    @abstractmethod
    def delete(self, name: str, *, op: str) -> None:
        """Removes an object; idempotent, and durable when it returns. Raises `StorageError`."""

    @abstractmethod
    def discard(self, prepared: str, *, in_steps: bool = False) -> None:
        """Removes a prepared object; idempotent. It may reappear after a loss of power.

        With `in_steps`, removing a large one may take long, so that no writer has to wait.
        """

    def open(self, name: str, *, op: str, anew: bool = False) -> Source:  # noqa: ARG002
        """Opens an object for reading, repeatedly.

        Args:
            name: may also be that of a prepared object.
            op: the step that this is part of, for messages.
            anew: whether to bypass caches and read from the storage, as far as supported.

        Raises:
            StorageError: also if the object does not exist, at once or on the first read.
        """
        require_name(name)
        return ObjectSource(self, name)

    def where(self, name: str) -> str:
        """The object's name in messages for the operator."""
        return name


class ObjectSource:
    """An object of any store as a `Source`; each read is one `get`."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects = objects
        self._name = name
        self._size_bytes = -1

    def size_bytes(self) -> int:
        """See `Source.size_bytes`; asked once, since objects do not change."""
        if self._size_bytes < 0:
            status = self._objects.status(self._name)
            self._size_bytes = 0 if status is None else status.size_bytes
        return self._size_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Source.read_at`."""
        return self._objects.get(self._name, offset_bytes, length_bytes)

    def close(self) -> None:
        """See `Source.close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


def is_name(name: str) -> bool:
    """Whether an object may have this name."""
    return _NAME.fullmatch(name) is not None


def require_name(name: str) -> str:
    """Returns the name. Raises `ValueError` if it is not a valid object name."""
    if not is_name(name):
        raise ValueError(f"invalid object name: {name!r}")
    return name
