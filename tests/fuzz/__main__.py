"""The command ``python -m tests.fuzz [NAME…]``. Exit code 0: nothing found; 1: a finding; 2: wrong usage."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.fuzz.seeds import CORPUS
from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).resolve().parents[2]

_MAX_SECONDS_PER_INPUT: Final = 5  # more is a finding
_MAX_MEMORY_MIB: Final = 1024  # more is a finding
_SHUTDOWN_GRACE_S: Final = 60  # for libFuzzer beyond its time limit


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers of untrusted input.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=30, help="seconds for each target (default: 30)")
    parser.add_argument(
        "--crashes",
        type=Path,
        default=Path("build/fuzz"),
        metavar="FOLDER",
        help="folder for findings (default: build/fuzz)",
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input through the named target")
    options = parser.parse_args(words)
    if unknown := [name for name in options.names if name not in TARGETS]:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(TARGETS)}")
    if options.replay and len(options.names) != 1:
        parser.error("--replay needs the name of one target")
    if options.seconds < 1:
        parser.error("--seconds must be a whole number above 0")
    return options


def _replay(name: str, file: Path) -> int:
    try:
        data = file.read_bytes()
    except OSError as error:
        print(f"cannot read {file}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        TARGETS[name](data)
    except Exception:  # noqa: BLE001  any exception is a finding
        print(traceback.format_exc())
        return 1
    print(f"{name} handles {file} correctly")
    return 0


def _fuzz(name: str, seconds: int, crashes: Path) -> bool:
    """Fuzz one target; return whether nothing was found."""
    folder = crashes.resolve() / name
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as new:
        limits = [
            f"-max_total_time={seconds}",
            f"-timeout={_MAX_SECONDS_PER_INPUT}",
            f"-rss_limit_mb={_MAX_MEMORY_MIB}",
        ]
        words = [sys.executable, "-m", "tests.fuzz.drive", name, *limits, f"-artifact_prefix={folder}/", new]
        try:
            done = subprocess.run(
                [*words, str(CORPUS / name)], cwd=ROOT, capture_output=True, text=True, errors="replace",
                timeout=seconds + _SHUTDOWN_GRACE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{name}: did not end {_SHUTDOWN_GRACE_S} s after its time limit")
            return False
    found = sorted(set(folder.iterdir()) - before)
    if not found and done.returncode == 0:
        folder.rmdir() if not before else None
        runs = re.search(r"Done (\d+) runs", done.stderr)
        print(f"{name}: nothing found in {int(runs[1]) if runs else 0:,} inputs", flush=True)
        return True
    print(f"{name}: FOUND\n{_extract_traceback(done.stdout + done.stderr)}")
    for file in found:
        print(f"replay with: python -m tests.fuzz {name} --replay {file}", flush=True)
    return False


def _extract_traceback(output: str) -> str:
    """Return the traceback, or the end of the output if the input was too slow or took too much memory."""
    _, found, raised = output.partition(" === Uncaught Python exception: ===\n")
    return raised.partition("\n\n")[0] if found else output[-2000:].rstrip()


def main(words: Sequence[str]) -> int:
    """Fuzz the named targets one after the other; return the exit code."""
    options = _arguments(words)
    if options.replay:
        return _replay(options.names[0], options.replay)
    if importlib.util.find_spec("atheris") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        print(
            f"atheris is not installed: pip install '.[fuzz]'; without a build for Python {version}, "
            "`make test` still replays the corpus",
            file=sys.stderr,
        )
        return 2
    try:
        results = [_fuzz(name, options.seconds, options.crashes) for name in options.names or TARGETS]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
