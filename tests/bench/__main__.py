"""The command: ``python -m tests.bench``. Tables on stdout, progress on stderr."""

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

from . import contenders as who
from . import fleet, report, results, screen, side_by_side, tunnels, watched, workers
from .processes import BenchError, find
from .section import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .section import Section, Trial

_FURTHER: Final[dict[str, Callable[[Sequence[str]], Section]]] = {
    "workers": workers.section,
    "watched": watched.section,
    "tunnels": tunnels.section,
    "screen": screen.section,
    "fleet": fleet.section,
}
_ONLY: Final = (*side_by_side.KINDS, "tls", *_FURTHER)
_CONTENDERS: Final = "contenders"
"""The name for all that contenders are compared in."""
_ROUNDS: Final = 3
_SECONDS: Final = 3
_BUSY_LOAD: Final = 0.5
_DESCRIPTORS: Final = 65_536


def _talk(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(kind for name in text.split(",") for kind in (side_by_side.KINDS if name == _CONTENDERS else (name,)))
    if unknown := [name for name in names if name not in _ONLY]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {_CONTENDERS}, {', '.join(_ONLY)}")
    return names


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="The tunnel beside its contenders.")
    parser.add_argument("--rounds", type=_positive, help=f"how often everything is measured ({_ROUNDS})")
    parser.add_argument("--seconds", type=_positive, help=f"length of each load ({_SECONDS})")
    parser.add_argument("--quick", action="store_true", help="1 round, unless said otherwise: a first impression")
    kinds = f"some of {', '.join(_ONLY)}; {_CONTENDERS} stands for the first {len(side_by_side.KINDS)}"
    parser.add_argument("--only", type=_kinds, default=_ONLY, metavar="KIND,…", help=kinds)
    parser.add_argument("--contenders", type=Path, metavar="FILE", help="further ones, as in contenders.example.toml")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a contender out")
    parser.add_argument("--ours-command", metavar="COMMAND", help="what stands in front of the URL (nodepass-orch)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure to this file too")
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="write the tables and their pictures there")
    return parser.parse_args(words)


def _present(options: argparse.Namespace) -> list[who.Contender]:
    everybody = [who.direct(), who.haproxy(), who.ours(options.ours_command)]
    if options.contenders:
        everybody += who.load(options.contenders)
    names = [contender.name for contender in everybody]
    if unknown := [name for name in options.without if name not in names]:
        raise BenchError(f"--without {unknown[0]}: there are {', '.join(names)}")
    present = []
    for contender in everybody:
        if contender.name in options.without:
            continue
        if missing := contender.missing():
            _talk(f"SKIPPED {contender.name}: {missing} is not installed")
        else:
            present.append(contender)
    return present


def _sections(options: argparse.Namespace) -> list[Section]:
    """All that was asked for, in the order of a round."""
    found = []
    if kinds := [name for name in options.only if name in side_by_side.KINDS]:
        found.append(side_by_side.contenders(_present(options), kinds))
    if "tls" in options.only:
        found.append(side_by_side.tls(options.ours_command))
    program = who.program(options.ours_command)
    found += [make(program) for name, make in _FURTHER.items() if name in options.only]
    return [section for section in map(_possible, found) if section.trials]


def _possible(section: Section) -> Section:
    """The section without what needs a program that is not there."""
    trials = []
    for trial in section.trials:
        if missing := [tool for tool in trial.tools if not find(tool)]:
            _talk(f"SKIPPED {section.name}, {trial.measurement} of {trial.variant}: {' and '.join(missing)} not there")
        else:
            trials.append(trial)
    absent = set(section.sheet.variants) - {trial.variant for trial in trials}
    return replace(section, trials=tuple(trials), sheet=section.sheet.without(absent))


