"""The server's side of the extension, for clients of this project."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, ClassVar

from cln_backup.formats import digests
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, BadPacket, NotFound, WriterConflict
from cln_backup.server import intake
from cln_backup.server.answers import ServedAnswers
from cln_backup.server.standing import head_digest, standing_of
from cln_backup.server.streaming import send_changes
from cln_backup.storage import scratch
from cln_backup.wire import packets as wire
from cln_backup.wire.object_packets import ROLE
from cln_backup.wire.pieces import split_start_over
from cln_backup.wire.refusals import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cln_backup.backends.contract import Reader
    from cln_backup.server.answers import Handlers
    from cln_backup.server.connection import Connection
    from cln_backup.server.served import Served

MAX_WAIT_S = 60.0
"""The maximum duration of a WAIT."""

_AFTER_BELL_S = 0.02
"""Delay of a notification: the writer is answered first, and a payment's changes come together."""

_MAX_FIELDS_BYTES = 128
"""The longest packet that has only fixed fields."""


def refuse(connection: Connection, error: BackupError) -> None:
    """Sends the client an error."""
    if connection.node is not None:
        connection.node.counters.refusals += 1
    connection.channel.send(wire.REFUSED, wire.pack_refusal(refusal_of(error)))


class Extension(ServedAnswers):
    """Answers in the extension.

    A reader sees the backup as it was at its greeting, or at its last WAIT.
    """

    def __init__(self, connection: Connection, node: Served, hello: wire.Hello) -> None:
        super().__init__(connection, node)
        self._hello = hello
        self._reader: Reader | None = None
        self._seen: wire.Standing | None = None

    def greet(self) -> None:
        """Answers the greeting, according to the client's role. Raises the error of a refusal."""
        role = self._hello.role
        try:
            begin = self._roles.get(role)
            if begin is None:
                raise BadPacket("a greeting with an unknown role")
            standing = begin(self)
        except BackupError as error:
            refuse(self._connection, error)
            raise
        self._say(f"connected, to {role}; backup at version {standing.version}")
        self._acknowledge(standing)

    def _begin_to_write(self) -> wire.Standing:
        hello = self._hello
        return self.node.claim(self._connection, hello.session, resume=hello.resume)

    def _take_over(self) -> wire.Standing:
        self.node.take_over(self._hello.session)
        return self.node.standing()

    def _begin_to_read(self) -> wire.Standing:
        self._reader = self.node.open_reader()
        self._see_anew(self._reader)
        return self._seen_with_size()

    def _see_anew(self, reader: Reader) -> None:
        self._seen = standing_of(reader, head_digest(reader), 0)

    def _seen_with_size(self) -> wire.Standing:
        assert self._reader is not None
        assert self._seen is not None
        self._seen = self._seen._replace(size_bytes=self._reader.size_bytes)
        return self._seen

    def _begin_to_create(self) -> wire.Standing:
        try:
            return self.node.standing()
        except NotFound:
            return wire.Standing(0, 0, 0, features=wire.FEATURES)

    def _tell_that_it_is_plain(self) -> wire.Standing:
        return wire.Standing(0, 0, 0, features=wire.FEATURES)

    _roles: ClassVar[Mapping[str, Callable[[Extension], wire.Standing]]] = {
        "write": _begin_to_write,
        "takeover": _take_over,
        "read": _begin_to_read,
        "create": _begin_to_create,
        ROLE: _tell_that_it_is_plain,
    }

    def close(self) -> None:
        """See `Answers.close`."""
        if self._reader is not None:
            self._reader.close()

    def answer(self, packet_type: int, length_bytes: int) -> None:
        """See `Answers.answer`."""
        try:
            standing = self._handle(packet_type, length_bytes)
        except BadPacket:
            raise
        except BackupError as error:
            self._connection.say(logging.WARNING, f"refused: {error}")
            refuse(self._connection, error)
            if isinstance(error, WriterConflict):
                raise
            return
        if standing is not None:
            self._acknowledge(standing)

    def _acknowledge(self, standing: wire.Standing) -> None:
        proven_version, proven_at_ms = self.node.proof.so_far()
        standing = standing._replace(proven_version=proven_version, proven_at_ms=proven_at_ms)
        self._channel.send(wire.METADATA, wire.pack_standing(standing))

    def _append(self, length_bytes: int) -> wire.Standing:
        self.node.require_writer(self._connection)  # before memory and disk are allocated for it
        with intake.unpacked(
            self._channel, length_bytes, wire.unpack_append, self._scratch_dir
        ) as (version, transaction, digest):
            return self.node.append(self._connection, Change(version, None, transaction), digest)

    def _snapshot(self, length_bytes: int) -> wire.Standing:
        begin = self._fields(length_bytes)
        creates = self._hello.role == "create"
        if not creates:
            self.node.require_writer(self._connection)  # before the disk is filled
        with intake.snapshot(self._channel, begin, self._scratch_dir()) as received:
            version, spool, digest = received
            self._say(f"snapshot of {spool.size_bytes} bytes for version {version}")
            change = Change(version, spool, None)
            if creates:
                return self.node.create(self._connection, change, digest)
            return self.node.append(self._connection, change, digest)

    def _start_over(self, length_bytes: int) -> wire.Standing:
        begin, replaced = split_start_over(self._fields(length_bytes))
        self.node.require_writer(self._connection)  # before the disk is filled
        with intake.snapshot(self._channel, begin, self._scratch_dir()) as received:
            change = Change(received.version, received.spool, None)
            return self.node.start_over(self._connection, change, replaced)

    def _scratch_dir(self) -> str:
        try:
            return self.node.scratch_dir()
        except NotFound:  # it is being made
            return scratch.temporary()

    def _create(self, length_bytes: int) -> wire.Standing:
        self._channel.payload(length_bytes, 0)
        return self.node.create(self._connection, None, digests.NO_DIGEST)

    def _claim(self, length_bytes: int) -> wire.Standing:
        node_id = wire.unpack_claim(self._channel.payload(length_bytes, wire.MAX_NODE_ID_BYTES))
        return self.node.belong_to(self._connection, node_id)

    def _drop(self, length_bytes: int) -> wire.Standing:
        to_version, digest = wire.unpack_drop(self._fields(length_bytes))
        return self.node.drop(self._connection, to_version, digest)

    def _metadata(self, length_bytes: int) -> wire.Standing:
        self._channel.payload(length_bytes, 0)
        return self.node.standing() if self._reader is None else self._seen_with_size()

    def _wait(self, length_bytes: int) -> wire.Standing | None:
        limit_s = wire.unpack_wait(self._fields(length_bytes))
        reader = self._reader
        if reader is None:
            raise BadPacket("a WAIT, which only readers may send")
        until = time.monotonic() + min(limit_s, MAX_WAIT_S)
        with self.node.bells.bell() as bell:
            more = reader.wait_for_more(0)
            while not more and self._channel.wait_beside(bell, until - time.monotonic()):
                time.sleep(_AFTER_BELL_S)
                os.read(bell, 4096)
                more = reader.wait_for_more(0)
        if more:
            self._see_anew(reader)
        return self._seen

    def _stream(self, length_bytes: int) -> None:
        start = wire.unpack_stream_start(self._fields(length_bytes))
        with contextlib.ExitStack() as opened:
            reader = self._reader
            if reader is None:
                reader = opened.enter_context(self.node.open_reader())
            self._say(f"streaming from version {start.version}")
            send_changes(self._channel, reader, start, deflate=self._hello.deflate)

    def _fields(self, length_bytes: int) -> bytes:
        return self._channel.payload(length_bytes, _MAX_FIELDS_BYTES)

    handlers: ClassVar[Handlers] = {
        wire.APPEND: _append,
        wire.SNAPSHOT_BEGIN: _snapshot,
        wire.START_OVER: _start_over,
        wire.DROP: _drop,
        wire.STREAM: _stream,
        wire.REQ_METADATA: _metadata,
        wire.CREATE: _create,
        wire.CLAIM: _claim,
        wire.COMPACT: ServedAnswers.compact,
        wire.WAIT: _wait,
    }
