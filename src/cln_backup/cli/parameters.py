"""Arguments and options that commands of `backup-cli` share, and the checks on them."""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any, Final

import click

from cln_backup.backends import url_of
from cln_backup.cli.presentation import warn
from cln_backup.node.here import nodes_here
from cln_backup.node.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

    from cln_backup.cli.presentation import Fields

_SHARED: Final = " words passphrase key_file hsm_secret passphrase_file as_json "
"""The names of options that many commands have, as the help lists them after a command's own."""

_LEFT_OUT: Final = "cln_backup.url_left_out"
_DIRECTORY_HELP: Final = (
    "The network directory of the node whose backup it is, if URL is left out. Not needed for the "
    "only node on this machine."
)


class UrlArgument(click.Argument):
    """The URL of a backup, before other arguments; it may be left out."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:  # noqa: ANN401 - click's own
        """As in click; not if the arguments given are those after it."""
        if not ctx.meta.get(_LEFT_OUT):
            super().add_to_parser(parser, ctx)


class _Place(click.types.StringParamType):
    """A path or a URL, which a shell completes as a path."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """As in click."""
        from click.shell_completion import CompletionItem

        del ctx, param
        return [CompletionItem(incomplete, type="file")]


class Command(click.Command):
    """A command that refuses an empty argument or option, as from an unset shell variable."""

    def __init__(self, *args: Any, **attributes: Any) -> None:  # noqa: ANN401 - click's own
        """As in click; shared options come last, and text without a type of its own is a place."""
        super().__init__(*args, **attributes)
        self.params.sort(key=lambda parameter: _SHARED.find(f" {parameter.name} "))
        for parameter in self.params:
            if isinstance(parameter, click.Argument) and parameter.type is click.STRING:
                parameter.type = _PLACE

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
        ctx.meta[_LEFT_OUT] = not ctx.resilient_parsing and self._leaves_out_url(given)
        return super().parse_args(ctx, args)

    def _leaves_out_url(self, given: dict[str, Any]) -> bool:
        """Whether the arguments are too few by one, and the URL may be missing."""
        arguments = [found for found in self.params if isinstance(found, click.Argument)]
        if not arguments or not isinstance(arguments[0], UrlArgument) or len(arguments) == 1:
            return False
        values = [given.get(found.name or "") for found in arguments]
        return isinstance(values[-2], str) and not isinstance(values[-1], str)


_PLACE: Final = _Place()


class Group(click.Group):
    """A group of such commands, which suggests commands for a mistyped one."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, with suggestions also from its older releases. Raises `UsageError`."""
        name = args[0]
        is_command = name.startswith("-") or self.get_command(ctx, name) is not None
        if not is_command and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx))
            said = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"No such command '{name}'.{said}")
        return super().resolve_command(ctx, args)


Group.group_class = Group


def with_url_as(
    name: str = "url",
    metavar: str = "[URL]",
    *,
    help: str = _DIRECTORY_HELP,  # noqa: A002 - as click has it
    directory_from: str = "lightning_dir",
    passes_directory: bool = False,
    needs_directory: bool = False,
) -> Callable[[Callable[..., Fields]], Callable[..., Fields]]:
    """Adds the URL of a backup, which may be left out, and `--lightning-dir`.

    Without a URL it is that in the `backup.lock` of the network directory, or of the one node on
    this machine. The command receives the URL.

    Args:
        name: of the argument.
        metavar: of the argument.
        help: of `--lightning-dir`.
        directory_from: another option that names a network directory too.
        passes_directory: whether the command takes `lightning_dir`, given or found.
        needs_directory: whether it needs one, also with a URL.
    """

    def decorate(command: Callable[..., Fields]) -> Callable[..., Fields]:
        @functools.wraps(command)
        def run(*args: object, lightning_dir: str | None, **options: Any) -> Fields:  # noqa: ANN401
            url, named = options[name], lightning_dir or options.get(directory_from)
            if named is None and (url is None or needs_directory):
                named = lightning_dir = the_node_here()
            if url is not None:
                options[name] = url_of(url)
            else:
                assert named is not None
                options[name] = read_settings(named).backend_url
            if passes_directory or needs_directory:
                options["lightning_dir"] = lightning_dir
            return command(*args, **options)

        option = click.option(
            "--lightning-dir", type=click.Path(file_okay=False), metavar="DIR", help=help
        )
        return click.argument(name, cls=UrlArgument, metavar=metavar, required=False)(option(run))

    return decorate


with_url = with_url_as()
optional_url = click.argument(
    "url",
    cls=UrlArgument,
    metavar="[URL]",
    required=False,
    callback=lambda _context, _parameter, url: url and url_of(url),
)
"""For a command that can do without the URL, and looks for the node itself (`the_node_here`)."""


def the_node_here() -> str:
    """The network directory of the one node with a backup on this machine; a note names it.

    Raises:
        click.UsageError: there is none, or more than one.
    """
    found = nodes_here()
    if not found:
        raise click.UsageError(
            "Name the backup: its URL, or --lightning-dir with the node's network directory. No "
            "node with a backup.lock was found in the usual places, such as ~/.lightning/bitcoin."
        )
    if len(found) > 1:
        raise click.UsageError(
            f"{len(found)} nodes on this machine have a backup, so name the one that you mean: "
            "--lightning-dir with one of these, or the URL of a backup.\n  " + "\n  ".join(found)
        )
    warn(f"Using the node in {found[0]}, the only one found on this machine.")
    return found[0]
