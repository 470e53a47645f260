"""Examines a node and its backup: each look on its own, so that one that fails hides no other."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from cln_backup.backends import place_at
from cln_backup.backends.local_url import KEY_SOURCES
from cln_backup.model.errors import BadSettings, BadUrl, Damaged, NotFound, StorageError
from cln_backup.model.health import Finding, Level
from cln_backup.model.node_files import NETWORK, Wanted
from cln_backup.node.outside import find_database
from cln_backup.node.rollforward_marker import read_marker
from cln_backup.node.settings import State, read_settings, read_state, write_state
from cln_backup.node.small_files import HSM_SECRET
from cln_backup.operations.doctor import (
    clock,
    destination,
    keys,
    leftovers,
    node,
    place,
    processes,
    proofs,
    releases,
    rights,
    room,
    small_files,
)
from cln_backup.operations.doctor.looking import looked
from cln_backup.operations.node_state import node_state
from cln_backup.replay.replica import node_id_of
from cln_backup.storage import ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cln_backup.backends.inventory import Inventory
    from cln_backup.backends.place import Place
    from cln_backup.backends.secrets import Secret

_KEY_OPTIONS: Final = {*KEY_SOURCES} - {"hsm-secret"}
_ACCESS_OPTIONS: Final = ("token-file", "credentials-file", "passfile", "sslkey")


class Examined(NamedTuple):
    """The result.

    Attributes:
        url: of the backup; `None` if `backup.lock` does not tell it.
        findings: all of them.
        state: the fields of `backup-status`, as far as they are known; empty without a node.
        runs: whether the node has told them.
    """

    url: str | None
    findings: list[Finding]
    state: dict[str, Any]
    runs: bool


def remember_copy_of_hsm_secret(directory: str) -> None:
    """Records that the operator has copied `hsm_secret`. Raises `BadSettings`, `StorageError`."""
    with ownership.of_node(directory):
        write_state(directory, read_state(directory)._replace(hsm_secret_copied_at=time.time()))


def examine(
    directory: str | None, url: str | None, program: str, *, secret: Secret | None = None
) -> Examined:
    """Examines a node in its network directory, or only a backup at a URL; changes nothing.

    Args:
        directory: `None` for a backup without its node.
        url: of the backup; `None` for the one in `backup.lock`.
        program: path of the installed plugin.
        secret: that unlocks the backup.
    """
    return _Examination(directory, url, program, secret).run()


class _Examination:
    """The results of each look, for those after it; `None` or empty if it failed."""

    def __init__(
        self, directory: str | None, url: str | None, program: str, secret: Secret | None
    ) -> None:
        self._directory, self._url, self._program = directory, url, program
        self._secret = secret
        self._now = time.time()
        self._database: str | None = None
        self._node = node.Node()
        self._kept = State()
        self._wanted = Wanted()
        self._inventory: Inventory | None = None
        self._opened: destination.Destination | None = None
        self._place: Place | None = None
        self._state: dict[str, Any] = {}
        self._found: list[Finding] = []

    def run(self) -> Examined:
        """Takes all looks, in the order in which one needs another."""
        if self._directory is not None:
            self._look(f"backup.lock in {self._directory}", self._settings)
            self._look(f"backup.state in {self._directory}", self._kept_state)
            self._look(f"the node of {self._directory}", self._of_node)
            if self._node.status is not None:
                self._look("the plugin's processes", self._of_processes)
        if self._url is not None:
            self._look("the backup", self._of_backup)
            self._look("the place of the backup", self._of_place)
            self._look("the keys of the backup", self._of_keys)
        self._look("the room on the disks", self._of_room)
        if self._directory is not None:
            self._look("hsm_secret", self._of_hsm_secret)
            self._look("the node's small files", self._of_small_files)
            self._look("owners and rights", self._of_rights)
            self._look("the proofs of the backup", self._of_proofs)
        self._look("kept files", self._of_leftovers)
        self._look("the releases", self._of_releases)
        self._look("the clock", self._of_clock)
        return Examined(self._url, self._found, self._state, bool(self._status))

    def _look(self, at: str, look: Callable[[], Iterable[Finding]]) -> None:
        self._found += looked(at, look)

    @property
    def _status(self) -> dict[str, Any]:
        return self._node.status or {}

    @property
    def _storage_dir(self) -> str | None:
        return None if self._place is None else self._place.storage_dir

    def _settings(self) -> Iterator[Finding]:
        assert self._directory is not None
        try:
            settings = read_settings(self._directory)
        except (BadSettings, NotFound) as error:
            remedy = "Make a backup with `backup-cli init`, or correct the file."
            yield Finding("no-settings", Level.BAD, str(error), remedy)
            return
        self._url = self._url or settings.backend_url
        self._wanted = settings.files
        try:
            self._database = find_database(self._directory, settings.wallet)
        except (BadSettings, NotFound) as error:
            remedy = "Correct `wallet` in backup.lock, or run the doctor as the node's user."
            yield Finding("no-database", Level.BAD, str(error), remedy)

    def _kept_state(self) -> Iterator[Finding]:
        assert self._directory is not None
        self._kept = read_state(self._directory)
        self._state = node_state(self._directory).fields()
        known = node_state(self._directory)
        self._state |= {"proven_version": known.proven_version, "proven_at": known.proven_at}
        yield from ()

    def _of_node(self) -> Iterator[Finding]:
        assert self._directory is not None
        self._node = node.gather(self._directory, self._database, self._program)
        self._state |= self._status
        yield from node.judge(self._node)

    def _of_processes(self) -> Iterator[Finding]:
        assert self._directory is not None
        return processes.judge(processes.gather(self._directory))

    def _of_backup(self) -> Iterator[Finding]:
        assert self._url is not None
        self._place = place_at(self._url)
        owner = self._node.info.get("id")
        if owner is None and self._database is not None:
            owner = node_id_of(self._database)
        with suppress(BadUrl, Damaged, NotFound, StorageError):  # `destination` says it
            self._inventory = self._place.usage()
        runs = self._node.runs
        self._opened = destination.gather(self._place, self._secret, owner, runs=runs)
        return destination.judge(self._opened)

    def _of_place(self) -> Iterator[Finding]:
        if self._storage_dir is None:
            return iter(())
        encrypted = self._inventory is not None and self._inventory.cipher is not None
        of_node = self._database or self._directory
        replica = self._kept.replica_dir
        found = place.gather(self._storage_dir, of_node, replica, encrypted=encrypted)
        return place.judge(found)

    def _of_keys(self) -> Iterator[Finding]:
        if self._place is None or not self._place.can_encrypt:
            return iter(())
        slots = tuple(self._place.keys()) if self._opened_or_locked() else ()
        url, file = self._place.url, None
        for path in _paths_in(url, _KEY_OPTIONS):
            file = keys.key_file(path, self._storage_dir, self._directory)
        readable = tuple(filter(keys.is_readable, _paths_in(url, _ACCESS_OPTIONS)))
        return keys.judge_keys(keys.Keys(slots, self._storage_dir is None, file, readable))

    def _opened_or_locked(self) -> bool:
        opened = self._opened
        return opened is not None and (opened.status is not None or opened.locked)

    def _of_room(self) -> Iterator[Finding]:
        found = room.gather(
            self._storage_dir,
            self._directory,
            self._database,
            bound_bytes=self._status.get("space_bound_bytes"),
            used_bytes=None if self._inventory is None else self._inventory.space_bytes,
        )
        return room.judge(found)

    def _of_hsm_secret(self) -> Iterator[Finding]:
        assert self._directory is not None
        copied_at = self._kept.hsm_secret_copied_at
        unlocked_by = () if self._inventory is None else self._inventory.keys
        in_backup = (
            self._wanted.hsm_secret
            and f"{NETWORK}/{HSM_SECRET}" in self._kept_files()
            and any(key.kind == "passphrase" for key in unlocked_by)
        )
        found = keys.hsm_secret(self._directory, self._database, copied_at, in_backup=in_backup)
        return keys.judge_hsm_secret(found)

    def _kept_files(self) -> tuple[str, ...]:
        return () if self._opened is None else self._opened.files or ()

    def _of_small_files(self) -> Iterator[Finding]:
        if self._opened is None or self._opened.status is None:
            return iter(())
        encrypted = self._inventory is not None and self._inventory.cipher is not None
        wanted = self._wanted.in_backup(is_encrypted=encrypted)
        trouble = self._status.get("node_files_trouble")
        has_some, damaged = bool(self._kept_files()), self._opened.files_damaged
        found = small_files.SmallFiles(wanted, has_some, trouble, damaged)
        return small_files.judge(found)

    def _of_rights(self) -> Iterator[Finding]:
        assert self._directory is not None
        name = ""
        if self._storage_dir is not None and self._url is not None:
            scheme, _, rest = self._url.partition(":")
            name = os.path.basename(os.path.realpath(rest)) if scheme == "file" else ""
        return rights.judge(rights.gather(self._directory, self._storage_dir, name))

    def _of_proofs(self) -> Iterator[Finding]:
        assert self._directory is not None
        status, opened = self._status, None if self._opened is None else self._opened.status
        point = self._kept.restore_point
        compacts = None
        if status and self._storage_dir is not None:
            compacts = status.get("space_bound_bytes") is not None
        return proofs.judge(
            proofs.Proofs(
                self._now,
                runs=bool(status),
                proven_version=self._state.get("proven_version"),
                proven_at=self._state.get("proven_at"),
                version=None if opened is None else opened.version,
                checked_at=status.get("replica_checked_at"),
                drilled_at=self._kept.drilled_at,
                next_compaction=status.get("next_compaction"),
                compacting=bool(status.get("compacting")),
                compacts=compacts,
                migration=None if point is None else point.version,
                rolls_forward=read_marker(self._directory) is not None,
            )
        )

    def _of_leftovers(self) -> Iterator[Finding]:
        places = dict.fromkeys(filter(None, (self._directory, self._storage_dir)))
        return leftovers.judge(leftovers.gather(places, self._now))

    def _of_releases(self) -> Iterator[Finding]:
        running, lightningd = self._status.get("release"), self._node.info.get("version")
        return releases.judge(releases.gather(running, lightningd))

    def _of_clock(self) -> Iterator[Finding]:
        opened = None if self._opened is None else self._opened.status
        noted = {
            "the last change": None if opened is None else opened.last_change_at,
            "the last proof": self._state.get("proven_at"),
            "the last drill": self._kept.drilled_at,
        }
        return clock.judge(clock.gather(self._now, noted))


def _paths_in(url: str, options: Iterable[str]) -> list[str]:
    """The paths that a URL names with these options."""
    pairs = (pair.partition("=") for pair in url.partition("?")[2].split("&"))
    return [unquote(value) for name, _, value in pairs if name in options]
