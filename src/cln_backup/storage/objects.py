"""Objects: what is stored whole under a name, once, and never changed.

The seam below a backend. Everything in a backup but the end of its log is an object, and beginning
a new part of the log is one too: of two writers that store an object of one name, one learns that
it was too late. Neither paths nor descriptors cross the seam, so that an object store in a network
can stand behind it.
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
    """What a store says of an object without reading it.

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
        """Stores content that has no name yet; returns what to call it until it has one.

        On stable storage when it returns. Memory: one piece of the content at a time.

        Args:
            purpose: what it is, for messages and for `prepared`; one word.
            content: in pieces of any size.

        Raises:
            StorageError: nothing is left, as after whatever the content raises.
        """

    @abstractmethod
    def publish(self, prepared: str, name: str, *, op: str, withdraws: bool = True) -> None:
        """Gives a prepared object its name; atomic, and on stable storage when it returns.

        Of two that publish one name at a time, exactly one succeeds. A store whose answers can get
        lost must read the object back before it raises `AlreadyExists`: it may be its own.

        Args:
            prepared: what `prepare` returned.
            name: never one that was removed before, if a race for it matters.
            op: the step that this is part of, for messages.
            withdraws: whether the name is taken away again if it may not be durable, so that the
                next attempt does not find it taken. Not where others go by the name alone.

        Raises:
            AlreadyExists: an object has the name, and is left as it is.
            StorageError: the object may have its name or not.
        """

    @abstractmethod
    def prepared(self, purpose: str = "") -> Sequence[str]:
        """All that was prepared, by whomever, and neither published nor removed; of one purpose."""

    def put_new(
        self, name: str, purpose: str, content: Iterable[bytes], *, op: str, withdraws: bool = True
    ) -> None:
        """Stores an object: `prepare`, then `publish`, with their promises and their errors.

        Whatever is raised, what was prepared is removed; of a process that is killed meanwhile,
        nothing is left under the name.
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
        """A part of an object: up to that many bytes, fewer only where the object ends.

        Raises:
            StorageError: also where there is no such object.
        """

    @abstractmethod
    def status(self, name: str) -> ObjectStatus | None:
        """What is known of an object; `None` where there is none. Raises `StorageError`."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[str]:
        """The names that start so, sorted; one that was published before is among them.

        Raises `StorageError`.
        """

    @abstractmethod
    def delete(self, name: str, *, op: str) -> None:
        """Removes an object; idempotent, and durable when it returns. Raises `StorageError`."""

    @abstractmethod
    def discard(self, prepared: str) -> None:
        """Removes a prepared object; idempotent. It may come back after a loss of power."""

    def open(self, name: str, *, op: str, anew: bool = False) -> Source:  # noqa: ARG002
        """An object to read from, as often as wanted.

        Args:
            name: also a prepared one's.
            op: the step that this is part of, for messages.
            anew: whether to read what is stored, and nothing that a cache holds of it, as far as
                that can be asked for.

        Raises:
            StorageError: also where there is no such object, at once or when it is read.
        """
        require_name(name)
        return ObjectSource(self, name)

    def where(self, name: str) -> str:
        """What an operator calls an object."""
        return name


class ObjectSource:
    """An object of any store as a `Source`; each part that is read is asked for."""

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
    """The name. Raises `ValueError` where no object may have it."""
    if not is_name(name):
        raise ValueError(f"invalid object name: {name!r}")
    return name
