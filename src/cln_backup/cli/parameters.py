"""Checks on the arguments and options of all commands of `backup-cli`."""

from __future__ import annotations

import click

from cln_backup.backends import url_of
from cln_backup.node.settings import read_settings


class Command(click.Command):
    """A command that refuses an empty argument or option, as from an unset shell variable."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As in click, but checks for empty values first. Raises `click.UsageError`."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        for parameter in self.get_params(ctx):
            value = given.get(parameter.name or "")
            texts = value if isinstance(value, tuple | list) else (value,)
            if any(isinstance(text, str) and not text.strip() for text in texts):
                raise click.BadParameter(
                    "is empty. If it came from a shell variable, that variable is not set.",
                    ctx,
                    parameter,
                )
        return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


optional_url = click.argument(
    "url",
    metavar="[URL]",
    required=False,
    callback=lambda _context, _parameter, url: url and url_of(url),
)


def url_or(url: str | None, directory: str | None, option: str) -> str:
    """The URL, or that in the `backup.lock` of a network directory. Raises `BadSettings`."""
    if url is not None:
        return url
    if directory is None:
        raise click.UsageError(f"Name the backup: its URL, or {option} with the node's directory.")
    return read_settings(directory).backend_url
