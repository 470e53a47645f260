"""Damages a backup in ways that cuts and disks do not, and sees what the reader makes of it.

`python -m tests.format2.fuzz SECONDS [SEED]` searches for longer than the checks do. The reader may
say that the backup is damaged, or tell a beginning of what was stored; it must not crash, tell
anything else, or take memory without limit.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cln_backup.backends.dir import log as dir_log
from cln_backup.backends.dir import store as dir_store
from cln_backup.formats import seals, v2
from cln_backup.model.errors import BackupError
from tests.format2.small import KINDS, make_every_kind_of_file, read_all, url_of
from tests.histories import started_node, told

if TYPE_CHECKING:
    from tests.histories import Told


class Fuzzer:
    """One backup, damaged again and again from what it was."""

    def __init__(self, kind: str, directory: Path, seed: int) -> None:
        self.url = url_of(kind, directory)
        self._plain = kind == "plain"
        self._node = directory / "node"
        make_every_kind_of_file(self.url)
        other = directory / "other"
        other.mkdir()
        make_every_kind_of_file(url_of(kind, other))
        self._forged = False
        self._files = {
            path.name: path.read_bytes()
            for path in self._node.iterdir()
            if path.name.startswith(("log-", "base-", "snapshot-", "key-"))
        }
        self._others = [p.read_bytes() for p in (other / "node").iterdir()]
        self._choices = random.Random(seed)
        self.told: list[Told] = read_all(self.url)[0]
        self._before = [self.told[0], *told(started_node())]

    def once(self) -> None:
        """Damages the backup in one way, reads it, and puts it back."""
        files = dict(self._files)
        self._forged = False
        for _ in range(self._choices.choice((1, 1, 1, 2, 5))):
            name = self._choices.choice(sorted(files) or sorted(self._files))
            damaged = self._damaged(files.pop(name, self._files[name]))
            if damaged is not None:
                files[self._choice_of_name(name)] = damaged
        for path in self._node.iterdir():
            path.unlink()
        for name, content in files.items():
            (self._node / name).write_bytes(content)
        try:
            found, _ = read_all(self.url)
        except BackupError:
            return
        # Without a key anybody can write another history; then only the reader's health counts.
        # Without its newest segment a backup is what it was before, with a head not yet dropped.
        assert self._forged or found in (self.told[: len(found)], self._before[: len(found)])

    def _choice_of_name(self, name: str) -> str:
        if self._choices.random() < 0.95:
            return name
        return self._choices.choice(sorted(self._files))

    def _damaged(self, content: bytes) -> bytes | None:
        choices = self._choices
        data = bytearray(content)
        at = choices.randrange(len(data) + 1)
        end = min(len(data), at + choices.choice((1, 4, 16, 100, 512)))
        what = choices.randrange(9)
        if what == 0:
            data[at:end] = choices.randbytes(end - at)
        elif what == 1:
            data[at:end] = bytes(end - at)
        elif what == 2:
            del data[at:end]
        elif what == 3:
            data[at:at] = data[at:end]
        elif what == 4:
            del data[at:]
        elif what == 5:
            return choices.choice([*self._others, *self._files.values()])
        elif what == 6:
            return None
        elif what == 7:
            data += choices.randbytes(end - at)
        elif self._plain:
            data = self._resealed(data)
        elif at < len(data):
            data[at] ^= 1 << choices.randrange(8)
        return bytes(data)

    def _resealed(self, data: bytearray) -> bytearray:
        """A record of nonsense with a valid seal, in place of the first record."""
        self._forged = True
        header = bytes(data[: v2.HEADER_BYTES])
        body = v2.pack_body(self._choices.choice(list(v2.Type)), self._choices.randrange(12))
        body += self._choices.randbytes(self._choices.choice((0, 3, 4, 40, 300)))
        if self._choices.random() < 0.5:
            body = body[:9] + b"\x3f\xff\xff\xff\x28\xb5\x2f\xfd" + body[9:]
        head = v2.pack_head(len(body))
        sealed = seals.DigestSealer().seal(1, header[-v2.SEAL_BYTES :] + head, body)
        record = head + sealed + v2.pack_foot(len(body))
        return bytearray(header + record + bytes(data[v2.HEADER_BYTES + len(record) :]))


def run(kind: str, rounds: int, seed: int, until: float | None = None) -> int:
    """Fuzzes for so many rounds, or until a moment of the monotonic clock; returns the rounds."""
    directory = Path(tempfile.mkdtemp(prefix="cln-backup-fuzz-"))
    settled, first = dir_log._SETTLE_TRIES, dir_store.FIRST_SEGMENT_BYTES
    dir_log._SETTLE_TRIES = 0  # type: ignore[misc]
    dir_store.FIRST_SEGMENT_BYTES = 2048  # type: ignore[misc]
    done = 0
    try:
        fuzzer = Fuzzer(kind, directory, seed)
        while done < rounds and (until is None or time.monotonic() < until):
            fuzzer.once()
            done += 1
    finally:
        dir_log._SETTLE_TRIES = settled  # type: ignore[misc]
        dir_store.FIRST_SEGMENT_BYTES = first  # type: ignore[misc]
        shutil.rmtree(directory)
    return done


def main() -> None:
    """Fuzzes both kinds of backup for the seconds given."""
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    for kind in KINDS:
        until = time.monotonic() + seconds / len(KINDS)
        done = run(kind, 1 << 60, seed, until)
        sys.stdout.write(f"{kind}: {done} rounds with seed {seed}, nothing found\n")


if __name__ == "__main__":
    main()
