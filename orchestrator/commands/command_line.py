"""Builds the command line from commands and runs it: every error becomes a message and an exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

from orchestrator.commands import authoring, control, daemons, fleet, help_topics, local, testing, traffic, visitors
from orchestrator.commands.common import EXIT_FAILED, EXIT_USAGE, CommandGroup, DashboardLauncher
from orchestrator.process.messages import print_message, program_version

_GROUPS: Final = (local, authoring, control, visitors, testing, traffic, daemons, help_topics)
COMMANDS: Final = (*(command for group in _GROUPS for command in group.COMMANDS), fleet.fleet)
"""The commands of this package; ``tui.cli`` adds its own."""

_OUTPUT_ERRORS: Final = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF}
"""Errors that writing to stdout gives. A file of the command may give them too; commands report those themselves."""
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it

_HELP: Final = """Many TCP and UDP tunnels from one file.

A single tunnel: nodepass-orch 'server://TUNNEL_ADDR/TARGET_ADDR', and 'client://…' at the other end.
"""


def build_command_line(commands: Iterable[click.Command]) -> click.Group:
    """Return the root command ``nodepass-orch``."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    group = CommandGroup("nodepass-orch", help=_HELP, commands=list(commands), context_settings=settings)
    version = click.option(  # not click.version_option, which needs the version at each start
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Show the version and exit.",
    )
    return version(group)


def _print_version(context: click.Context, _: click.Parameter, is_given: bool) -> None:  # noqa: FBT001  called by click
    if is_given and not context.resilient_parsing:
        click.echo(f"nodepass-orch {program_version()}")
        context.exit()


def run(
    arguments: Sequence[str],
    commands: Iterable[click.Command] = COMMANDS,
    launcher: DashboardLauncher | None = None,
) -> int:
    """Run a command. Returns the exit code.

    With a launcher, ``up`` and ``demo`` open the dashboard on a terminal.
    """
    root = build_command_line(commands)
    try:
        code: Any = root.main(list(arguments), prog_name="nodepass-orch", standalone_mode=False, obj=launcher)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.UsageError as error:
        text = " ".join(error.format_message().split()).rstrip(".")  # a list of choices has lines
        print_message(text if text.endswith("?") else f"{text}; see nodepass-orch {_command_name(error)}--help")
        return EXIT_USAGE
    except click.ClickException as error:
        print_message(error.format_message())
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    except OSError as error:
        is_output = error.errno in _OUTPUT_ERRORS
        if is_output:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes stdout at exit and would fail again
        print_message(f"{'cannot write the output' if is_output else 'the command failed'}: {error.strerror or error}")
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _command_name(error: click.UsageError) -> str:
    _, _, command = (error.ctx.command_path if error.ctx else "").partition(" ")
    return f"{command} " if command else ""
