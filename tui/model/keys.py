"""The table of actions with their keys, and the file in which users choose other keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import yaml

from tui.model.user_files import read_user_file, user_file
from tunnel.model.errors import did_you_mean
from tunnel.model.files import FileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class KeyFileError(Exception):
    """The key file is wrong; the message is a sentence with the file and the line."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a key does: the main screen's ``action_NAME``. The key file uses the same name."""

    name: str
    keys: str
    """Textual's key names, separated by commas"""
    group: str
    """heading on the help page"""
    help: str
    label: str = ""
    """text in the footer; empty if it is not shown there"""
    footer: int = 0
    """place in the footer: the lowest come first, the last ones are dropped on a narrow screen"""
    is_command: bool = False
    """whether it changes something at the daemon, so that read-only mode blocks it"""


ACTIONS: Final = (
    Action("filter", "slash", "View",
           "filter: a b means both, a|b either, !a not; edge-0* host:a tag:b state:up name:c", "filter", 3),
    Action("detail", "enter", "View", "show or hide the tunnel's details", "detail", 4),
    Action("route", "p", "View", "the tunnel's route with both ends: visitors, ingress, egress, target", "route", 8),
    Action("routes", "v", "View", "all routes, broken ones first", "routes", 13),
    Action("visitors", "V", "View", "the visitors of the chosen tunnels with their rates; x there disconnects one"),
    Action("members", "m", "View", "the tunnel's links and targets; d there drains one, s gives it visitors again"),
    Action("traffic", "T", "View", "the tunnel's traffic by hour, day and month"),
    Action("hosts", "h", "View", "the hosts of a fleet"),
    Action("sort", "o", "View", "sort by the next column", "sort", 10),
    Action("reverse", "O", "View", "reverse the order"),
    Action("next_state_filter", "right_square_bracket,right", "View", "the next filter by state"),
    Action("previous_state_filter", "left_square_bracket,left", "View", "the previous filter by state"),
    Action("clear", "escape", "View", "show all tunnels, remove the marks, close the notice"),
    Action("columns", "C", "View", "choose the columns; they are kept for the next start"),
    Action("freeze", "z", "View", "freeze the screen, or continue", "freeze", 14),
    Action("log", "l", "View", "show or hide the log", "log", 9),
    Action("log_level", "L", "View", "the log from the next level upwards"),
    Action("log_filter", "f", "View", "filter the log by text"),
    Action("log_scope", "A", "View", "the log of this tunnel, or of all tunnels"),
    Action("log_pause", "P", "View", "pause the log, or follow it again"),
    Action("events", "e", "View", "recent events: states, reloads, commands", "events", 11),
    Action("start_stop", "s", "Commands", "start a stopped tunnel, stop a running one", "start/stop", 5,
           is_command=True),
    Action("restart", "r", "Commands", "restart the tunnel", "restart", 6, is_command=True),
    Action("drain", "d", "Commands", "accept no new visitors, let the present ones finish", "drain", 15,
           is_command=True),
    Action("retry", "n", "Commands", "end the cooldown and try again now", "retry", 7, is_command=True),
    Action("reload", "R", "Commands", "reload the file; asks first if visitors may be disconnected", "reload", 16,
           is_command=True),
    Action("plan", "w", "Commands", "show what a reload would change"),
    Action("test", "c", "Commands", "test the way to the target: dial it through the tunnel and time each leg",
           is_command=True),
    Action("edit", "E", "Commands", "open $VISUAL or $EDITOR at the tunnel's entry in the file", is_command=True),
    Action("mark", "space", "Commands", "mark the tunnel; commands then apply to all marked ones"),
    Action("mark_all", "a", "Commands", "mark all tunnels that are shown, or none"),
    Action("copy", "y", "Commands", "copy the tunnel's URL, without its key"),
    Action("theme", "t", "Other", "light or dark"),
    Action("commands", "ctrl+p,colon", "Other", "find a command by name", "commands", 12),
    Action("help", "question_mark,f1", "Other", "this page", "help", 1),
    Action("quit", "q", "Other", "quit", "quit", 2),
)  # fmt: skip
"""One row for each key of the main screen."""

FOOTER_ACTIONS: Final = tuple(sorted((action for action in ACTIONS if action.label), key=lambda action: action.footer))

