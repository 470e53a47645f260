"""Objects in a bucket, against a real engine: the guarantees of every object store, and faults."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from obstore.store import S3Store

from cln_backup.model.errors import AccessDenied, AlreadyExists, StorageError, Unreachable
from cln_backup.storage.object_store import ObjectStoreBucket
from cln_backup.storage.parts import PART_BYTES
from cln_backup.storage.remote_objects import RemoteObjects
from tests.objects.engine import BUCKET, KEY, SECRET, engine
from tests.storage import test_objects as every_store

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT_S = 120.0
_said: list[str] = []


def _connect(prefix: str, port: int, key: str = SECRET) -> Callable[[float], S3Store]:
    def client(timeout_s: float) -> S3Store:
        return S3Store(
            BUCKET,
            prefix=prefix,
            endpoint=f"http://127.0.0.1:{port}",
            region="us-east-1",
            access_key_id=KEY,
            secret_access_key=key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": f"{timeout_s}s"},
            retry_config={"max_retries": 0},
        )

    return client


def _bucket(
    limit_s: float = _LIMIT_S, *, port: int = 0, key: str = SECRET, prefix: str = ""
) -> ObjectStoreBucket:
    prefix = prefix or f"objects-{os.urandom(8).hex()}"
    connect = _connect(prefix, port or engine().port, key)
    return ObjectStoreBucket(
        f"s3://{BUCKET}/{prefix}", connect, limit_s, lambda text, _: _said.append(text)
    )


@pytest.fixture
def objects() -> RemoteObjects:
    return RemoteObjects(_bucket())


@pytest.mark.parametrize("guarantee", every_store.GUARANTEES)
def test_guarantee_of_every_store(guarantee: Callable[..., None], objects: RemoteObjects) -> None:
    guarantee(objects)


@pytest.mark.parametrize(("offset", "length"), [(0, 3), (7, 3), (7, 4), (10, 1), (99, 5), (2, 0)])
def test_ranges(objects: RemoteObjects, offset: int, length: int) -> None:
    expected = b"0123456789"[offset : offset + length]
    every_store.test_ranges(objects, offset, length, expected)


def test_large_object_is_in_parts_that_go_with_it(objects: RemoteObjects) -> None:
    content = [bytes([number]) * (PART_BYTES // 2 + 1) for number in range(4)]
    objects.put_new("base-1", "base", content, op="put")
    assert objects.list() == ["base-1"]
    assert objects.prepared() == []
    whole = b"".join(content)
    with objects.open("base-1", op="open") as source:
        assert source.size_bytes() == len(whole)
        assert source.read_at(PART_BYTES - 1, 2) == whole[PART_BYTES - 1 : PART_BYTES + 1]
        assert source.read_at(0, len(whole)) == whole
    objects.delete("base-1", op="delete")
    assert objects.bucket.list() == []


@pytest.mark.parametrize("at", ["before", "at its mark", "before its look", "after"])
def test_object_that_is_discarded_while_it_is_published_is_whole_or_has_no_name(
    objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """An older writer publishes a base while a later one removes what it finds unfinished."""
    prepared = objects.prepare("base", [b"content"])
    later = RemoteObjects(objects.bucket)

    def publish() -> None:
        with contextlib.suppress(StorageError):
            objects.publish(prepared, "base-1", op="publish")

    def beside(owner: RemoteObjects, step: str, act: Callable[[], None], *, first: bool) -> None:
        done = getattr(owner, step)

        def both(*arguments: object) -> object:
            if first:
                act()
            result = done(*arguments)
            if not first:
                act()
            return result

        monkeypatch.setattr(owner, step, both)

    if at == "before":
        later.discard(prepared)
        publish()
    elif at == "at its mark":
        beside(objects, "_put", lambda: later.discard(prepared), first=False)
        publish()
    else:
        step = "_published" if at == "before its look" else "_remove_parts"
        beside(later, step, publish, first=True)
        later.discard(prepared)
    if "base-1" in objects.list():
        assert objects.get("base-1", 0, 99) == b"content"
    assert ("base-1" in objects.list()) == (at == "at its mark")


def test_of_many_racers_exactly_one_wins(objects: RemoteObjects) -> None:
    contents = [os.urandom(32) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda content: objects.bucket.put_new("race", content), contents))
    found = objects.bucket.read("race", 0, 99)
    assert found is not None
    assert [content for content, one in zip(contents, won, strict=True) if one] == [found.content]


class _Losing:
    """Puts that arrive, and whose answer is lost; or that are answered as a store may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> None:
        self._put, self._answers = obstore.put, list(answers)
        monkeypatch.setattr(obstore, "put", self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, obstore.exceptions.AlreadyExistsError):
            raise answer  # a conflict: nothing was stored
        done = self._put(*arguments, **options)
        if answer is not None:
            raise answer
        return done


def _answered(status: int) -> Exception:
    return obstore.exceptions.GenericError(f"Server returned non-2xx status code: {status}")


@pytest.mark.parametrize("status", [0, 408, 429, 500, 503])
def test_lost_answer_is_settled_by_reading_back(
    objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    lost = _answered(status) if status else OSError("connection reset")
    _Losing(monkeypatch, lost, lost)
    objects.put_new("log-1", "test", [b"ours"], op="put")
    with pytest.raises(AlreadyExists):
        objects.put_new("log-1", "test", [b"theirs"], op="put")
    assert objects.get("log-1", 0, 99) == b"ours"


def test_conflict_of_two_requests_is_no_refusal(
    objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS answers 409 while another conditional request for the name is under way."""
    _Losing(monkeypatch, obstore.exceptions.AlreadyExistsError("409 Conflict"))
    objects.put_new("log-1", "test", [b"ours"], op="put")
    assert objects.get("log-1", 0, 99) == b"ours"


def test_wrong_credentials_are_said_at_once_and_not_repeated() -> None:
    with pytest.raises(AccessDenied, match="refused the credentials") as refused:
        _bucket(key="another").list()
    assert "another" not in str(refused.value)
    assert "<" not in str(refused.value)


def test_store_that_is_not_there_is_waited_for_until_the_deadline() -> None:
    nobody = 1  # tcpmux, which nobody has
    with pytest.raises(Unreachable, match="answered before is stored there"):
        _bucket(0.5, port=nobody).put_new("log-1", b"x")
    assert issubclass(Unreachable, StorageError)
