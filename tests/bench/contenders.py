"""The contenders: two commands each, with placeholders; built-in ones and those of a TOML file."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .processes import BenchError, find_program

if TYPE_CHECKING:
    from collections.abc import Mapping

BASELINE: Final = "haproxy"
OURS: Final = "ours"
OURS_PLAIN: Final = "ours, tls=0"
OURS_PLAIN_REUSED: Final = "ours, tls=0&reuse=1"
OURS_REUSED: Final = "ours, reuse=1"
_PROGRAM: Final = "nodepass-orch"

_PLACEHOLDER: Final = re.compile(r"\{(tunnel_port|visitor_port|target_port|dir)\}")
_KEYS: Final = ("name", "server", "client", "env", "files")

_HAPROXY_HOP: Final = """\
global
    nbthread 1
    maxconn 2048
defaults
    mode tcp
    option splice-auto
    maxconn 2048
    retries 0
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen hop
    bind 127.0.0.1:%s
    server next 127.0.0.1:%s
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """A path from the visitor to the target; without commands visitors connect directly to the target.

    Commands and files may name ``{tunnel_port}``, ``{visitor_port}``, ``{target_port}`` and ``{dir}``, a private
    directory into which the files are written before the commands run.
    """

    name: str
    server: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Return a program that is needed and not installed, or None."""
        return next(
            (command[0] for command in (self.server, self.client) if command and not find_program(command[0])), None
        )

    def filled(self, values: Mapping[str, object]) -> Contender:
        """Return the contender with placeholders replaced and programs as full paths."""

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), text)

        def command(words: tuple[str, ...]) -> tuple[str, ...]:
            return (find_program(words[0]) or words[0], *map(fill, words[1:])) if words else ()

        files = {name: fill(text) for name, text in self.files.items()}
        return Contender(self.name, command(self.server), command(self.client), self.env, files)


def direct() -> Contender:
    """Return the contender without a tunnel: the limit of machine and load."""
    return Contender("direct")


def haproxy() -> Contender:
    """Return two hops of a C proxy that neither pools nor authenticates: an upper bound."""
    return Contender(
        BASELINE,
        server=("haproxy", "-db", "-f", "{dir}/ingress.cfg"),
        client=("haproxy", "-db", "-f", "{dir}/egress.cfg"),
        files={
            "ingress.cfg": _HAPROXY_HOP % ("{visitor_port}", "{tunnel_port}"),
            "egress.cfg": _HAPROXY_HOP % ("{tunnel_port}", "{target_port}"),
        },
    )


def program(command: str | None = None) -> tuple[str, ...]:
    """Return the command of this project, or the words of ``command``. Raises BenchError."""
    installed = Path(sys.executable).with_name(_PROGRAM)
    words = shlex.split(command) if command is not None else [str(installed) if installed.exists() else _PROGRAM]
    if not words:
        raise BenchError("--ours-command is empty; give a program that takes the URL of a tunnel")
    return tuple(words)


def ours(command: str | None = None, *, name: str = OURS, options: str = "") -> Contender:
    """Return this project with default settings and ``options`` at both ends; ``command`` as for ``program``."""
    words = program(command)
    return Contender(
        name,
        server=(*words, f"server://127.0.0.1:{{tunnel_port}}/127.0.0.1:{{visitor_port}}?log=warn{options}"),
        client=(*words, f"client://127.0.0.1:{{tunnel_port}}/127.0.0.1:{{target_port}}?log=warn{options}"),
    )


def variants_of_ours(command: str | None = None) -> list[Contender]:
    """Return this project with its default options, and with those that data connections may have."""
    names = (OURS, OURS_PLAIN, OURS_PLAIN_REUSED, OURS_REUSED)
    options = (f"&{words}" if words else "" for _, _, words in (name.partition(", ") for name in names))
    return [ours(command, name=name, options=words) for name, words in zip(names, options, strict=True)]


def load(path: Path) -> list[Contender]:
    """Load the contenders of a TOML file, each a ``[[contender]]`` table. Raises BenchError with the place."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not TOML: {error}") from None
    tables = document.get("contender", [])
    if set(document) - {"contender"} or not isinstance(tables, list):
        raise BenchError(f"{path}: write each contender as a [[contender]] table, nothing else")
    found = [_contender(table, f"{path}: contender {number}") for number, table in enumerate(tables, 1)]
    names = [contender.name for contender in found]
    for name in names:
        if names.count(name) > 1 or name in {"direct", BASELINE, OURS}:
            raise BenchError(f"{path}: the name {name!r} is in use; each contender needs a unique name")
    return found


def _contender(table: object, place: str) -> Contender:
    if not isinstance(table, dict) or not all(isinstance(table.get(key), str) for key in ("name", "server", "client")):
        raise BenchError(f"{place}: needs name, server and client, each a string")
    if unknown := sorted(set(table) - set(_KEYS)):
        raise BenchError(f"{place}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    env, files = table.get("env", {}), table.get("files", {})
    for key, texts in (("env", env), ("files", files)):
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise BenchError(f"{place}: {key} must be a table of strings")
    try:
        server, client = (tuple(shlex.split(table[key])) for key in ("server", "client"))
    except ValueError as error:
        raise BenchError(f"{place}: a command cannot be split into words: {error}") from None
    if not server or not client:
        raise BenchError(f"{place}: server and client must each name a program")
    return Contender(table["name"], server, client, env, files)
