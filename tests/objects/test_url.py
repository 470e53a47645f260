"""URLs of backups in object stores."""

from __future__ import annotations

import pytest

from cln_backup.backends import redacted
from cln_backup.backends.objects.url import parse_objects_url
from cln_backup.model.errors import BadUrl


def test_s3_with_every_option() -> None:
    found = parse_objects_url(
        "s3://my-bucket/nodes/alice?endpoint=https://minio.example:9000&region=eu-west-1"
        "&credentials-file=/etc/a%26b&deadline=60&fencing=none&keep=2&keep-days=7&key-file=/k"
    )
    assert (found.scheme, found.bucket, found.prefix) == ("s3", "my-bucket", "nodes/alice")
    assert (found.endpoint, found.region) == ("https://minio.example:9000", "eu-west-1")
    assert (found.credentials_file, found.deadline_s) == ("/etc/a&b", 60)
    assert (found.fenced, found.keep, found.keep_days) == (False, 2, 7)
    assert (found.key_source, found.path) == (("key-file", "/k"), "s3://my-bucket/nodes/alice")


def test_other_kinds_and_their_own_options() -> None:
    azure = parse_objects_url("az://backups/alice/?account=alice1")
    assert (azure.scheme, azure.bucket, azure.account) == ("az", "backups", "alice1")
    assert azure.fenced
    google = parse_objects_url("gs://my_bucket.example/alice")
    assert (google.path, google.account) == ("gs://my_bucket.example/alice", None)
    assert google.full_name != azure.full_name


def test_one_container_name_of_two_accounts_is_two_backups() -> None:
    one, other = (parse_objects_url(f"az://backups/node?account=alice{name}") for name in "ab")
    assert one.path == other.path
    assert one.full_name != other.full_name


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3:bucket/prefix", "does not start with s3://"),
        ("gs:bucket/prefix", "does not start with gs://"),
        ("s3://Bucket/prefix", "not a valid name of a bucket"),
        ("az://UPPER/prefix", "not a valid name of a container"),
        ("s3://bucket", "the prefix"),
        ("s3://bucket/a/../b", "the prefix"),
        ("s3://key:hunter2@bucket/prefix", "credentials do not belong into a URL"),
        ("s3://bucket/prefix?account=alice", "option 'account'"),
        ("gs://bucket/prefix?region=eu", "option 'region'"),
        ("az://bucket/prefix?endpoint=ftp://host", "option 'endpoint'"),
        ("s3://bucket/prefix?fencing=maybe", "option 'fencing'"),
        ("s3://bucket/prefix?keep=1&keep=2", "option 'keep'"),
        ("s3://bucket/prefix?deadline=0", "option 'deadline'"),
        ("s3://bucket/prefix?key-file=relative", "option 'key-file'"),
        ("s3://bucket/prefix?credentials-file=relative", "option 'credentials-file'"),
    ],
)
def test_mistakes_are_named_with_the_form(url: str, why: str) -> None:
    with pytest.raises(BadUrl, match=why) as caught:
        parse_objects_url(url)
    assert f"The form is {url[:2]}://" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_no_option_of_these_urls_is_hidden_where_urls_are_shown() -> None:
    url = "az://backups/alice?account=alice1&endpoint=https://host&credentials-file=/c&fencing=none"
    assert redacted(url) == url
