"""``help``: the command line, one command, option or state; and all commands as a page of the documentation."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import click

from orchestrator.commands.common import ALIASES, EXIT_CODES, EXIT_USAGE, exit_with_error
from orchestrator.commands.help_troubles import TROUBLES, explain_trouble
from orchestrator.process.messages import program_version
from tunnel.model.errors import did_you_mean
from tunnel.model.state import STATES, State

_MAX_WIDTH: Final = 100
_TROUBLES: Final = tuple(row.name for row in TROUBLES)
_URL_TEXT: Final = """\
server|client://[KEY@]TUNNEL_ADDR/TARGET_ADDR[,…][?name=value&…]

The server listens on TUNNEL_ADDR, the client connects to it. IPv6 addresses are in brackets, :PORT means every
interface, and KEY is percent-encoded. If the server's TARGET_ADDR is one of its own addresses, visitors are accepted
there and the client connects them to its TARGET_ADDR (reverse); else the other way round (forward). mode= decides it.

  nodepass-orch 'server://KEY@0.0.0.0:10101/0.0.0.0:8080'
  nodepass-orch 'client://KEY@server-host:10101/127.0.0.1:3000'

Options: nodepass-orch help options
"""

_SUPERVISOR_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "drain_timeout": (
            "how long visitors of changed, removed and stopped tunnels may finish\n"
            "  values: a duration\n"
            "  default: each tunnel's shutdown_timeout"
        ),
    }
)
"""settings of the daemon that messages and the help of commands refer to"""


@click.command(name="help")
@click.argument("topic", nargs=-1, metavar="[TOPIC]…")
@click.pass_context
def help_command(context: click.Context, topic: tuple[str, ...]) -> int:
    """Explain a command, an option, a state, a column of ps or top, or a counter of ps --json.

    Lists: help url, help options, help states, help columns, help counters, help exit-codes. What to do if a tunnel is
    not up: help wrong-key, help cooldown, help port-in-use, help log. If visitors are refused: help visitors-refused.
    """
    root = context.find_root()
    if not topic:
        click.echo(root.get_help())
        click.echo(
            "\nnodepass-orch help TOPIC explains a command, an option, a state, a column, a counter, or: "
            + ", ".join((*_TOPICS, *_TROUBLES))
        )
        return 0
    word = _explain_word(topic[0].casefold()) if len(topic) == 1 else ""
    from orchestrator.commands.help_figures import explain_figure, figure_topics  # noqa: PLC0415  only for help

    words = " ".join(topic).casefold()
    # check is a command and an option, cooldown a state and a trouble, and proto an option and a column
    parts = (_explain_command(root, topic), word, _wrap(explain_figure(words)), explain_trouble(words))
    text = "\n\n".join(filter(None, parts))
    if not text:
        from tunnel.model.options import OPTIONS  # noqa: PLC0415  only for help on options

        names = (*_commands_of(root), *_TOPICS, *_TROUBLES, *OPTIONS, *_SUPERVISOR_SETTINGS, *map(str, STATES))
        known = dict.fromkeys((*names, *figure_topics()))
        hint = did_you_mean(topic[0], known) or "; nodepass-orch help lists the commands"
        exit_with_error(EXIT_USAGE, f"there is no help on {' '.join(topic)[:60]!r}{hint}")
    click.echo(text)
    return 0


@click.command(hidden=True)
def version() -> int:
    """Print the version, as --version does."""
    click.echo(f"nodepass-orch {program_version()}")
    return 0


def _commands_of(root: click.Context) -> list[str]:
    return root.command.list_commands(root) if isinstance(root.command, click.Group) else []


def _explain_command(root: click.Context, words: Sequence[str]) -> str:
    """Return the help of a command, or of one of a group; empty if there is none."""
    context, command = root, root.command
    for word in (ALIASES.get(word, word) for word in words):
        found = command.get_command(context, word) if isinstance(command, click.Group) else None
        if found is None:
            return ""
        command = found
        context = click.Context(command, parent=context, info_name=word)
    return command.get_help(context)


def _explain_word(word: str) -> str:
    if word in _TOPICS:
        return _TOPICS[word]()
    from tunnel.model.options import OPTIONS  # noqa: PLC0415  as above

    if (name := word.replace("-", "_")) in OPTIONS:
        return _explain_option(name)
    if name in _SUPERVISOR_SETTINGS:
        return f"{name}: {_SUPERVISOR_SETTINGS[name]}\n  in the file's supervisor: section"
    if word in STATES:
        return f"{STATES[State(word)].sign} {word}: {STATES[State(word)].meaning}."
    return ""


def _explain_option(name: str) -> str:
    from tunnel.model.options import OPTIONS  # noqa: PLC0415  as above

    option = OPTIONS[name]
    lines = [
        f"{name}: {option.doc}",
        f"  values: {option.type.values}",
        f"  default: {option.default}" if option.default and not option.is_secret else "",
        f"  environment: {option.variable}" if option.variable else "",
        "  changes while the tunnel runs" if option.is_live else "  a change restarts the tunnel",
    ]
    return "\n".join(line.replace("`", "") for line in lines if line)


def _list_options() -> str:
    from tunnel.model.options import OPTIONS  # noqa: PLC0415  as above

    rows = [(name, option.doc.replace("`", "")) for name, option in OPTIONS.items()]
    return _columns(rows) + "\n\nnodepass-orch help OPTION has the values and the default."


def _list_states() -> str:
    return _columns([(f"{info.sign} {state}", info.meaning) for state, info in STATES.items()])


def _list_exit_codes() -> str:
    return _columns([(str(code), meaning.replace("`", "")) for code, meaning in EXIT_CODES.items()])


def _list_columns() -> str:
    from orchestrator.commands.help_figures import column_rows  # noqa: PLC0415  as above

    return _columns(column_rows())


def _list_counters() -> str:
    from orchestrator.commands.help_figures import counter_rows  # noqa: PLC0415  as above

    return "\n".join(_wrap(text) for _, text in counter_rows())


def _wrap(text: str) -> str:
    """Return paragraphs, each wrapped to the terminal."""
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    return "\n\n".join(textwrap.fill(part, max(width, 20), break_on_hyphens=False) for part in text.split("\n\n"))


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    """Return rows of a word and its meaning, wrapped to the terminal."""
    left = max(len(word) for word, _ in rows) + 2
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - left
    wrapped = [(word, textwrap.wrap(text, max(width, 20))) for word, text in rows]
    return "\n".join(
        f"{word if number == 0 else '':<{left}}{line}" for word, lines in wrapped for number, line in enumerate(lines)
    )


_TOPICS: Final[Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "url": _URL_TEXT.rstrip,
        "options": _list_options,
        "states": _list_states,
        "columns": _list_columns,
        "counters": _list_counters,
        "exit-codes": _list_exit_codes,
    }
)


# --- docs/reference/commands.md ---------------------------------------------------------------------------------------


_PAGE_HEAD: Final = """\
# Commands