def _facts(options: argparse.Namespace) -> dict[str, str]:
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        _talk(f"This machine is not quiet: its load is {load:.2f}. Ratios may hold, figures will not.")
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": f"{os.cpu_count()} x {next(names, platform.machine())}",
        "kernel": platform.release(),
        "congestion control": next(iter(_lines(Path("/proc/sys/net/ipv4/tcp_congestion_control"))), "unknown"),
        "python": platform.python_version(),
        "load before": f"{load:.2f}",
        "rounds x seconds": f"{options.rounds} x {options.seconds}",
    }
    for tool, flag in (("haproxy", "-v"), ("nginx", "-v"), ("wrk", "-v"), ("iperf3", "-v")):
        if path := find(tool):
            said = subprocess.run((path, flag), capture_output=True, text=True, check=False)
            facts[tool] = (said.stdout + said.stderr).partition("\n")[0].strip()
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
            if number > section.most_rounds:
                continue
            for trial in _in_turn(section.trials, number):
                sample = await _taken(trial, seconds)
                measured[section].append(
                    report.Outcome(trial.variant, number, trial.measurement, sample.values, sample.errors)
                )
                _tell(f"{number}/{rounds}  {section.name:<10} {trial.measurement:<10} {trial.variant:<10}", sample)
    return measured


def _in_turn(trials: Sequence[Trial], number: int) -> list[Trial]:
    """The trials of a round: nobody is always first, on the machine as the last one left it."""
    found: list[Trial] = []
    for _, group in itertools.groupby(trials, key=lambda trial: trial.measurement):
        variants = list(group)
        turn = (number - 1) % len(variants)
        found += [*variants[turn:], *variants[:turn]]
    return found


async def _taken(trial: Trial, seconds: int) -> Sample:
    """Whatever fails in it becomes an error of the sample."""
    try:
        return await trial.take(seconds)
    except (BenchError, OSError) as error:
        return Sample({}, (str(error),))


def _tell(what: str, sample: Sample) -> None:
    figures = "  ".join(f"{key.partition('.')[2]} {value:,.2f}" for key, value in sample.values.items())
    skipped = "".join(f"  SKIPPED {name}: {why}" for name, why in sample.skipped.items())
    _talk(f"{what} {figures}{skipped}" + "".join(f"  ! {error}" for error in sample.errors))


def _bench(options: argparse.Namespace) -> int:
    sections = _sections(options)
    if not sections:
        raise BenchError("nothing is left to measure")
    if options.json:
        _write(options.json, "")  # an unwritable place is better known before the run than after it
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    facts = _facts(options)
    measured = asyncio.run(_rounds(sections, options.rounds, options.seconds))
    for section, outcomes in measured.items():
        print(f"{section.title}\n\n{report.render(outcomes, section.sheet)}\n")
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
    if options.json:
        found = {s.name: report.as_document(outcomes, s.sheet) for s, outcomes in measured.items()}
        _write(options.json, json.dumps({"facts": facts, "sections": found}, indent=1, ensure_ascii=False) + "\n")
    if options.results and (why := results.write(options.results, measured, facts, _titles(options))):
        _talk(f"SKIPPED the pictures: {why}")
    return 1 if any(outcome.errors for outcomes in measured.values() for outcome in outcomes) else 0


def _titles(options: argparse.Namespace) -> list[str]:
    """Of all sections there are, in the order of the page."""
    program = who.program(options.ours_command)
    sections = [side_by_side.contenders((), ()), side_by_side.tls(options.ours_command)]
    return [section.title for section in [*sections, *(make(program) for make in _FURTHER.values())]]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise BenchError(f"--json {path}: {error.strerror}") from None


def main(words: Sequence[str] | None = None) -> int:
    """Runs the benchmark. 0: measured; 1: something failed meanwhile; 2: wrong usage; 130, 143: interrupted."""
    options = _arguments(sys.argv[1:] if words is None else words)
    options.rounds = options.rounds or (1 if options.quick else _ROUNDS)
    options.seconds = options.seconds or _SECONDS
    try:
        return _bench(options)
    except BenchError as error:
        _talk(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143


if __name__ == "__main__":
    sys.exit(main())
