"""The work of the child processes of these tests: `python -m tests.process.work`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time

from cln_backup.model.errors import BackupError, Damaged
from cln_backup.process.channel import Message
from cln_backup.process.parent import Parent, serve


class Start(Message):
    """The work to do, and a secret word."""

    work: str
    secret: str = ""
    path: str = ""


class Ask(Message):
    data: bytes


class Answer(Message):
    data: bytes


def _echo(_start: Start, parent: Parent[Ask]) -> None:
    while (asked := parent.next()) is not None:
        parent.say(Answer(asked.data))


def _wait(start: Start, parent: Parent[Ask]) -> None:
    """Says that it has begun, waits for its end, and leaves a trace of having cleared up."""
    try:
        parent.say(Answer(b"begun"))
        time.sleep(600)
    finally:
        os.mkdir(start.path)


def _work_on(start: Start, parent: Parent[Ask]) -> None:
    """Ends by itself, some time after the parent stops listening."""
    parent.say(Answer(b"begun"))
    while parent.next() is not None:
        pass
    time.sleep(0.1)
    os.mkdir(start.path)


def _say_much(_start: Start, parent: Parent[Ask]) -> None:
    while True:
        parent.say(Answer(bytes(300_000)))


def _tell(start: Start, parent: Parent[Ask]) -> None:
    """Tells what others can see of this process."""
    with contextlib.suppress(FileNotFoundError):
        for name in ("cmdline", "environ"):
            with open(f"/proc/self/{name}", "rb") as file:
                assert start.secret.encode() not in file.read()
    print("this must not reach the parent", flush=True)
    assert sys.stdin.read() == ""
    seen = (os.getsid(0) == os.getpid(), os.getpriority(os.PRIO_PROCESS, 0))
    parent.say(Answer(repr((*seen, start.secret)).encode()))


def _log(_start: Start, _parent: Parent[Ask]) -> None:
    logging.getLogger("cln_backup.elsewhere").warning("50 %% of %s", "it")
    logging.getLogger("another.library").error("not ours")


def _fail(start: Start, _parent: Parent[Ask]) -> None:
    kinds: dict[str, Exception] = {
        "damaged": Damaged("what happened", offset_bytes=7, good_version=3),
        "memory": MemoryError(),
        "import": ImportError("no module"),
        "system": OSError(errno.EIO, "what the system says"),
        "fault": KeyError(start.secret),
    }
    raise kinds[start.work]


def _surprise(_start: Start, parent: Parent[Ask]) -> None:
    parent.check()
    raise BackupError("first")


_WORKS = {
    "echo": _echo,
    "wait": _wait,
    "work on": _work_on,
    "say much": _say_much,
    "tell": _tell,
    "log": _log,
    "surprise": _surprise,
}

if __name__ == "__main__":
    serve(lambda start, parent: _WORKS.get(start.work, _fail)(start, parent), Start, Ask)