Generated from the command line by `make references`; do not edit.

`nodepass-orch URL` runs one tunnel: [the URL](url.md). `nodepass-orch help TOPIC` shows what is on this page.
`-f FILE` names the file in every command. Data goes to stdout, messages to stderr. There is no colour outside
a terminal or with `NO_COLOR`.
"""


def render_reference(root: click.Group) -> str:
    """Return the reference of all commands as a Markdown page."""
    context = click.Context(root, info_name="nodepass-orch")
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    parts = [
        _PAGE_HEAD,
        f"## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}",
        *(_render_command(command, each) for command, each in _walk(root, context)),
    ]
    return "\n".join(parts)


def _walk(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        below = click.Context(command, parent=context, info_name=name)
        yield command, below
        if isinstance(command, click.Group):
            yield from _walk(command, below)


def _render_command(command: click.Command, context: click.Context) -> str:
    path = context.command_path.removeprefix("nodepass-orch ")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = textwrap.dedent(command.help or "").strip()
    paragraphs = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    records = [
        record
        for param in command.get_params(context)
        if (record := param.get_help_record(context)) is not None and record[1] and "--help" not in record[0]
    ]
    rows = "".join(f"| `{_cell(names)}` | {_cell(meaning)} |\n" for names, meaning in records)
    table = f"\n| option | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"## {path}\n\n`{usage}`\n\n{paragraphs}\n{table}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


COMMANDS: Final = (help_command, version)
