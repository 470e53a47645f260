"""A conversation with one client: authentication, choice of the protocol, requests."""

from __future__ import annotations

import logging
from hmac import compare_digest
from typing import TYPE_CHECKING

from cln_backup.model.errors import AccessDenied, BackupError, BadPacket, Locked
from cln_backup.server.extension import Extension, refuse
from cln_backup.server.object_answers import ObjectAnswers
from cln_backup.server.protocol1 import Protocol1
from cln_backup.server.sealed import Sealed
from cln_backup.server.served import Served
from cln_backup.wire import packets as wire
from cln_backup.wire.credentials import token_hash
from cln_backup.wire.object_packets import ROLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cln_backup.server.answers import Answers
    from cln_backup.server.connection import Connection
    from cln_backup.server.node import Node

_log = logging.getLogger("cln_backup.server")

GREETING_S = 10.0
"""How long a client may take to send its greeting."""

IDLE_S = 300.0
"""How long a client that is not the writer may be idle. A writer may be idle for days."""


def converse(connection: Connection, nodes: Mapping[str, Node]) -> None:
    """Serves a client until it closes the connection or breaks a rule. Raises nothing."""
    answers: Answers | None = None
    try:
        answers = _greeted(connection, nodes)
        if answers is not None:
            _serve(connection, answers)
            connection.ended()
    except BadPacket as error:
        connection.say(logging.WARNING, f"closed: the client sent {error}")
    except BackupError as error:
        connection.say(logging.WARNING, f"closed: {error}")
    except OSError as error:
        connection.say(logging.INFO, f"connection lost: {error}")
    except Exception:  # noqa: BLE001 - one connection's fault must touch no other
        _log.exception(
            "%s: closed because of a bug in cln-backup; please report it", connection.peer
        )
    finally:
        if answers is not None:
            answers.close()
        connection.close()


def _serve(connection: Connection, answers: Answers) -> None:
    node = answers.node
    while True:
        idle_s = None if node.is_writer(connection) else IDLE_S
        found = connection.channel.head(idle_s)
        if found is None:
            return
        answers.answer(*found)


def _greeted(connection: Connection, nodes: Mapping[str, Node]) -> Answers | None:
    """Admits the client and answers its first request; `None` if it closed without any."""
    channel = connection.channel
    channel.limit(GREETING_S)
    found = channel.head(GREETING_S)
    if found is None:
        return None
    if found[0] == wire.METADATA:
        return _greet_extended(connection, nodes, found[1])
    node = _admit(connection, nodes, wire.Hello("write"))
    if not isinstance(node, Served):
        raise BadPacket("protocol 1, which cannot be used for a sealed backup")
    plain = Protocol1(connection, node)
    plain.answer(*found)
    return plain


def _greet_extended(
    connection: Connection, nodes: Mapping[str, Node], length_bytes: int
) -> Answers:
    channel = connection.channel
    hello = wire.unpack_hello(channel.payload(length_bytes, wire.MAX_HELLO_BYTES))
    if channel.head(GREETING_S) != (wire.REQ_METADATA, 0):
        raise BadPacket("a packet other than REQ_METADATA after its greeting")
    try:
        node = _admit(connection, nodes, hello)
    except BackupError as error:
        refuse(connection, error)
        raise
    answers = _answers(connection, node, hello)
    try:
        answers.greet()
    except BaseException:
        answers.close()
        raise
    return answers


def _answers(connection: Connection, node: Node, hello: wire.Hello) -> Extension | ObjectAnswers:
    """The answers that the client gets from now on. Raises the error of a refusal, once sent."""
    if isinstance(node, Sealed) and hello.role == ROLE:
        return ObjectAnswers(connection, node)
    if isinstance(node, Served):
        return Extension(connection, node, hello)
    error = Locked(
        "This node's backup on the server is sealed: only its objects are there, which the server "
        "cannot read. Nothing was stored. Name its key in the URL (key-file=PATH) or give the "
        "words; `backup-cli init --encrypt` makes a new one."
    )
    refuse(connection, error)
    raise error


def _admit(connection: Connection, nodes: Mapping[str, Node], hello: wire.Hello) -> Node:
    """Finds the client's node, and refuses the client without the right token."""
    node = nodes.get(hello.node)
    if not hello.node and len(nodes) == 1:
        (node,) = nodes.values()
    shown = token_hash(hello.token)
    wanted = node.token_hash if node is not None else None
    # An unknown name takes the same time and gets the same answer as a wrong token.
    right = compare_digest(shown, wanted if wanted is not None else "-" * 64)
    if node is None or (wanted is not None and not right):
        raise AccessDenied(
            "Unknown node or wrong token. Nothing was stored. Compare node and token-file in the "
            "URL with the server's list of nodes."
        )
    connection.admit(node, hello.who)
    return node
