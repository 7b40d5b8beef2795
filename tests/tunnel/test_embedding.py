"""The public interface is complete, and the example of docs/embedding.md runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tunnel import api

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "embedding.md"


def test_every_public_name_exists() -> None:
    assert all(hasattr(api, name) for name in api.__all__)
    assert api.__all__ == sorted(api.__all__)


def test_the_example_serves_a_visitor_and_ends() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for port in ("10101", "8080", "3000"):
        program = program.replace(port, str(free_port()))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=2 * GUARD_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hello, visitor\nbytes to visitors: 15\n" in done.stdout
