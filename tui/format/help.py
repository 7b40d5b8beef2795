"""The help page: every key, every sign, and how to choose other keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.state_display import format_state
from tui.format.text import Line, fit, wrap
from tui.model.keys import ACTIONS, NAVIGATION_KEYS, STATE_FILTER_KEYS, display_keys
from tui.model.states import STATE_MEANINGS, STATE_STYLES, state_filters

if TYPE_CHECKING:
    from collections.abc import Mapping

_LABEL_WIDTH = 16


def help_lines(keys: Mapping[str, str], width: int, *, is_fleet: bool, is_read_only: bool) -> list[Line]:
    """Return the help page; ``keys`` are those in use, by the name of the action."""
    last_filter_key = STATE_FILTER_KEYS[len(state_filters(is_fleet=is_fleet)) - 1]
    extra = {
        "View": (f"{STATE_FILTER_KEYS[0]} to {last_filter_key}", "filter by state, 0 shows all"),
        "Other": ("^z", "suspend; fg in the shell continues"),
    }
    lines: list[Line] = [(("Move", "title"),)]
    for key, text in NAVIGATION_KEYS:
        lines += _entry(key, text, width)
    for group in dict.fromkeys(action.group for action in ACTIONS):
        lines += [(), ((group, "title"),)]
        for action in ACTIONS:
            if action.group == group:
                is_blocked = action.is_command and is_read_only
                text = f"{action.help}{' (not in read-only mode)' if is_blocked else ''}"
                lines += _entry(display_keys(keys[action.name]), text, width, style="dim" if is_blocked else "")
        if group in extra:
            lines += _entry(*extra[group], width)
    return [*lines, *_sign_lines(width), *_key_file_lines(width)]


def _entry(label: str, text: str, width: int, *, label_style: str = "key", style: str = "") -> list[Line]:
    first, *rest = wrap(text, width - _LABEL_WIDTH)
    return [
        ((fit(f"  {label}", _LABEL_WIDTH), label_style), (first, style)),
        *(((" " * _LABEL_WIDTH + part, style),) for part in rest),
    ]


def _sign_lines(width: int) -> list[Line]:
    lines: list[Line] = [(), (("States", "title"),)]
    for state, meaning in STATE_MEANINGS.items():
        lines += _entry(format_state(state), meaning, width, label_style=STATE_STYLES[state])
    lines += _entry("! in front", "no key: anyone who finds the port can connect", width, label_style="warn")
    lines += [(), (("Traffic", "title"),)]
    return [*lines, *_entry("↓", "to visitors", width), *_entry("↑", "from visitors", width)]


def _key_file_lines(width: int) -> list[Line]:
    text = "top --keys FILE, or keys.yaml in ~/.config/nodepass-orch: lines like restart: f5 or drain: [d, f6]. Names:"
    names = ", ".join(action.name for action in ACTIONS)
    parts = [*wrap(text, width - 4), *wrap(names, width - 4)]
    return [(), (("Other keys", "title"),), *(((f"  {part}", "dim"),) for part in parts)]
