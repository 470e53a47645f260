"""The help of `backup-cli`: its commands by what they are for, and the command `help`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from cln_backup.cli.parameters import Command, Group

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_SECTIONS: Final = (
    ("Protect a node", ("init", "status", "doctor", "log", "verify", "drill", "compact", "copy")),
    ("Get a node back", ("restore", "rollforward", "snapshot", "undo-migration")),
    ("Keys", ("key",)),
    ("Other machines", ("server", "token", "standby", "takeover")),
    ("Help", ("help", "schema")),
)
_OTHERS: Final = "More"
_NAME_COLUMNS: Final = max(len(name) for _, names in _SECTIONS for name in names)


class Program(Group):
    """The commands, listed in sections."""

    def sections(self, ctx: click.Context) -> list[tuple[str, list[str]]]:
        """The titles of the sections, and the names of their commands."""
        known = self.list_commands(ctx)
        named = [name for _, names in _SECTIONS for name in names]
        others = (_OTHERS, tuple(name for name in known if name not in named))
        found = (
            (title, [name for name in names if name in known])
            for title, names in (*_SECTIONS, others)
        )
        return [(title, names) for title, names in found if names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As in click, in sections and with whole sentences."""
        for title, names in self.sections(ctx):
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:<{_NAME_COLUMNS}}", self._said(name)) for name in names]
                )

    def _said(self, name: str) -> str:
        return self.commands[name].get_short_help_str(limit=200)


class _CommandName(click.Argument):
    """The name of a command, in parts."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands of the program, or of the group named before."""
        found = ctx.find_root().command
        for name in ctx.params.get(self.name or "") or ():
            inner = found.get_command(ctx, name) if isinstance(found, click.Group) else None
            found = inner or found
        if not isinstance(found, click.Group):
            return []
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=command.get_short_help_str())
            for name in found.list_commands(ctx)
            if name.startswith(incomplete) and (command := found.get_command(ctx, name)) is not None
        ]


def named(ctx: click.Context, names: tuple[str, ...]) -> click.Context:
    """The context of the command with these names, such as `("key", "list")`.

    Raises:
        click.UsageError: there is none.
    """
    found = ctx.find_root()
    for name in names:
        if not isinstance(found.command, click.Group):
            raise click.UsageError(f"{found.command_path} has no commands of its own.", found)
        _, command, _ = found.command.resolve_command(found, [name])
        assert command is not None
        found = click.Context(command, info_name=name, parent=found)
    return found


def command_name(name: str, *, required: bool = False) -> click.Argument:
    """An argument that names a command, in parts."""
    return _CommandName([name], metavar="[COMMAND]...", nargs=-1, required=required)


@click.command(
    "help",
    cls=Command,
    params=[command_name("names")],
    epilog="\b\nExamples:\n  backup-cli help restore\n  backup-cli help key add",
)
@click.pass_context
def help_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of the program, or of a command."""
    click.echo(named(ctx, names).get_help())


@click.command(
    "schema",
    cls=Command,
    params=[command_name("names", required=True)],
    epilog="\b\nExamples:\n  backup-cli schema status\n  backup-cli schema key list",
)
@click.pass_context
def schema_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the JSON Schema of the objects that a command prints with --json."""
    from cln_backup.cli.schema import ANSWERS, schema_of

    named(ctx, names)
    command = " ".join(names)
    if command not in ANSWERS:
        raise click.UsageError(f"backup-cli {command} does not have --json.", ctx)
    click.echo(json.dumps(schema_of(command), indent=2))
