"""Run one target under atheris: ``python -m tests.fuzz.drive NAME [arguments of libFuzzer]``."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # an optional dependency without types

with atheris.instrument_imports(include=["tunnel", "orchestrator"]):
    from tests.fuzz.targets import MAX_INPUT_BYTES, TARGETS


def main() -> None:
    """Run the fuzzer; libFuzzer ends the process."""
    name = sys.argv[1]
    atheris.Setup([sys.argv[0], f"-max_len={MAX_INPUT_BYTES[name]}", *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
