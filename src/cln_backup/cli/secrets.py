"""The commands and options of `backup-cli` that deal with secrets: unlocking, keys, copies."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

import click

from cln_backup.backends import place_at, redacted, url_of
from cln_backup.cli.parameters import with_url, with_url_as
from cln_backup.cli.presentation import changes, progress, tell, warn, when
from cln_backup.model.errors import BackupError, BadSettings, Interrupted, Locked
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cln_backup.operations.keyring import Secret

Fields = dict[str, Any]


class Command(Protocol):
    """The decorator that makes a command of a group, or of the program itself."""

    def __call__(
        self, example: str, group: click.Group | None = None
    ) -> Callable[[Callable[..., Fields]], click.Command]:
        """Takes the examples for the help."""


_file = click.Path(exists=True, dir_okay=False)
_SOURCES = ("key_file", "hsm_secret", "passphrase_file")


def with_secrets(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that unlock an encrypted backup."""
    for name, what in (
        ("passphrase-file", "a passphrase, in the first line of a file"),
        ("hsm-secret", "the node's hsm_secret; asks for its passphrase if it has one"),
        ("key-file", "a key file"),
    ):
        option = click.option(f"--{name}", type=_file, help=f"Unlock with {what}.")
        command = option(command)
    words = click.option(
        "--words", is_flag=True, help="Unlock with the words on paper; asks for them."
    )
    passphrase = click.option(
        "--passphrase", is_flag=True, help="Unlock with a passphrase; asks for it."
    )
    return words(passphrase(command))


def _ask(what: str, *, twice: bool = False, **options: Any) -> str:  # noqa: ANN401 - click's own
    """Reads a secret from the terminal, without showing it; without a terminal, a line of input.

    Raises:
        Locked: the input ended.
    """
    if not _has_terminal():
        return _line_of_input(what)
    try:
        with interruption.at_once():
            return str(
                click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True, **options)
            )
    except Interrupted:
        click.echo(err=True)  # the cursor is after the question
        raise
    except click.Abort:
        raise _nobody(what) from None


def ask_passphrase(what: str) -> str:
    """Asks for a passphrase, as the options that unlock do. Raises `Locked`."""
    return _ask(what)


def confirm(question: str, option: str) -> bool:
    """Asks the operator on the terminal for a whole yes.

    Raises:
        BadSettings: there is no terminal; the option is the answer then.
    """
    if not sys.stdin.isatty():
        raise BadSettings(
            f"Cannot ask: there is no terminal. Nothing was changed. If the answer is yes, add "
            f"{option}. The question is: {question}"
        )
    with interruption.at_once():
        try:
            answer = click.prompt(question, prompt_suffix=" ", err=True)
        except click.Abort:
            return False
    return str(answer).strip().lower() == "yes"


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return sys.stdin.isatty()
    return True


def _line_of_input(what: str) -> str:
    try:
        line = sys.stdin.readline()
    except (OSError, UnicodeDecodeError):
        line = ""
    if not line:
        raise _nobody(what)
    return line.rstrip("\r\n")


def _nobody(what: str) -> Locked:
    return Locked(
        f"Cannot ask for this: {what}. There is no terminal, or the input ended. In a script, "
        "name a file: --key-file, --hsm-secret or --passphrase-file."
    )


def secret_of(options: dict[str, Any], *, new: bool = False) -> Secret | None:
    """Removes these options from the others, and returns the secret that they name.

    With `new`, a typed secret is for a new backup, and is asked for twice.

    Raises:
        Locked, StorageError: there is no such secret.
    """
    paths = {name: options.pop(name) for name in _SOURCES}
    asked = {name: options.pop(name) for name in ("passphrase", "words")}
    given = [name for name, value in (paths | asked).items() if value]
    if len(given) > 1:
        raise click.UsageError("Give one secret that unlocks the backup, not several.")
    if not given:
        return None
    from cln_backup.operations import keyring

    if asked["passphrase"]:
        return keyring.passphrase_secret(_ask("Passphrase", twice=new))
    if asked["words"]:
        words = _ask("Words of the node's secret", twice=new)
        keyring.check_words(words)  # before the passphrase is asked for
        text = _ask(
            "Passphrase of the words (empty if none)", twice=new, default="", show_default=False
        )
        return keyring.secret_of_words(words, text)
    name = given[0]
    source = (name.replace("_", "-"), paths[name])
    try:
        return keyring.secret_from(source)
    except Locked:
        if name != "hsm_secret" or not keyring.needs_passphrase(paths[name]):
            raise
        return keyring.secret_from(source, _ask("Passphrase of hsm_secret"))


def _labels(context: click.Context, _parameter: click.Parameter, incomplete: str) -> Sequence[str]:
    """The labels of the key slots of a backup on this machine, for a shell."""
    from cln_backup.operations import keyring

    url = context.params.get("url")
    if not url or place_at(url_of(url)).storage_dir is None:
        return ()
    with contextlib.suppress(BackupError):
        labels = [key.label for key in keyring.list_keys(url_of(url))]
        return [label for label in labels if label.startswith(incomplete)]
    return ()


