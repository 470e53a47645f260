"""Finds out whether a store does what a backup needs, before one is made there."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import AccessDenied, BadUrl

if TYPE_CHECKING:
    from cln_backup.storage.bucket import Bucket

_ROUNDS: Final = 2
_RACERS: Final = 3


def probe(bucket: Bucket) -> None:
    """Races for names that are new, and looks whether exactly one wins, is listed and stays.

    Its objects are removed again, with the right to.

    Raises:
        BadUrl: put if absent is not true here, or a listing lacks what was just written.
        AccessDenied, StorageError.
    """
    start = f"probe-{os.urandom(8).hex()}"
    keys = [f"{start}-{number}" for number in range(_ROUNDS)]
    try:
        with ThreadPoolExecutor(_RACERS) as pool:
            for key in keys:
                contents = [os.urandom(32) for _ in range(_RACERS)]
                won = list(
                    pool.map(lambda content, key=key: bucket.put_new(key, content), contents)
                )
                again = bucket.put_new(key, os.urandom(32))
                found = bucket.read(key, 0, 64)
                winners = [content for content, one in zip(contents, won, strict=True) if one]
                if len(winners) != 1 or again or found is None or found.content != winners[0]:
                    raise BadUrl(
                        f"The store of {bucket.where} does not support put if absent: of "
                        f"{_RACERS} writers of one object, {len(winners)} were told that they made "
                        f"it{', and one replaced it later' if again else ''}. Two nodes could both "
                        "write to a backup there. Nothing was made. Use another store "
                        "(docs/engines.md has a table)."
                    )
                if key not in (one.key for one in bucket.list()):
                    raise BadUrl(
                        f"A listing of {bucket.where} lacks an object that was just written. "
                        "Nothing was made. Use another store (docs/engines.md has a table)."
                    )
    finally:
        with contextlib.suppress(AccessDenied):  # the right to remove is not needed here
            bucket.delete(keys)
