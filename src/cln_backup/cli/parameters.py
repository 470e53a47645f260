"""Checks on the arguments and options of all commands of `backup-cli`."""

from __future__ import annotations

import click


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
