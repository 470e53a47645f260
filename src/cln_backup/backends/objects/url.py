"""Parses `s3://BUCKET/PREFIX?endpoint=…&region=…`."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote

from cln_backup.backends import redacted
from cln_backup.backends.dir.url import KEY_SOURCES
from cln_backup.model.errors import BadUrl

FORM: Final = "s3://BUCKET/PREFIX[?endpoint=https://HOST[:PORT]][&region=REGION][&OPTION=VALUE…]"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_ENDPOINT: Final = re.compile(
    r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?"
)
_REGION: Final = re.compile(r"[a-z0-9-]{1,32}")
_DEADLINE_S: Final = 600
_MAX_PREFIX: Final = 512


class ObjectsUrl(NamedTuple):
    """A bucket, a prefix, and how to reach them.

    Attributes:
        endpoint: of a store that is not Amazon's.
        credentials_file: path of the file with the access key; `None` for the usual places.
        deadline_s: how long a running node waits for the store before it is stopped.
        fenced: whether the store must support put if absent.
        key_source, keep, keep_days: as in the URL of a `dir:` backup.
    """

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    credentials_file: str | None
    deadline_s: int
    fenced: bool
    key_source: tuple[str, str] | None
    keep: int
    keep_days: int

    @property
    def path(self) -> str:
        """The bucket and the prefix, for messages."""
        return f"s3://{self.bucket}/{self.prefix}"


def parse_objects_url(url: str) -> ObjectsUrl:
    """Parses a URL; in the options, `%26` is `&`.

    Raises:
        BadUrl: the message says which part is wrong, and how to write it.
    """
    place, _, query = url.partition("?")
    rest = place.removeprefix("s3://")
    if rest == place:
        _bad(url, "it does not start with s3://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if "@" in rest:
        _bad(url, "credentials do not belong into a URL; name a file with credentials-file=PATH")
    if _BUCKET.fullmatch(bucket) is None:
        _bad(url, f"{bucket!r} is not a valid name of a bucket")
    if _PREFIX.fullmatch(prefix) is None or len(prefix) > _MAX_PREFIX:
        _bad(url, "the prefix, after the bucket, needs letters, digits, dots, dashes, underscores")
    options: dict[str, str] = {}
    key_source: tuple[str, str] | None = None
    for pair in filter(None, query.split("&")):
        name, _, quoted = pair.partition("=")
        value = unquote(quoted)
        if name in KEY_SOURCES and key_source is None and os.path.isabs(value):
            key_source = name, value
        elif name in _OPTIONS and name not in options and _OPTIONS[name].fullmatch(value):
            options[name] = value
        else:
            _bad(
                url,
                f"unknown or invalid option {name!r}; the options are {', '.join(_OPTIONS)}, and "
                "one of key-file, hsm-secret, passphrase-file with an absolute path",
            )
    return ObjectsUrl(
        bucket,
        prefix,
        options.get("endpoint"),
        options.get("region", "us-east-1"),
        options.get("credentials-file"),
        int(options.get("deadline", _DEADLINE_S)),
        "fencing" not in options,
        key_source,
        int(options.get("keep", 0)),
        int(options.get("keep-days", 0)),
    )


_NUMBER: Final = re.compile(r"\d{1,6}")
_OPTIONS: Final = {
    "endpoint": _ENDPOINT,
    "region": _REGION,
    "credentials-file": re.compile(r"/[^\x00-\x1f]*"),
    "deadline": re.compile(r"[1-9]\d{0,8}"),
    "fencing": re.compile("none"),
    "keep": _NUMBER,
    "keep-days": _NUMBER,
}


def _bad(url: str, why: str) -> NoReturn:
    raise BadUrl(f"{redacted(url)!r} cannot be understood: {why}. The form is {FORM}")
