"""Text of others on its way to a terminal: names, reasons and errors that a broker, a daemon or a file supplies.

A terminal executes control characters (ECMA-48): CSI moves the cursor, OSC sets the title or the clipboard, and a C1
control does the same in one character. So such text is made printable where it arrives, and again where it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from orchestrator.json_text import json_text


def printable(text: str) -> str:
    """The text with escapes for what would move the cursor or break the line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The text with escapes for all control characters but the ends of its lines."""
    return "\n".join(map(printable, text.split("\n")))


def load_printable_json(text: str, decode: Callable[[str], Any] = json.loads) -> Any:  # noqa: ANN401  as json.loads
    """The JSON value in a text, with escapes for the control characters in its texts and keys.

    ``decode`` is json.loads, or the method of a strict JSONDecoder. Raises ValueError, RecursionError.
    """
    value = decode(text)
    return value if _has_no_control_characters(text) else _printable_value(value)


def _has_no_control_characters(text: str) -> bool:
    """Whether a valid JSON text has no escape in it, and no control character in a text or key.

    JSON has no C0 controls there (RFC 8259, section 7), and the only other one of ASCII is DEL. Two searches for one
    character take a tenth of the time of ``isprintable``.
    """
    return "\\" not in text and ("\x7f" not in text if text.isascii() else text.isprintable())


def _printable_value(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable_value(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): _printable_value(one) for key, one in value.items()}
    return value


def dump_json_line(value: object) -> str:
    """The JSON of a value on one line that a terminal can show: control characters are escaped, their value is kept."""
    line = json_text(value)
    return line if line.isprintable() else json.dumps(json.loads(line))
