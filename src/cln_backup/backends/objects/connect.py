"""Connects to a bucket: the client library, and where its credentials come from."""

from __future__ import annotations

import configparser
import os
from typing import TYPE_CHECKING, Final

from cln_backup.backends.events import Event, Noticed
from cln_backup.model.errors import AccessDenied, BadUrl, BrokenInstallation, StorageError
from cln_backup.storage import fsio
from cln_backup.storage.object_store import ObjectStoreBucket

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.objects.url import ObjectsUrl

_MAX_FILE_BYTES: Final = 1 << 16
_READ: Final = "read credentials"
_FIELDS: Final = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def connect(place: ObjectsUrl, limit_s: float, on_event: OnEvent) -> ObjectStoreBucket:
    """The place of a backup in its bucket; nothing is sent yet.

    Raises:
        BrokenInstallation: the extra `objects` is not installed.
        AccessDenied, StorageError: the file with the credentials cannot be used.
    """
    try:
        import obstore.store  # noqa: F401
    except ImportError:
        raise BrokenInstallation(
            "An s3: backup needs the package obstore, which is not installed. Install "
            "cln-backup with its extra: pip install 'cln-backup[objects]'"
        ) from None
    _credentials(place)  # a file that cannot be read is said at once

    def say(text: str, back: bool) -> None:
        on_event(Event(Noticed.BACK if back else Noticed.WAITING, text))

    def client(timeout_s: float) -> S3Store:
        return _client(place, timeout_s)

    return ObjectStoreBucket(place.path, client, limit_s, say, conditional=place.fenced)


def _client(place: ObjectsUrl, timeout_s: float) -> S3Store:
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    config: S3Config = {"region": place.region, "virtual_hosted_style_request": False}
    if place.endpoint is not None:
        config["endpoint"] = place.endpoint
    access = _credentials(place)
    if access:
        config["access_key_id"] = access["aws_access_key_id"]
        config["secret_access_key"] = access["aws_secret_access_key"]
        # An empty one, or that of the environment would be sent with another key.
        if access.get("aws_session_token"):
            config["session_token"] = access["aws_session_token"]
    try:
        return S3Store(
            place.bucket,
            prefix=place.prefix,
            config=config,
            client_options={
                "timeout": f"{timeout_s}s",
                "connect_timeout": f"{min(timeout_s, 5.0)}s",
                "allow_http": place.endpoint is not None and place.endpoint.startswith("http:"),
            },
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError):
        raise BadUrl(
            f"The bucket {place.path} cannot be used with these options or environment variables "
            "(AWS_…)."
        ) from None


def _credentials(place: ObjectsUrl) -> dict[str, str]:
    """The access key in a file; empty if it comes from the environment or the machine itself."""
    if place.credentials_file is not None:
        found = _section(place.credentials_file, "default")
        if not all(found.get(field) for field in _FIELDS[:2]):
            raise AccessDenied(
                f"{place.credentials_file} has no {_FIELDS[0]} and {_FIELDS[1]} in its section "
                "[default]. Nothing was read or changed."
            )
        return found
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    if not os.path.isfile(path):
        return {}
    found = _section(path, os.environ.get("AWS_PROFILE") or "default")
    return found if all(found.get(field) for field in _FIELDS[:2]) else {}


def _section(path: str, name: str) -> dict[str, str]:
    fd = fsio.open_existing(path, writable=False, op=_READ)
    try:
        content = fsio.read_at(fd, _MAX_FILE_BYTES, 0, op=_READ)
    finally:
        os.close(fd)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(content.decode())
    except (configparser.Error, UnicodeDecodeError):
        raise StorageError(f"{path} is not a credentials file, as AWS has them.") from None
    if not parser.has_section(name):
        return {}
    return {field: parser.get(name, field, fallback="") for field in _FIELDS}
