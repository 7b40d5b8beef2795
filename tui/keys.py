"""What can be done, by which key; and the file in which somebody chooses other keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from tunnel.model.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping


class KeysError(Exception):
    """The file of keys is wrong; the message is a sentence with the file and the line."""


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that a key does; ``name`` is how the file of keys calls it."""

    name: str
    keys: str
    """separated by commas"""
    short: str
    """for the footer; empty where it is not shown there"""
    help: str
    group: str
    is_command: bool = False
    """whether it changes something at the daemon, so that read-only forbids it"""


DEEDS: Final = (
    Deed("filter", "slash", "filter", "filter: a b means both, a|b either; host:edge-* tag:prod state:up", "Look"),
    Deed("detail", "enter", "detail", "show the tunnel's details", "Look"),
    Deed("path", "p", "path", "the tunnel's path, with both ends: visitor, entrance, exit, target", "Look"),
    Deed("paths", "v", "paths", "all paths, the broken ones first", "Look"),
    Deed("hosts", "h", "", "the hosts of a fleet", "Look"),
    Deed("sort", "o", "sort", "sort by the next column", "Look"),
    Deed("reverse", "O", "", "sort the other way round", "Look"),
    Deed("next_pill", "right_square_bracket,right", "", "the next filter by state", "Look"),
    Deed("previous_pill", "left_square_bracket,left", "", "the filter by state before", "Look"),
    Deed("clear", "escape", "", "show all tunnels, forget the marks, close the notice", "Look"),
    Deed("freeze", "z", "freeze", "freeze the picture, and go on", "Look"),
    Deed("log", "l", "log", "show or hide the log", "Look"),
    Deed("log_level", "L", "", "the log from the next level on", "Look"),
    Deed("log_filter", "f", "", "filter the log by a text", "Look"),
    Deed("log_scope", "A", "", "the log of this tunnel, or of all", "Look"),
    Deed("log_pause", "P", "", "pause the log, or follow it again", "Look"),
    Deed("events", "e", "events", "what happened: states, reloads, commands", "Look"),
    Deed("start_stop", "s", "start/stop", "start what rests, stop what runs", "Act", is_command=True),
    Deed("restart", "r", "restart", "restart the tunnel", "Act", is_command=True),
    Deed("drain", "d", "drain", "accept no new visitors, let the present ones finish", "Act", is_command=True),
    Deed("retry", "n", "retry", "end the cooldown: try again now", "Act", is_command=True),
    Deed("reload", "R", "reload", "read the file again, after a look at what would change", "Act", is_command=True),
    Deed("plan", "w", "", "what a reload would change", "Act"),
    Deed("mark", "space", "", "mark the tunnel; commands then act on all marked ones", "Act"),
    Deed("mark_all", "a", "", "mark all that are shown, or none", "Act"),
    Deed("copy", "y", "", "copy the tunnel's URL, without its key", "Act"),
    Deed("theme", "t", "", "light or dark", "Other"),
    Deed("commands", "ctrl+p,colon", "commands", "find a command by its name", "Other"),
    Deed("help", "question_mark,f1", "help", "this page", "Other"),
    Deed("quit", "q", "quit", "leave", "Other"),
)
MOVES: Final = (
    ("↑ ↓  j k", "move"),
    ("PgUp PgDn", "move by a page"),
    ("Home End  g G", "first, last"),
    ("Tab", "from pane to pane"),
)
PILL_KEYS: Final = "0123456789"
"""Each chooses a filter by state, the first one all."""

_FIXED: Final = frozenset(
    {"up", "down", "j", "k", "g", "G", "pageup", "pagedown", "home", "end", "tab", "ctrl+c", *PILL_KEYS}
)
_SPELLED: Final = {
    "/": "slash", "?": "question_mark", ":": "colon", "[": "left_square_bracket", "]": "right_square_bracket",
    " ": "space", "esc": "escape", "return": "enter", ",": "comma", ".": "full_stop", "-": "minus", "+": "plus",
    "!": "exclamation_mark", "*": "asterisk", "=": "equals_sign", "#": "number_sign", "del": "delete",
}  # fmt: skip
_SHOWN: Final = {**{name: sign for sign, name in _SPELLED.items() if len(sign) == 1}, "space": "space",
                 "escape": "esc", "left": "←", "right": "→"}  # fmt: skip


def shown_keys(keys: str) -> str:
    """Keys as a person calls them."""
    return " ".join(_SHOWN.get(key, key.replace("ctrl+", "^")) for key in keys.split(","))


def usual_file(environ: Mapping[str, str]) -> Path | None:
    """``nodepass-orch/keys.yaml`` where this user's settings are, if it is there."""
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    path = Path(home) / "nodepass-orch" / "keys.yaml"
    return path if path.is_absolute() and path.is_file() else None


def load_keys(path: Path) -> dict[str, str]:
    """The keys of all deeds, some of them as the file at ``path`` says: ``restart: f5`` or ``restart: [r, f5]``.

    Raises KeysError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeysError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise KeysError(f"{place}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    chosen: dict[str, str] = {}
    if node is None:
        return all_keys(chosen)
    if not isinstance(node, yaml.MappingNode):
        raise KeysError(f"{path}:1:1: lines like `restart: f5` are expected")
    known = [deed.name for deed in DEEDS]
    owner = {}
    for name_node, keys_node in node.value:
        place = f"{path}:{name_node.start_mark.line + 1}:{name_node.start_mark.column + 1}"
        name = str(name_node.value)
        if name not in known:
            raise KeysError(f"{place}: nothing is called {name!r}{did_you_mean(name, known) or ''}")
        chosen[name] = _keys(keys_node, place)
        owner[name] = place
    keys = all_keys(chosen)
    _refuse_clashes(keys, owner)
    return keys


def all_keys(chosen: Mapping[str, str]) -> dict[str, str]:
    """The keys of every deed, chosen ones first."""
    return {deed.name: chosen.get(deed.name, deed.keys) for deed in DEEDS}


def _keys(node: yaml.Node, place: str) -> str:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes or not all(isinstance(one, yaml.ScalarNode) and one.value for one in nodes):
        raise KeysError(f"{place}: a key is expected, such as f5, ctrl+r or /, or a list of keys")
    keys = [_SPELLED.get(one.value, one.value) for one in nodes]
    for key in keys:
        if key in _FIXED:
            raise KeysError(f"{place}: {key} always moves or chooses; take another key")
    return ",".join(keys)


def _refuse_clashes(keys: Mapping[str, str], places: Mapping[str, str]) -> None:
    taken: dict[str, str] = {}
    for name, several in sorted(keys.items(), key=lambda item: item[0] in places):  # the chosen ones are to blame
        for key in several.split(","):
            if key in taken:
                place = places.get(name, "")
                raise KeysError(f"{place}: {shown_keys(key)} is the key of {taken[key]}; give that another one")
            taken[key] = name