NAVIGATION_KEYS: Final = (
    ("↑ ↓  j k", "move"),
    ("PgUp PgDn", "move by a page"),
    ("Home End  g G", "first, last"),
    ("Tab", "from pane to pane"),
    ("/  n N  esc", "in the log: search, next match, previous one, end"),
)
STATE_FILTER_KEYS: Final = "0123456789"
"""Each chooses a filter by state, the first one all tunnels."""

_RESERVED_KEYS: Final = frozenset(
    {"up", "down", "j", "k", "g", "G", "pageup", "pagedown", "home", "end", "tab", "ctrl+c", *STATE_FILTER_KEYS}
)
_TEXTUAL_NAMES: Final = {
    "/": "slash", "?": "question_mark", ":": "colon", "[": "left_square_bracket", "]": "right_square_bracket",
    " ": "space", "esc": "escape", "return": "enter", ",": "comma", ".": "full_stop", "-": "minus", "+": "plus",
    "!": "exclamation_mark", "*": "asterisk", "=": "equals_sign", "#": "number_sign", "del": "delete",
}  # fmt: skip
_DISPLAY_NAMES: Final = {**{name: sign for sign, name in _TEXTUAL_NAMES.items() if len(sign) == 1}, "space": "space",
                         "escape": "esc", "left": "←", "right": "→"}  # fmt: skip


def display_keys(keys: str) -> str:
    """Return keys, separated by commas, as a user reads them on a keyboard."""
    return " ".join(_DISPLAY_NAMES.get(key, key.replace("ctrl+", "^")) for key in keys.split(","))


def default_key_file(environ: Mapping[str, str]) -> Path | None:
    """Return ``nodepass-orch/keys.yaml`` in the user's configuration directory; None if there is no such file."""
    path = user_file(environ, "keys.yaml")
    return path if path is not None and path.is_file() else None


def load_keys(path: Path) -> dict[str, str]:
    """Return the keys of all actions, with those of the file at ``path``: ``restart: f5`` or ``restart: [r, f5]``.

    Raises KeyFileError.
    """
    node = _parse_yaml(path)
    if node is None:
        return all_keys({})
    if not isinstance(node, yaml.MappingNode):
        raise KeyFileError(f"{path}:1:1: lines like `restart: f5` are expected")
    known = [action.name for action in ACTIONS]
    chosen: dict[str, str] = {}
    places: dict[str, str] = {}
    for name_node, keys_node in node.value:
        place = f"{path}:{name_node.start_mark.line + 1}:{name_node.start_mark.column + 1}"
        name = str(name_node.value)
        if name not in known:
            raise KeyFileError(f"{place}: no action is named {name!r}{did_you_mean(name, known) or ''}")
        chosen[name] = _parse_keys(keys_node, place)
        places[name] = place
    keys = all_keys(chosen)
    _check_conflicts(keys, places)
    return keys


def all_keys(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of every action by its name: the chosen ones, else the default ones."""
    return {action.name: chosen.get(action.name, action.keys) for action in ACTIONS}


def _parse_yaml(path: Path) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(read_user_file(path), Loader=yaml.SafeLoader)
    except FileError as error:
        raise KeyFileError(f"cannot read {path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise KeyFileError(f"{place}: {error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, RecursionError):
        raise KeyFileError(f"{path}: not YAML") from None
    return node


def _parse_keys(node: yaml.Node, place: str) -> str:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes or not all(isinstance(one, yaml.ScalarNode) and one.value for one in nodes):
        raise KeyFileError(f"{place}: a key is expected, such as f5, ctrl+r or /, or a list of keys")
    keys = [_TEXTUAL_NAMES.get(one.value, one.value) for one in nodes]
    for key in keys:
        if key in _RESERVED_KEYS:
            raise KeyFileError(f"{place}: {key} is reserved for navigation; choose another key")
    return ",".join(keys)


def _check_conflicts(keys: Mapping[str, str], places: Mapping[str, str]) -> None:
    taken: dict[str, str] = {}
    for name, several in sorted(keys.items(), key=lambda item: item[0] in places):  # chosen ones last, to be reported
        for key in several.split(","):
            if key in taken:
                place = places.get(name, "")
                raise KeyFileError(f"{place}: {display_keys(key)} is already the key of {taken[key]}; change that too")
            taken[key] = name
