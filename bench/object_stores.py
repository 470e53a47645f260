"""Measures of `s3:`: the wait for an answer against a bare PUT of the same bytes."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from bench import drive
from bench.measures import Row, ratio
from cln_backup.backends import create_backend, open_writer
from cln_backup.model.change import Change
from cln_backup.storage.object_store import ObjectStoreBucket
from demo.engines import running_store
from tests.objects.engine import BUCKET, KEY, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obstore.store import S3Store

_CALLS = 800
_WARM_UP = 80


def s3_answer(directory: str, capture: str) -> Iterator[Row]:
    """A change through the writer and through the plugin, and its bytes alone, in turn.

    The store is SeaweedFS on this machine, which syncs each object.
    """
    import obstore

    with contextlib.ExitStack() as stack:
        store, _ = stack.enter_context(running_store())
        bare = _client(store.port)
        url, home = store.url("writer"), os.path.join(directory, "node")
        create_backend(url, None)
        os.mkdir(home)
        drive.new_backup(home, url=store.url("plugin"))
        plugin = drive.Program([drive.PLUGIN], home)
        stored = stack.enter_context(_noted())
        writer = stack.enter_context(open_writer(url))
        times_s: dict[str, list[float]] = defaultdict(list)
        sizes: list[int] = []

        def put(number: int) -> None:
            obstore.put(bare, f"bare/{number}", stored[-1], mode="create", use_multipart=False)

        for number, call in enumerate(itertools.islice(drive.calls(capture), _CALLS)):
            change = Change(call["data_version"], None, call["writes"])
            request = drive.request(number, call["data_version"], call["writes"])

            def write(_: int, change: Change = change) -> None:
                writer.store_change(change)

            def ask(_: int, request: bytes = request) -> None:
                plugin.answer_time_s(request)

            ways: list[Callable[[int], None]] = [put, write, ask]
            for turn in range(len(ways)):
                act = ways[(number + turn) % len(ways)]
                started = time.perf_counter()
                act(number)
                times_s[act.__name__].append(time.perf_counter() - started)
                sizes.append(len(stored[-1]))
                writer.settle()  # a node does not wait for it
                del stored[:-1]
        plugin.close()
    p50 = {way: median(times[_WARM_UP:]) for way, times in times_s.items()}
    yield Row("s3: object of a change, median", f"{median(sizes):.0f} bytes")
    for way, label in (("put", "PUT alone"), ("write", "writer"), ("ask", "db_write, plugin")):
        yield Row(f"s3: {label}, p50", f"{p50[way] * 1e6:.0f} µs")
    for way, label in (("write", "writer"), ("ask", "plugin")):
        yield Row(f"s3: {label} / PUT", ratio(p50[way] / p50["put"]), "≤ 1.3×")


def _client(port: int) -> S3Store:
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id=KEY,
        secret_access_key=SECRET,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


@contextlib.contextmanager
def _noted() -> Iterator[list[bytes]]:
    """What this process stores in buckets, in order."""
    stored, put_new = [b"nothing yet"], ObjectStoreBucket.put_new

    def noting(self: ObjectStoreBucket, key: str, content: bytes) -> bool:
        stored.append(content)
        return put_new(self, key, content)

    ObjectStoreBucket.put_new = noting  # type: ignore[method-assign]
    try:
        yield stored
    finally:
        ObjectStoreBucket.put_new = put_new  # type: ignore[method-assign]


ALL = (s3_answer,)
