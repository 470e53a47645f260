"""Parses `s3://BUCKET/PREFIX?endpoint=…&region=…`, and the same of `gs:` and `az:`."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote

from cln_backup.backends import redacted
from cln_backup.backends.local_url import KEY_SOURCES
from cln_backup.model.errors import BadUrl

_FORMS: Final = {
    "s3": "s3://BUCKET/PREFIX[?endpoint=https://HOST[:PORT]][&region=REGION][&OPTION=VALUE…]",
    "gs": "gs://BUCKET/PREFIX[?credentials-file=PATH][&OPTION=VALUE…]",
    "az": "az://CONTAINER/PREFIX?account=NAME[&OPTION=VALUE…]",
}
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_ENDPOINT: Final = re.compile(
    r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?(/[A-Za-z0-9._~-]+)*"
)
_REGION: Final = re.compile(r"[a-z0-9-]{1,32}")
_DEADLINE_S: Final = 600
_MAX_PREFIX: Final = 512


class ObjectsUrl(NamedTuple):
    """A bucket, a prefix, and how to reach them.

    Attributes:
        scheme: `s3`, `gs` or `az`; then the bucket is a container.
        endpoint: of a store that is not the provider's own.
        region: of a bucket of S3.
        account: of Azure; `None` for that of the environment.
        credentials_file: path of the file with the access key; `None` for the usual places.
        deadline_s: how long a running node waits for the store before it is stopped.
        fenced: whether the store must support put if absent.
        key_source, keep, keep_days: as in the URL of a `dir:` backup.
    """

    scheme: str
    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    account: str | None
    credentials_file: str | None
    deadline_s: int
    fenced: bool
    key_source: tuple[str, str] | None
    keep: int
    keep_days: int

    @property
    def path(self) -> str:
        """The bucket and the prefix, for messages."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}"

    @property
    def full_name(self) -> str:
        """Differs for each backup that this machine can reach."""
        return " ".join(filter(None, (self.endpoint, self.account, self.path)))


def parse_objects_url(url: str) -> ObjectsUrl:
    """Parses a URL; in the options, `%26` is `&`.

    Raises:
        BadUrl: the message says which part is wrong, and how to write it.
    """
    place, _, query = url.partition("?")
    scheme = place.partition(":")[0]
    rest = place.removeprefix(f"{scheme}://")
    if scheme not in _FORMS or rest == place:
        _bad(url, f"it does not start with {scheme if scheme in _FORMS else 's3'}://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if "@" in rest:
        _bad(url, "credentials do not belong into a URL; name a file with credentials-file=PATH")
    if _BUCKET.fullmatch(bucket) is None:
        kind = "container" if scheme == "az" else "bucket"
        _bad(url, f"{bucket!r} is not a valid name of a {kind}")
    if _PREFIX.fullmatch(prefix) is None or len(prefix) > _MAX_PREFIX:
        _bad(url, "the prefix, after the bucket, needs letters, digits, dots, dashes, underscores")
    allowed = _OPTIONS | _OWN_OPTIONS[scheme]
    options: dict[str, str] = {}
    key_source: tuple[str, str] | None = None
    for pair in filter(None, query.split("&")):
        name, _, quoted = pair.partition("=")
        value = unquote(quoted)
        if name in KEY_SOURCES and key_source is None and os.path.isabs(value):
            key_source = name, value
        elif name in allowed and name not in options and allowed[name].fullmatch(value):
            options[name] = value
        else:
            _bad(
                url,
                f"unknown or invalid option {name!r}; the options are {', '.join(allowed)}, and "
                "one of key-file, hsm-secret, passphrase-file with an absolute path",
            )
    return ObjectsUrl(
        scheme,
        bucket,
        prefix,
        options.get("endpoint"),
        options.get("region", "us-east-1"),
        options.get("account"),
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
    "credentials-file": re.compile(r"/[^\x00-\x1f]*"),
    "deadline": re.compile(r"[1-9]\d{0,8}"),
    "fencing": re.compile("none"),
    "keep": _NUMBER,
    "keep-days": _NUMBER,
}
_OWN_OPTIONS: Final[dict[str, dict[str, re.Pattern[str]]]] = {
    "s3": {"region": _REGION},
    "gs": {},
    "az": {"account": re.compile("[a-z0-9]{3,24}")},
}


def _bad(url: str, why: str) -> NoReturn:
    form = _FORMS.get(url.partition(":")[0], _FORMS["s3"])
    raise BadUrl(f"{redacted(url)!r} cannot be understood: {why}. The form is {form}")
