"""The Markdown pages of a checkout: their code blocks, the commands in them, and their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Return the command lines, without comments: all of ``sh``, those after a prompt of ``console``."""
        if self.language not in {"sh", "console"}:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [stripped for line in lines if (stripped := re.sub(r"(^|\s+)#\s.*$", "", line).strip())]


def pages() -> list[Path]:
    """Return all pages that users and contributors read."""
    found = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    folders = ("docs", "configs", "tunnel", "tests/bench", "tests/soak")
    return sorted(found + [path for folder in folders for path in (ROOT / folder).rglob("*.md")])


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = page.read_text("utf-8")
    return [Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in _BLOCK.finditer(text)]


def words_of(command: str) -> list[str]:
    """Return the words of a command up to a pipe or a redirection."""
    words = shlex.split(command)
    return words[: next((i for i, word in enumerate(words) if word in {"|", ">", "&", "&&"}), len(words))]


def dead_links(page: Path) -> Iterator[str]:
    """Yield the relative links of a page that lead to no file, or to no heading of one."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    for target in _LINK.findall(text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page if not path else page.parent / path
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            yield target


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = _HEADING.findall(_BLOCK.sub("", page.read_text("utf-8"))) if page.is_file() else []
    return {re.sub(r"[^\w\- ]", "", heading.strip().casefold()).replace(" ", "-") for heading in headings}