def register(cli: click.Group, command: Command) -> None:
    """Adds these commands to the others; `command` is the decorator that makes one."""

    @command("backup-cli copy file:///mnt/old/node.bkp dir:///mnt/new/node")
    @with_url_as("source", "[FROM]")
    @click.argument("target", metavar="TO")
    def copy(source: str, target: str, *, as_json: bool, secret: Secret | None) -> Fields:
        """Copy a backup to a new place, in the format of that place, and compare the two.

        The node must be stopped if it writes to FROM. To continue with the copy, name it in
        backup.lock. These options, or the URL, unlock FROM; the options in the URL of TO say
        whether it is encrypted, and which secret unlocks it.
        """
        from cln_backup.operations import keyring
        from cln_backup.operations.copy import copy as copy_backup

        bar = functools.partial(progress, as_json=as_json, passes=2)
        done = copy_backup(source, url_of(target), bar, secret=secret, on_event=tell)
        if keyring.is_encrypted(source) and not keyring.is_encrypted(url_of(target)):
            warn(
                "The copy is not encrypted: anyone who can read it can read the node's database. "
                "For an encrypted copy, name a key in its URL: dir:///the/copy?key-file=PATH"
            )
        if not done.keeps_time:
            warn(
                "The copy does not have the time of its last change: the server stored the time of "
                "the copy instead. If the node's machine lost power since that change, start the "
                "node on the original backup first, before you continue with the copy."
            )
        if done.has_node_files is False:
            warn(
                "The node's small files (config, certificates, …) are in the original backup and "
                "not in the copy: they are damaged, or the copy is not encrypted or of another "
                "format. With the copy in backup.lock, the node keeps them again if it can."
            )
        if not as_json:
            click.echo(
                f"Copied {changes(done.version_count)} up to data version {done.version} to "
                f"{redacted(url_of(target))}. The copy was read back and is identical."
            )
        return done._asdict()

    @cli.group(
        epilog="\b\nExamples:\n"
        "  backup-cli key list /mnt/backup/node\n"
        "  backup-cli key remove /mnt/backup/node passphrase"
    )
    def key() -> None:
        """Manage the key slots of an encrypted backup."""

    @command("backup-cli key list /mnt/backup/node", key)
    @with_url
    def list(url: str, *, as_json: bool, **_secret: object) -> Fields:  # noqa: A001
        """List the key slots of a backup."""
        from cln_backup.operations import keyring

        keys = keyring.list_keys(url)
        if not as_json:
            width = max((len(found.label) for found in keys), default=0)
            for found in keys:
                click.echo(f"{found.label:<{width}}  {found.kind:<10}  {when(found.created_at)}")
            if not keys:
                click.echo("The backup is not encrypted, so it has no key slots.")
        return {"keys": [found._asdict() for found in keys]}

    @command(
        "backup-cli key add --key-file ~/.lightning/bitcoin/backup.key "
        "--new-passphrase /mnt/backup/node",
        key,
    )
    @click.option(
        "--new-key-file",
        type=click.Path(dir_okay=False),
        help="A key file; made if it does not exist.",
    )
    @click.option("--new-hsm-secret", type=_file, help="The node's hsm_secret, in any form.")
    @click.option("--new-passphrase-file", type=_file, help="A passphrase, in a file.")
    @click.option("--new-passphrase", is_flag=True, help="A passphrase; asks for it.")
    @click.option("--name", help="Name of the key slot.")
    @with_url
    def add(
        url: str,
        name: str | None,
        *,
        as_json: bool,
        secret: Secret | None,
        **options: Any,  # noqa: ANN401
    ) -> Fields:
        """Add a key slot, for another secret. Needs a secret that unlocks the backup now."""
        from cln_backup.operations import keyring

        new = {name.removeprefix("new_"): value for name, value in options.items()}
        path = options["new_key_file"]
        with keyring.key_file(path) if path else interruption.deferred():
            added = secret_of(new | {"words": False}, new=True)
            if added is None:
                raise click.UsageError("Give the secret to add.")
            label = keyring.add_key(url, added, name, secret=secret)
            interruption.finished()
        if not as_json:
            click.echo(f"Added {label}.")
        return {"added": label}

    @command("backup-cli key remove /mnt/backup/node passphrase", key)
    @with_url
    @click.argument("name", shell_complete=_labels)
    def remove(url: str, name: str, *, as_json: bool, **_secret: object) -> Fields:
        """Remove a key slot, so that its secret no longer unlocks the backup.

        The secret still unlocks older copies of the backup, and the master key in them decrypts
        later changes too: to revoke that access, copy the backup to a new place.
        """
        from cln_backup.operations import keyring

        keyring.remove_key(url, name)
        if not as_json:
            click.echo(f"Removed {name}.")
        return {"removed": name}
