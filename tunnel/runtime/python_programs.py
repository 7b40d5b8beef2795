"""Starts further Python processes of this program, which never import from the directory that the user is in.

``python -m`` puts the working directory first among the places to import from, and so does an empty or relative entry
of PYTHONPATH. A file ``queue.py`` in that directory would then be executed, with root's rights if root starts a daemon
there. ``-P`` (Python 3.11) prevents the first, a cleaned PYTHONPATH the second. ``-I`` would be simpler, but finds no
libraries that ``pip install --user`` or an absolute PYTHONPATH provide.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PROGRAM_ROOT: Final = str(Path(__file__).resolve().parents[2])
"""The directory from which this process has imported the program."""


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this program; use it with ``python_environment``."""
    return [sys.executable, "-P", "-m", module, *arguments]


def file_command(file: str) -> list[str]:
    """Return the command that runs a Python file of this program; use it with ``python_environment``."""
    return [sys.executable, "-P", file]


def python_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` with a PYTHONPATH without the working directory, or without the variable if none is left."""
    paths = import_paths(environ.get("PYTHONPATH", "").split(os.pathsep), sys.path, _working_directory())
    others = {name: value for name, value in environ.items() if name != "PYTHONPATH"}
    return {**others, "PYTHONPATH": os.pathsep.join(paths)} if paths else others


def import_paths(given: Sequence[str], current: Sequence[str], working_directory: str) -> list[str]:
    """Return the entries for PYTHONPATH of a child.

    ``given`` are the entries of our own PYTHONPATH, ``current`` is ``sys.path``. The directory of this program stays
    even if it is the working directory: a checkout has to run without an installation. It is added where it is in front
    of the standard library; everywhere else the child finds it as this process did.
    """
    library = str(Path(os.__file__).parent)
    explicit = current[: current.index(library)] if library in current else current
    paths = [_PROGRAM_ROOT] if _PROGRAM_ROOT in map(os.path.realpath, explicit) else []
    for entry in given:
        is_safe = Path(entry).is_absolute() and os.path.realpath(entry) != working_directory
        if is_safe and os.path.realpath(entry) not in paths:
            paths.append(entry)
    return paths


def _working_directory() -> str:
    try:
        return os.path.realpath(Path.cwd())
    except OSError:  # it was removed
        return ""
