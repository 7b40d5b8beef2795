"""Expands the templates of frp's files: ranges of ports, and variables of the environment. Pure.

frp gives its files to Go's text/template with three additions: ``.Envs``, ``parseNumberRange`` and
``parseNumberRangePair``. Source: "Using Environment Variables" and "Port range mapping" in the README.md of
https://github.com/fatedier/frp.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from orchestrator.authoring.source import ForeignFile, ImportFileError

_MAX_ENTRIES: Final = 1000
"""Entries of one range: each becomes a tunnel."""
_MAX_CHARS: Final = 4 << 20
"""Of all ranges of a file together, expanded."""
_MAX_PORT: Final = 65535
_RANGE: Final = re.compile(
    r"\{\{-?\s*range\s+(?:\$(?P<index>\w+)\s*,\s*)?\$(?P<value>\w+)\s*:=\s*parseNumberRange(?P<pair>Pair)?"
    r"\s+\"(?P<first>[^\"]*)\"(?:\s+\"(?P<second>[^\"]*)\")?\s*-?\}\}"
)
_END: Final = re.compile(r"\{\{-?\s*end\s*-?\}\}")
_VARIABLE: Final = re.compile(r"\{\{-?\s*\.Envs\.([A-Za-z_][A-Za-z0-9_]*)\s*-?\}\}")
_TOKEN: Final = re.compile(r"\s*[\"']?(auth\.)?token[\"']?\s*[=:]")
_ACTION: Final = re.compile(r"\{\{")
_PART: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def expand(source: ForeignFile, environ: Mapping[str, str]) -> None:
    """Expand the templates of a file. Its notes keep the lines of the original.

    A variable that is a token stays: the written file reads it from the environment of the daemon, so that the key is
    not in the file. Raises ImportFileError for a variable that is not set, and for a range that is no list of ports.
    """
    if _ACTION.search(source.text) is None:
        return
    lines = _expand_ranges(source, list(enumerate(source.text.splitlines(), 1)))
    source.text = "\n".join(_fill_variables(source, number, line, environ) for number, line in lines)
    source.line_numbers = [number for number, _ in lines]


def _expand_ranges(source: ForeignFile, lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the lines with a copy of the lines of each range for each of its ports."""
    expanded: list[tuple[int, str]] = []
    rest = iter(lines)
    size = 0
    for number, line in rest:
        head = _RANGE.search(line)
        if head is None:
            expanded.append((number, line))
            continue
        entries = _parse_range(source, number, head)
        body = list(itertools.takewhile(lambda each: _END.search(each[1]) is None, rest))
        size += len(entries) * sum(len(text) + 1 for _, text in body)
        if size > _MAX_CHARS:
            raise ImportFileError(f"{source.name}:{number}: the ranges make more than {_MAX_CHARS >> 20} MiB of text")
        for index, values in enumerate(entries):
            expanded += [(place, _fill_entry(text, head, index, values)) for place, text in body]
    return expanded


def _parse_range(source: ForeignFile, number: int, head: re.Match[str]) -> list[tuple[int, ...]]:
    """Return the ports of each entry of a range: one, or two of a pair. Raises ImportFileError."""
    texts = [head["first"], head["second"]] if head["pair"] else [head["first"]]
    columns = [_parse_ports(text or "") for text in texts]
    if not all(columns) or len({*map(len, columns)}) > 1 or len(columns[0]) > _MAX_ENTRIES:
        text = f"a range has one list of at most {_MAX_ENTRIES} ports, or two equally long ones, as in 6000-6006,6007"
        raise ImportFileError(f"{source.name}:{number}: {text}")
    return list(zip(*columns, strict=True))


def _parse_ports(text: str) -> list[int]:
    """Return the ports of a list like ``6000-6006,6007``; nothing if it is something else."""
    ports: list[int] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            return []
        first, last = int(found[1]), int(found[2] or found[1])
        if last > _MAX_PORT:
            return []
        ports += range(first, last + 1)
    return ports


def _fill_entry(text: str, head: re.Match[str], index: int, values: Sequence[int]) -> str:
    names = {head["value"]: values[0], head["index"]: index}
    if head["pair"]:
        names = {f"{head['value']}.First": values[0], f"{head['value']}.Second": values[-1], head["index"]: index}
    for name, value in names.items():
        if name:
            text = re.sub(rf"\{{\{{-?\s*\${re.escape(name)}\s*-?\}}\}}", str(value), text)
    return text


def _fill_variables(source: ForeignFile, number: int, line: str, environ: Mapping[str, str]) -> str:
    if _TOKEN.match(line):
        return line

    def value_of(found: re.Match[str]) -> str:
        value = environ.get(found[1])
        if value is None:
            text = f"the variable {found[1]} is not set; name its value: {found[1]}=… nodepass-orch import frp FILE…"
            raise ImportFileError(f"{source.name}:{number}: {text}")
        return value

    return _VARIABLE.sub(value_of, line)
