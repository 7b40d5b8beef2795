"""Aliases, nesting, sizes and numbers of faults: any file is read quickly, or is a fault with a place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.config.document import DocumentLimits, parse_document
from orchestrator.config.faults import MAX_FAULTS, ConfigError
from tests.orchestrator.test_config import Folder, folder
from tests.support.scale import GUARD_S

__all__ = ["folder"]


def aliases(brackets: str, levels: int, width: int) -> str:
    """Return lines of a mapping in which each anchor refers ``width`` times to the one before."""
    opening, closing = brackets[0], brackets[1]
    lines = [f"  a0: &a0 {opening}x{closing}\n"]
    for level in range(1, levels):
        items = [f"{f'k{n}: ' if opening == '{' else ''}*a{level - 1}" for n in range(width)]
        lines.append(f"  a{level}: &a{level} {opening}{', '.join(items)}{closing}\n")
    return "".join(lines)


@pytest.mark.parametrize("section", ["supervisor", "defaults", "tunnels", "include"])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize(("levels", "width", "words"), [(12, 9, "more than 200000 values"), (3000, 1, "nested deeper")])
def test_an_alias_bomb_is_a_fault_with_its_place(
    folder: Folder, section: str, brackets: str, levels: int, width: int, words: str
) -> None:
    began = time.monotonic()
    text = f"version: 1\n{section}:\n" + aliases(brackets, levels, width).replace("{x}", "{x: y}")
    [fault] = folder.faults(text)
    assert words in fault
    assert int(fault.split(":")[0]) > 3
    assert time.monotonic() - began < GUARD_S


def test_an_alias_bomb_in_an_included_file_names_that_file(folder: Folder) -> None:
    folder.write("tunnels:\n" + aliases("[]", 12, 9), "more.yaml")
    [fault] = folder.faults("version: 1\ninclude: more.yaml")
    assert fault.startswith("more.yaml:")
    assert "more than 200000 values" in fault


def test_the_bound_on_values_holds_for_all_files_together() -> None:
    limits = DocumentLimits(nodes=100)
    text = "a: [" + "x, " * 60 + "]"
    assert parse_document(Path("one"), text, {}, [], limits) is not None
    with pytest.raises(ConfigError, match=r"^two:1:\d+: with its aliases"):
        parse_document(Path("two"), text, {}, [], limits)


def test_aliases_and_merge_keys_of_many_entries_are_within_the_bound(folder: Folder) -> None:
    shared = ", ".join(f"{name}: 100" for name in ("semaphore_limit", "signal_buffer", "max_pool_capacity"))
    lines = [f"  t0: &t {{url: 'server://127.0.0.1:1000/127.0.0.1:0', {shared}}}"]
    lines += [f"  t{n}: {{<<: *t, url: 'server://127.0.0.1:{1000 + n}/127.0.0.1:0'}}" for n in range(1, 500)]
    entries = folder.load("version: 1\ntunnels:\n" + "\n".join(lines)).entries
    assert [entry.spec.settings.signal_buffer for entry in entries] == [100] * 500


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ntunnels:\n" + "".join(f"  a{n}: ${{X{n}}}\n" for n in range(2000)),
        "version: 1\ntunnels:\n" + "".join(f"  a{n}: nonsense\n" for n in range(2000)),
        "version: 1\n" + "".join(f"k{n}: 1\n" for n in range(2000)),
        "version: 1\nsupervisor:\n" + "".join(f"  k{n}: 1\n" for n in range(2000)),
        "version: 1\ntunnels:\n- &e {name: a, url: 'server://:1/h:2', log: loud}\n" + "- *e\n" * 2000,
        "version: 1\ntunnels: {" + "? [a]\n : 1, " * 2000 + "}",
    ],
    ids=["variables", "urls", "keys", "section", "aliases", "complex keys"],
)
def test_a_file_of_many_faults_is_not_checked_to_its_end(folder: Folder, text: str) -> None:
    assert 0 < len(folder.faults(text)) <= MAX_FAULTS + 2


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ntunnels:\n  a: server://" + "k" * 300_000,
        "version: 1\n? " + "k" * 300_000 + "\n: 1",
        "version: 1\ntunnels: {a: *" + "b" * 300_000 + "}",
        "version: 1\ntunnels: {a: !<" + "t" * 300_000 + "> x}",
        "version: 1\ntunnels:\n  a: ${" + "A" * 300_000 + "}",
        "version: 1\ntunnels:\n  a: '" + "${A:-" * 60_000 + "'",
        "version: 1\ninclude: [" + "f" * 300_000 + "]",
        'version: 1\ninclude: ["a\\0b"]',
        "version: 1\ntunnels: {a: {url: 'server://:1/h:2', key_file: " + "f" * 300_000 + "}}",
        "version: 1\ntunnels: {a: {url: 'server://:1/h:2', min_pool_capacity: " + "9" * 300_000 + "}}",
        "version: 1\nsupervisor: {workers: " + "0" * 5000 + "1}",
        "version: 1\nsupervisor: {drain_timeout: " + "1" * 300_000 + "s}",
        "version: 1\nsupervisor: {metrics: ':" + "0" * 300_000 + "1'}",
        "a: " + "[" * 100_000,
        "version: 1\n" + "---\nversion: 1\n" * 10_000,
    ],
)
def test_a_huge_value_is_a_short_fault(folder: Folder, text: str) -> None:
    faults = folder.faults(text)
    assert max(map(len, faults)) < 400


@pytest.mark.parametrize("workers", ["257", "0000009999", "0000000257", "99999999999999", "1e2", "+1", "\u0661"])
def test_the_bound_of_workers_is_a_bound_on_the_number(folder: Folder, workers: str) -> None:
    [fault] = folder.faults(f"version: 1\nsupervisor: {{workers: '{workers}'}}")
    assert "is not a whole number from 0 to 256" in fault
    assert folder.load("version: 1\nsupervisor: {workers: 0000000256}").supervisor.workers == 256


@pytest.mark.parametrize(
    "text", ["a:\n\tb: 1", "a:\n  b: 1\n\tc: 2", "a: {\n\tb: 1", "x: 1\n \ty: 2", "a:\n  - b\n\t- c", "a:\t- 1"]
)
def test_a_tab_that_indents_is_named_as_the_cause(folder: Folder, text: str) -> None:
    [fault] = folder.faults(text)
    assert fault.endswith("; indent with blanks, not with tabs")
