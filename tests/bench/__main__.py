"""The command ``python -m tests.bench``: tables on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import contenders as contender_list
from . import (
    datagrams,
    fleet,
    gateway,
    groups,
    rate_limits,
    report,
    results,
    screen,
    side_by_side,
    tunnels,
    visitor_features,
    watched,
    workers,
)
from .processes import BenchError, find_program
from .section import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .section import Section, Trial

_PAIRS: Final[dict[str, Callable[[str | None], Section]]] = {"tls": side_by_side.tls, "mux": side_by_side.mux}
_SECTIONS: Final[dict[str, Callable[[Sequence[str]], Section]]] = {
    "workers": workers.section,
    "watched": watched.section,
    "tunnels": tunnels.section,
    "gateway": gateway.section,
    "groups": groups.section,
    "links": groups.link_section,
    "features": visitor_features.section,
    "rates": rate_limits.section,
    "datagrams": datagrams.section,
    "screen": screen.section,
    "fleet": fleet.section,
}
_KINDS: Final = (*side_by_side.KINDS, *_PAIRS, *_SECTIONS)
_CONTENDERS: Final = "contenders"
"""The name that stands for all measurements of contenders."""
_ROUNDS: Final = 3
_SECONDS: Final = 3
_BUSY_LOAD: Final = 0.5
_DESCRIPTORS: Final = 65_536


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse_positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parse_kinds(text: str) -> tuple[str, ...]:
    names = tuple(kind for name in text.split(",") for kind in (side_by_side.KINDS if name == _CONTENDERS else (name,)))
    if unknown := [name for name in names if name not in _KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {_CONTENDERS}, {', '.join(_KINDS)}")
    return names


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Benchmark of the tunnel and its contenders."
    )
    parser.add_argument("--rounds", type=_parse_positive, help=f"number of rounds (default: {_ROUNDS})")
    parser.add_argument(
        "--seconds", type=_parse_positive, help=f"duration of each load in seconds (default: {_SECONDS})"
    )
    parser.add_argument("--quick", action="store_true", help="1 round unless --rounds is given")
    kinds = f"one or more of {', '.join(_KINDS)}; {_CONTENDERS} selects the first {len(side_by_side.KINDS)}"
    parser.add_argument("--only", type=_parse_kinds, default=_KINDS, metavar="KIND,…", help=kinds)
    parser.add_argument(
        "--contenders", type=Path, metavar="FILE", help="further contenders, as in contenders.example.toml"
    )
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="skip a contender")
    parser.add_argument("--ours-command", metavar="COMMAND", help="command that takes the URL (default: nodepass-orch)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every figure to this file")
    parser.add_argument(
        "--results", type=Path, metavar="DIRECTORY", help="write the tables and charts to this directory"
    )
    return parser.parse_args(words)


def _installed_contenders(options: argparse.Namespace) -> list[contender_list.Contender]:
    ours = contender_list.variants_of_ours(options.ours_command)
    contenders = [contender_list.direct(), contender_list.haproxy(), *ours]
    if options.contenders:
        contenders += contender_list.load(options.contenders)
    names = [contender.name for contender in contenders]
    if unknown := [name for name in options.without if name not in names]:
        raise BenchError(f"--without {unknown[0]}: there are {', '.join(names)}")
    present = []
    for contender in contenders:
        if contender.name in options.without:
            continue
        if missing := contender.missing():
            _print_progress(f"SKIPPED {contender.name}: {missing} is not installed")
        else:
            present.append(contender)
    return present


def _sections(options: argparse.Namespace) -> list[Section]:
    """Return the requested sections in the order of a round."""
    found = []
    if kinds := [name for name in options.only if name in side_by_side.KINDS]:
        found.append(side_by_side.contenders(_installed_contenders(options), kinds))
    found += [make(options.ours_command) for name, make in _PAIRS.items() if name in options.only]
    program = contender_list.program(options.ours_command)
    found += [make(program) for name, make in _SECTIONS.items() if name in options.only]
    return [section for section in map(_without_missing_tools, found) if section.trials]


def _without_missing_tools(section: Section) -> Section:
    """Return the section without the trials whose programs are not installed."""
    trials = []
    for trial in section.trials:
        if missing := [tool for tool in trial.tools if not find_program(tool)]:
            _print_progress(
                f"SKIPPED {section.name}, {trial.measurement} of {trial.variant}: {' and '.join(missing)} not installed"
            )
        else:
            trials.append(trial)
    absent = set(section.sheet.variants) - {trial.variant for trial in trials}
    return replace(section, trials=tuple(trials), sheet=section.sheet.without(absent))


def _machine_facts(options: argparse.Namespace) -> dict[str, str]:
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        _print_progress(
            f"the load average of this machine is {load:.2f}: ratios may be valid, absolute figures are not"
        )
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": f"{os.cpu_count()} x {next(names, platform.machine())}",
        "kernel": platform.release(),
        "congestion control": next(iter(_lines(Path("/proc/sys/net/ipv4/tcp_congestion_control"))), "unknown"),
        "python": platform.python_version(),
        "load before": f"{load:.2f}",
        "rounds x seconds": f"{options.rounds} x {options.seconds}",
    }
    for tool, flag in (("haproxy", "-v"), ("nginx", "-v"), ("wrk", "-v"), ("iperf3", "-v"), ("go", "version")):
        if path := find_program(tool):
            version = subprocess.run((path, flag), capture_output=True, text=True, check=False)
            facts[tool] = (version.stdout + version.stderr).partition("\n")[0].strip()
    return facts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


async def _rounds(sections: Sequence[Section], rounds: int, seconds: int) -> dict[Section, list[report.Outcome]]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    measured: dict[Section, list[report.Outcome]] = {section: [] for section in sections}
    for number in range(1, rounds + 1):
        for section in sections:
            if number > section.max_rounds:
                continue
            for trial in _rotated(section.trials, number):
                sample = await _run_trial(trial, seconds)
                measured[section].append(
                    report.Outcome(trial.variant, number, trial.measurement, sample.values, sample.errors)
                )
                _print_sample(
                    f"{number}/{rounds}  {section.name:<10} {trial.measurement:<10} {trial.variant:<10}", sample
                )
    return measured


def _rotated(trials: Sequence[Trial], number: int) -> list[Trial]:
    """Return the trials of a round. The first variant changes from round to round."""
    found: list[Trial] = []
    for _, group in itertools.groupby(trials, key=lambda trial: trial.measurement):
        variants = list(group)
        shift = (number - 1) % len(variants)
        found += [*variants[shift:], *variants[:shift]]
    return found


async def _run_trial(trial: Trial, seconds: int) -> Sample:
    """Run one trial; a failure becomes an error of the sample."""
    try:
        return await trial.run(seconds)
    except (BenchError, OSError) as error:
        return Sample({}, (str(error),))


def _print_sample(what: str, sample: Sample) -> None:
    figures = "  ".join(f"{key.partition('.')[2]} {value:,.2f}" for key, value in sample.values.items())
    skipped = "".join(f"  SKIPPED {name}: {why}" for name, why in sample.skipped.items())
    _print_progress(f"{what} {figures}{skipped}" + "".join(f"  ! {error}" for error in sample.errors))


def _bench(options: argparse.Namespace) -> int:
    sections = _sections(options)
    if not sections:
        raise BenchError("no measurement is left")
    if options.json:
        _write(options.json, "")  # an unwritable path is reported before the run, not after it
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    facts = _machine_facts(options)
    measured = asyncio.run(_rounds(sections, options.rounds, options.seconds))
    for section, outcomes in measured.items():
        print(f"{section.title}\n\n{report.render(outcomes, section.sheet)}\n")
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
    if options.json:
        found = {s.name: report.as_document(outcomes, s.sheet) for s, outcomes in measured.items()}
        _write(options.json, json.dumps({"facts": facts, "sections": found}, indent=1, ensure_ascii=False) + "\n")
    if options.results and (why := results.write(options.results, measured, facts, _titles(options))):
        _print_progress(f"SKIPPED the charts: {why}")
    return 1 if any(outcome.errors for outcomes in measured.values() for outcome in outcomes) else 0


def _titles(options: argparse.Namespace) -> list[str]:
    """Return the titles of all sections in the order of the page."""
    program = contender_list.program(options.ours_command)
    sections = [side_by_side.contenders((), ()), *(make(options.ours_command) for make in _PAIRS.values())]
    return [section.title for section in [*sections, *(make(program) for make in _SECTIONS.values())]]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise BenchError(f"--json {path}: {error.strerror}") from None


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 0: all measured; 1: a failure; 2: wrong usage; 130 or 143: interrupted."""
    options = _arguments(sys.argv[1:] if words is None else words)
    options.rounds = options.rounds or (1 if options.quick else _ROUNDS)
    options.seconds = options.seconds or _SECONDS
    try:
        return _bench(options)
    except BenchError as error:
        _print_progress(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143


if __name__ == "__main__":
    sys.exit(main())
