"""The command ``python -m tests.soak``: verdict on stdout, progress on stderr, exit code 0 if nothing was wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.soak import report
from tests.soak.run import Soak
from tests.support import namespaces


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0.05 <= minutes <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes from 0.05 to 10000")
    return minutes


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Run tunnels under load and faults for a long time."
    )
    minutes = os.environ.get("SOAK_MINUTES") or "20"
    parser.add_argument(
        "--minutes", type=_minutes, default=minutes, help="minutes under load (default: SOAK_MINUTES, else 20)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="repeats the order of the faults")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("build/soak"),
        metavar="FOLDER",
        help="folder for the report (default: build/soak)",
    )
    return parser.parse_args(words)


@contextlib.contextmanager
def _own_host() -> Iterator[namespaces.Host | None]:
    """Move this process into a network namespace, if that is allowed: there a fault may change the firewall."""
    if namespaces.missing():
        yield None
        return
    host = namespaces.Host(f"np-soak-{os.getpid()}", {})
    try:
        with host.entered():
            yield host
    finally:
        host.close()


def main(words: Sequence[str]) -> int:
    """Run the soak; return the exit code."""
    options = _arguments(words)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background processes with SIGINT ignored
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()

    def report_progress(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    seconds = options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, _own_host() as host:
        daemon_directory = Path(directory) / "daemons"
        daemon_directory.mkdir()
        report_progress(f"seed {options.seed}")
        if host is None:
            report_progress(f"UDP is not blocked in this run: {namespaces.missing()}")
        soak = Soak(daemon_directory, options.seed, seconds, report_progress, host)
        record = soak.run()
        page = report.write(record, seconds, options.report)
        for log in daemon_directory.glob("*.stderr"):
            (options.report / f"{log.stem}.log").write_bytes(log.read_bytes())
    print(report.summary(record, seconds))
    print(f"report: {page}")
    return 0 if record.is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
