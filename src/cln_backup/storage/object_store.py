"""A bucket of an object store, through `obstore`: one request at a time, retried by us alone.

The library's own retries are off: they would turn a write of ours whose answer was lost into
"already exists". Here an answer that was lost is unknown, and settled by reading the object back.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import AccessDenied, BadUrl, StorageError, Unreachable
from cln_backup.storage import interruption
from cln_backup.storage.bucket import Bucket, Found, Listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from obstore.store import ObjectStore

    T = TypeVar("T")

SMALL_BYTES: Final = 1 << 20
"""A request with more is given longer than `QUICK_S`."""

QUICK_S: Final = 10.0
_SLOW_S: Final = 300.0
_LEAST_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
_SAY_EVERY_S: Final = 30.0

_DELETED_AT_ONCE: Final = 500

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_NOT_NOW: Final = frozenset((408, 409, 425, 429))
_EXPIRED: Final = frozenset(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"))
_SKEWED: Final = frozenset(("RequestTimeTooSkewed", "RequestExpired"))
_LATER: Final = frozenset(("RequestTimeout", "SlowDown", "InternalError", "OperationAborted"))


class _Failure(Exception):
    """A request that failed.

    Attributes:
        text: for the operator; never the body of an answer, which may repeat what was signed.
        kind: the error if it is not retried, or when the deadline is reached.
        lasting: whether a retry cannot help.
    """

    def __init__(
        self, text: str, kind: type[StorageError | AccessDenied | BadUrl], *, lasting: bool
    ) -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind
        self.lasting = lasting


class ObjectStoreBucket(Bucket):
    """The objects below one prefix of a bucket of an object store.

    Attributes:
        had_access: whether a request succeeded before; then a refusal may pass, as when a
            credential expires that something else renews.
    """

    def __init__(
        self,
        where: str,
        connect: Callable[[float], ObjectStore],
        limit_s: float,
        say: Callable[[str, bool], None],
        *,
        conditional: bool = True,
    ) -> None:
        """`connect` makes a client whose requests end after so many seconds.

        `say` gets notices while a request is retried, and with `True` the one that it succeeded.
        Without `conditional`, the store does not support put if absent.
        """
        super().__init__(where, limit_s)
        self.had_access = False
        self._connect = connect
        self._say = say
        self._conditional = conditional
        self._clients: dict[float, ObjectStore] = {}

    def put_new(self, key: str, content: bytes) -> bool:
        """See `Bucket.put_new`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def attempt(client: ObjectStore) -> bool:
            if not self._conditional:
                found = self._read(client, key, 0, len(content) + 1)
                if found is not None:
                    return found.content == content
                obstore.put(client, key, content, mode="overwrite", use_multipart=False)
                return True
            try:
                obstore.put(client, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # An earlier attempt of ours, another writer, or (409) two requests at once.
                found = self._read(client, key, 0, len(content) + 1)
                if found is None:
                    raise _Failure(
                        "the store answered 409, a conflict with another request",
                        StorageError,
                        lasting=False,
                    ) from None
                return found.content == content
            return True

        return self._until("write", attempt, len(content))

    def read(self, key: str, offset_bytes: int, length_bytes: int) -> Found | None:
        """See `Bucket.read`."""
        return self._until(
            "read", lambda client: self._read(client, key, offset_bytes, length_bytes), length_bytes
        )

    def _read(
        self, client: ObjectStore, key: str, offset_bytes: int, length_bytes: int
    ) -> Found | None:
        import obstore

        wanted = offset_bytes, offset_bytes + length_bytes
        try:
            found = obstore.get(client, key, options={"range": wanted} if length_bytes else None)
            content = bytes(found.bytes())
        except FileNotFoundError as error:
            self._require_bucket(error)
            return None
        except Exception as error:
            if _status(error) != 416:
                raise
            found = obstore.get(client, key)
            content = bytes(found.bytes())[offset_bytes : offset_bytes + length_bytes]
        return Found(content, found.meta["size"], found.meta["last_modified"].timestamp())

    def status(self, key: str) -> Listed | None:
        """See `Bucket.status`."""
        import obstore

        def attempt(client: ObjectStore) -> Listed | None:
            try:
                found = obstore.head(client, key)
            except FileNotFoundError:
                return None
            return Listed(key, found["size"], found["last_modified"].timestamp())

        return self._until("look at", attempt)

    def list(self, prefix: str = "") -> Sequence[Listed]:
        """See `Bucket.list`."""
        import obstore

        def attempt(client: ObjectStore) -> Sequence[Listed]:
            found = [
                Listed(meta["path"], meta["size"], meta["last_modified"].timestamp())
                for chunk in obstore.list(client, prefix=prefix or None, chunk_size=1_000)
                for meta in chunk
            ]
            return sorted(found)

        return self._until("list", attempt)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Bucket.delete`. Many with one request, where the store can."""
        import obstore
        from obstore.exceptions import BaseError

        for start in range(0, len(keys), _DELETED_AT_ONCE):
            some = list(keys[start : start + _DELETED_AT_ONCE])

            def attempt(client: ObjectStore, some: list[str] = some) -> None:
                try:
                    obstore.delete(client, some)
                except FileNotFoundError:  # not of S3; the rest may be there
                    for key in some:
                        with contextlib.suppress(FileNotFoundError):
                            obstore.delete(client, key)
                except BaseError as error:
                    if _status(error) != 501:
                        raise
                    text = "it does not support the request that removes several (501)"
                    raise _Failure(text, StorageError, lasting=True) from None

            self._until("remove", attempt, waits_for_access=False)

    def _until(
        self,
        what: str,
        attempt: Callable[[ObjectStore], T],
        size_bytes: int = 0,
        *,
        waits_for_access: bool = True,
    ) -> T:
        """Runs an attempt, again after a failure that may pass, until the limit.

        A missing right is waited for if there was access before, and for what the backup needs.
        """
        began_at = time.monotonic()
        end_at = self._limit_at()
        longest_s = QUICK_S if size_bytes <= SMALL_BYTES else _SLOW_S
        pause_s, said_at = 0.0, 0.0
        while True:
            left_s = max(_LEAST_S, end_at - time.monotonic())
            try:
                result = attempt(self._client(min(longest_s, left_s)))
            except Exception as error:
                failure = _judged(error)
                if failure is None:
                    raise
                waits = self.had_access and waits_for_access
                refused = failure.kind is AccessDenied and not waits
                now = time.monotonic()
                left_s = end_at - now
                if failure.lasting or refused or left_s <= 0:
                    raise self._error(what, failure, now - began_at) from None
                self._clients.clear()  # a new one reads the credentials again
                if now - max(said_at, began_at) >= _SAY_EVERY_S or (pause_s and not said_at):
                    said_at = now
                    self._say(
                        f"Cannot {what} the backup in {self.where}: {failure.text}. Retrying for "
                        f"{int(left_s)} more seconds.",
                        False,
                    )
                with interruption.at_once():
                    time.sleep(min(pause_s, left_s))
                pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
            else:
                self.had_access = True
                if said_at:
                    waited_s = time.monotonic() - began_at
                    text = (
                        f"The backup in {self.where} can be reached again, after {waited_s:.1f} s."
                    )
                    self._say(text, True)
                return result

    def _client(self, timeout_s: float) -> ObjectStore:
        """A client whose requests end in time; few different ones are kept."""
        step_s = timeout_s if timeout_s in (QUICK_S, _SLOW_S) else round(timeout_s, 1)
        client = self._clients.get(step_s)  # other threads may forget them
        if client is None:
            if len(self._clients) > 8:
                self._clients.clear()
            client = self._clients[step_s] = self._connect(step_s)
        return client

    def _require_bucket(self, error: Exception) -> None:
        if "NoSuchBucket" in str(error):
            raise _judge("NoSuchBucket", 404)

    def _error(
        self, what: str, failure: _Failure, tried_s: float
    ) -> StorageError | AccessDenied | BadUrl:
        safe = "Everything that was answered before is stored there."
        if failure.lasting or failure.kind is not StorageError:
            return failure.kind(f"Cannot {what} the backup in {self.where}: {failure.text}. {safe}")
        return Unreachable(
            f"Cannot {what} the backup in {self.where}: {failure.text}, for {tried_s:.0f} "
            f"seconds. {safe} Check the network and the store, then start again. The option "
            "deadline=SECONDS in the URL sets how long a running node waits."
        )


def _status(error: Exception) -> int:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def _judged(error: Exception) -> _Failure | None:
    """The meaning of a failure of the library; `None` for an error that is not the library's."""
    from obstore.exceptions import BaseError

    if isinstance(error, _Failure):
        return error
    if not isinstance(error, BaseError | OSError):
        return None
    text = str(error)
    code = _CODE.search(text)
    return _judge(code[1] if code else "", _status(error), text)


def _judge(code: str, status: int, text: str = "") -> _Failure:
    if code in _SKEWED:
        return _Failure(
            "the store refused the request because this machine's clock differs from its own "
            f"({code}); set the clock",
            AccessDenied,
            lasting=False,
        )
    if code in _EXPIRED:
        return _Failure(
            f"the credentials have expired ({code}); renew them", AccessDenied, lasting=False
        )
    if status in (401, 403) or "credential" in text.lower():
        return _Failure(
            f"the store refused the credentials ({code or status or 'none found'}); check them, "
            "and the rights that docs/engines.md lists",
            AccessDenied,
            lasting=False,
        )
    if code == "NoSuchBucket":
        return _Failure("there is no such bucket", StorageError, lasting=True)
    if status == 501 or code == "NotImplemented":
        return _Failure(
            "the store does not support put if absent (501), without which two nodes could both "
            "write",
            BadUrl,
            lasting=True,
        )
    if not status:
        how = "no answer in time" if "timed out" in text.lower() else "no connection"
        return _Failure(how, StorageError, lasting=False)
    said = f"the store answered {status}" + (f" ({code})" if code else "")
    lasting = status < 500 and status not in _NOT_NOW and code not in _LATER
    return _Failure(said, StorageError, lasting=lasting)
