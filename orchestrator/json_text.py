"""Writes JSON for readers outside of this process: always valid UTF-8, whatever the operating system's texts hold."""

from __future__ import annotations

import json
import re
from typing import Final

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE: Final = 0xDC00
"""Python reads a byte that is not UTF-8, as in a file name, as this code point plus the byte (PEP 383)."""


def json_text(data: object) -> str:
    """Return the JSON text of a value; what JSON cannot express is written as its text.

    Lone surrogates, which UTF-8 cannot encode, are replaced by a readable escape: the byte 0xE9 in the name of a
    directory becomes the four characters ``\\xe9``.
    """
    text = json.dumps(data, ensure_ascii=False, default=str)
    return text if text.isascii() else _SURROGATE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group()) - _ESCAPED_BYTE
    return f"\\\\x{code:02x}" if 0x80 <= code <= 0xFF else "\ufffd"
