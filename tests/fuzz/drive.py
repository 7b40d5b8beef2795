"""One target under atheris, in a process of its own: ``python -m tests.fuzz.drive NAME [libFuzzer's arguments]``."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # optional, and without types

with atheris.instrument_imports(include=["tunnel", "orchestrator"]):
    from tests.fuzz.targets import LONGEST, TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name = sys.argv[1]
    atheris.Setup([sys.argv[0], f"-max_len={LONGEST[name]}", *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
