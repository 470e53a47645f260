"""Connects to a bucket: the client library, and where its credentials come from."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
from typing import TYPE_CHECKING, Final

from cln_backup.backends.events import Event, Noticed
from cln_backup.model.errors import AccessDenied, BadUrl, BrokenInstallation, StorageError
from cln_backup.storage import fsio
from cln_backup.storage.object_store import ObjectStoreBucket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        ObjectStore,
        RetryConfig,
        S3Config,
    )

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.objects.url import ObjectsUrl

_MAX_FILE_BYTES: Final = 1 << 16
_READ: Final = "read credentials"
_AZURE_FIELDS: Final = ("azure_storage_account_key", "azure_storage_sas_token")
_NO_RETRIES: Final[RetryConfig] = {"max_retries": 0}
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
            f"A {place.scheme}: backup needs the package obstore, which is not installed. "
            "Install cln-backup with its extra: pip install 'cln-backup[objects]'"
        ) from None
    _CLIENTS[place.scheme](place, 1.0)  # a file that cannot be read is said at once

    def say(text: str, back: bool) -> None:
        on_event(Event(Noticed.BACK if back else Noticed.WAITING, text))

    def client(timeout_s: float) -> ObjectStore:
        return _CLIENTS[place.scheme](place, timeout_s)

    return ObjectStoreBucket(place.path, client, limit_s, say, conditional=place.fenced)


def _options(place: ObjectsUrl, timeout_s: float) -> ClientConfig:
    return {
        "timeout": f"{timeout_s}s",
        "connect_timeout": f"{min(timeout_s, 5.0)}s",
        "allow_http": place.endpoint is not None and place.endpoint.startswith("http:"),
    }


@contextlib.contextmanager
def _refusals(place: ObjectsUrl, variables: str) -> Iterator[None]:
    """Turns an error of the library, which may repeat a secret, into one of ours."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, ValueError):
        raise BadUrl(
            f"The bucket {place.path} cannot be used with these options, credentials or "
            f"environment variables ({variables}…)."
        ) from None


def _s3(place: ObjectsUrl, timeout_s: float) -> ObjectStore:
    from obstore.store import S3Store

    config: S3Config = {
        "region": place.region,
        "virtual_hosted_style_request": False,
        "checksum_algorithm": "SHA256",  # a bucket with object lock wants one
    }
    if place.endpoint is not None:
        config["endpoint"] = place.endpoint
    access = _credentials(place)
    if access:
        config["access_key_id"] = access["aws_access_key_id"]
        config["secret_access_key"] = access["aws_secret_access_key"]
        # An empty one, or that of the environment would be sent with another key.
        if access.get("aws_session_token"):
            config["session_token"] = access["aws_session_token"]
    with _refusals(place, "AWS_"):
        return S3Store(
            place.bucket,
            prefix=place.prefix,
            config=config,
            client_options=_options(place, timeout_s),
            retry_config=_NO_RETRIES,
        )


def _gs(place: ObjectsUrl, timeout_s: float) -> ObjectStore:
    from obstore.store import GCSStore

    config: GCSConfig = {}
    if place.endpoint is not None:
        config["base_url"] = place.endpoint
    if place.credentials_file is not None:
        if _google_type(place.credentials_file) == "service_account":
            config["service_account"] = place.credentials_file
        else:
            config["application_credentials"] = place.credentials_file
    with _refusals(place, "GOOGLE_"):
        return GCSStore(
            place.bucket,
            prefix=place.prefix,
            config=config,
            client_options=_options(place, timeout_s),
            retry_config=_NO_RETRIES,
        )


def _az(place: ObjectsUrl, timeout_s: float) -> ObjectStore:
    from obstore.store import AzureStore

    config: AzureConfig = {}
    if place.account is not None:
        config["account_name"] = place.account
    if place.endpoint is not None:
        config["endpoint"] = place.endpoint
    if place.credentials_file is not None:
        found = _section(place.credentials_file, "default", _AZURE_FIELDS)
        if found[_AZURE_FIELDS[0]]:
            config["account_key"] = found[_AZURE_FIELDS[0]]
        elif found[_AZURE_FIELDS[1]]:
            config["sas_key"] = found[_AZURE_FIELDS[1]]
        else:
            raise _lacks(place.credentials_file, " or ".join(_AZURE_FIELDS))
    with _refusals(place, "AZURE_"):
        return AzureStore(
            place.bucket,
            prefix=place.prefix,
            config=config,
            client_options=_options(place, timeout_s),
            retry_config=_NO_RETRIES,
        )


_CLIENTS: Final = {"s3": _s3, "gs": _gs, "az": _az}


def _credentials(place: ObjectsUrl) -> dict[str, str]:
    """The access key in a file; empty if it comes from the environment or the machine itself."""
    if place.credentials_file is not None:
        found = _section(place.credentials_file, "default", _FIELDS)
        if not all(found.get(field) for field in _FIELDS[:2]):
            raise _lacks(place.credentials_file, " and ".join(_FIELDS[:2]))
        return found
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    if not os.path.isfile(path):
        return {}
    found = _section(path, os.environ.get("AWS_PROFILE") or "default", _FIELDS)
    return found if all(found.get(field) for field in _FIELDS[:2]) else {}


def _lacks(path: str, fields: str) -> AccessDenied:
    return AccessDenied(
        f"{path} has no {fields} in its section [default]. Nothing was read or changed."
    )


def _read(path: str) -> bytes:
    fd = fsio.open_existing(path, writable=False, op=_READ)
    try:
        return fsio.read_at(fd, _MAX_FILE_BYTES, 0, op=_READ)
    finally:
        os.close(fd)


def _google_type(path: str) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(_read(path))
        if isinstance(found, dict):
            return str(found.get("type", "service_account"))
    raise StorageError(f"{path} is not a credentials file, as Google has them.")


def _section(path: str, name: str, fields: Sequence[str]) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(_read(path).decode())
    except (configparser.Error, UnicodeDecodeError):
        raise StorageError(
            f"{path} is not a credentials file: it has no section [default] with a key."
        ) from None
    return {field: parser.get(name, field, fallback="") for field in fields}
