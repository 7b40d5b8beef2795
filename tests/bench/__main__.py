"""The command: ``python -m tests.bench``. Tables on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import contenders as who
from . import report
from .measure import DESCRIPTORS, MEASUREMENTS, Measurement, measure
from .processes import BenchError, find

if TYPE_CHECKING:
    from collections.abc import Sequence

_ONLY: Final = ("start", "idle", "keepalive", "newconn", "bulk")
_BUSY_LOAD: Final = 0.5


def _talk(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in _ONLY]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(_ONLY)}")
    return names


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="The tunnel beside its contenders.")
    parser.add_argument("--rounds", type=_positive, help="how often everything is measured (5)")
    parser.add_argument("--seconds", type=_positive, help="length of each load (5)")
    parser.add_argument(
        "--quick", action="store_true", help="1 round of 3 s, unless said otherwise: a first impression"
    )
    parser.add_argument("--only", type=_kinds, default=_ONLY, metavar="KIND,…", help=f"some of {', '.join(_ONLY)}")
    parser.add_argument("--contenders", type=Path, metavar="FILE", help="further ones, as in contenders.example.toml")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a contender out")
    parser.add_argument("--ours-command", metavar="COMMAND", help="what stands in front of the URL (nodepass-orch)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure to this file too")
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


def _possible(only: Sequence[str]) -> list[Measurement]:
    possible = []
    for measurement in MEASUREMENTS:
        if measurement.name.rstrip("18") not in only:
            continue
        if missing := [tool for tool in measurement.tools if not find(tool)]:
            _talk(f"SKIPPED {measurement.name}: {' and '.join(missing)} not installed")
        else:
            possible.append(measurement)
    return possible


def _facts(options: argparse.Namespace) -> dict[str, str]:
    names = (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name"))
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        _talk(f"This machine is not quiet: its load is {load:.2f}. Ratios may hold, figures will not.")
    facts = {
        "cores": f"{os.cpu_count()} x {next(names, platform.machine())}",
        "kernel": platform.release(),
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


async def _rounds(
    contenders: Sequence[who.Contender], measurements: Sequence[Measurement], rounds: int, seconds: int
) -> list[report.Outcome]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    outcomes = []
    for number in range(1, rounds + 1):
        for measurement in measurements:
            turn = (number - 1) % len(contenders)  # nobody is always first, on the machine as the last one left it
            for contender in (*contenders[turn:], *contenders[:turn]):
                if not contender.server and not measurement.of_direct:
                    continue
                sample = await measure(measurement, contender, seconds)
                outcomes.append(report.Outcome(contender.name, number, measurement.name, sample.values, sample.errors))
                figures = "  ".join(f"{key.partition('.')[2]} {value:,.2f}" for key, value in sample.values.items())
                failures = "".join(f"  ! {error}" for error in sample.errors)
                _talk(f"{number}/{rounds}  {measurement.name:<10} {contender.name:<10} {figures}{failures}")
    return outcomes


def _bench(options: argparse.Namespace) -> int:
    contenders, measurements = _present(options), _possible(options.only)
    if not contenders or not measurements:
        raise BenchError("nothing is left to measure")
    if options.json:
        _write(options.json, "")  # an unwritable place is better known before the run than after it
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    facts = _facts(options)
    outcomes = asyncio.run(_rounds(contenders, measurements, options.rounds, options.seconds))
    names = [contender.name for contender in contenders]
    print(report.render(outcomes, names, baseline=who.BASELINE, ours=who.OURS))
    print("\n" + "\n".join(f"{name}: {fact}" for name, fact in facts.items()))
    if options.json:
        document = report.as_document(outcomes, names, baseline=who.BASELINE, facts=facts)
        _write(options.json, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return 1 if any(outcome.errors for outcome in outcomes) else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise BenchError(f"--json {path}: {error.strerror}") from None


def main(words: Sequence[str] | None = None) -> int:
    """Runs the benchmark. 0: measured; 1: something failed meanwhile; 2: wrong usage; 130, 143: interrupted."""
    options = _arguments(sys.argv[1:] if words is None else words)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (3 if options.quick else 5)
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
