"""Buckets of Google and Azure: what is sent, and how the answers are understood."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.objects.stores import StorePlace
from cln_backup.model.errors import AccessDenied, BadUrl, StorageError, Unreachable
from tests.objects.stand_in import StandIn, stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cln_backup.storage.bucket import Bucket

_SECRET = base64.b64encode(b"secret of the account").decode()
_CONDITIONS = {"gs": ("x-goog-if-generation-match", "0"), "az": ("if-none-match", "*")}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as server:
        yield server


def _url(kind: str, server: StandIn, directory: Path) -> str:
    file = directory / "credentials"
    if kind == "gs":
        fields = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        file.write_text(json.dumps(fields | {"disable_oauth": True}))
    else:
        file.write_text(f"[default]\nazure_storage_account_key = {_SECRET}\n")
    account = "&account=alice1" if kind == "az" else ""
    return f"{kind}://bucket/node?endpoint={server.url}&credentials-file={file}{account}"


@pytest.fixture(params=["az", "gs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bucket(kind: str, server: StandIn, tmp_path: Path) -> Bucket:
    return StorePlace(_url(kind, server, tmp_path)).bucket(20.0)


def test_objects_are_put_if_absent_read_and_removed(
    kind: str, server: StandIn, bucket: Bucket
) -> None:
    assert bucket.put_new("log-1", b"0123456789")
    method, headers = server.requests[-1]
    name, value = _CONDITIONS[kind]
    assert (method, headers[name]) == ("PUT", value)
    assert bucket.put_new("log-1", b"0123456789"), "ours already"
    assert not bucket.put_new("log-1", b"of another writer")
    found = bucket.read("log-1", 2, 3)
    assert found is not None
    assert (found.content, found.size_bytes) == (b"234", 10)
    past_end = bucket.read("log-1", 10, 3)
    assert past_end is not None
    assert past_end.content == b""
    status = bucket.status("log-1")
    assert status is not None
    assert status.size_bytes == 10
    assert bucket.read("log-2", 0, 1) is None
    assert bucket.status("log-2") is None
    if kind == "gs":  # Azure removes with a batch of requests
        assert bucket.put_new("log-2", b"one more")
        bucket.delete(["log-1", "log-2", "log-3"])
        assert not server.objects


def test_store_that_cannot_remove_is_named(server: StandIn, bucket: Bucket) -> None:
    server.answers = [501] * 3
    with pytest.raises(StorageError, match="does not support the request that removes"):
        bucket.delete(["log-1"])


def test_lost_answer_is_settled_by_reading_back(server: StandIn, bucket: Bucket) -> None:
    server.answers = [-503]  # stored, and not said
    assert bucket.put_new("log-1", b"ours")
    assert [method for method, _ in server.requests] == ["PUT", "PUT", "GET"]
    server.answers = [503, 429, 500]
    assert bucket.put_new("log-2", b"ours")
    assert list(server.objects.values()) == [b"ours", b"ours"]


def test_silence_ends_with_the_limit(server: StandIn, bucket: Bucket) -> None:
    server.answers = [503] * 1_000
    with bucket.within(0.3), pytest.raises(Unreachable, match="answered 503"):
        bucket.put_new("log-1", b"ours")
    assert not server.objects


def test_refusals_are_named_without_the_secret(server: StandIn, bucket: Bucket) -> None:
    server.answers = [403]
    with pytest.raises(AccessDenied, match="refused the credentials") as caught:
        bucket.put_new("log-1", b"ours")
    assert _SECRET not in str(caught.value)
    server.answers = [501]
    with pytest.raises(BadUrl, match="put if absent"):
        bucket.put_new("log-1", b"ours")


def test_credentials_that_cannot_be_used_are_named(
    kind: str, server: StandIn, tmp_path: Path
) -> None:
    place = StorePlace(_url(kind, server, tmp_path))
    file = tmp_path / "credentials"
    file.write_text("[other]\nazure_storage_account_key = x\n")
    with pytest.raises((StorageError, AccessDenied), match=str(file)):
        place.bucket(1.0)
    file.unlink()
    with pytest.raises(StorageError, match=str(file)):
        place.bucket(1.0)
    assert not server.requests
