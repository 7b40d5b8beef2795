"""Schemathesis generates valid and invalid requests from the OpenAPI document; every answer must match it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.scale import IS_FULL_SCALE
from tests.support.shell import COMMAND_TIMEOUT_S, CommandShell

TOKEN = "0123456789abcdef-and-more"
FILE = """version: 1
supervisor: {{api: {{listen: '127.0.0.1:{port}', token_file: token}}}}
tunnels:
  web: client://127.0.0.1:9/127.0.0.1:1
  "odd [name]": {{url: client://127.0.0.1:9/127.0.0.1:1, tags: [x]}}
"""
TOOL = shutil.which("schemathesis", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(not IS_FULL_SCALE or TOOL is None, reason="slow: runs with NODEPASS_TEST_SCALE=full")
def test_every_answer_matches_the_document(tmp_path: Path) -> None:
    shell = CommandShell(tmp_path)
    port = free_port()
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "tunnels.yaml").write_text(FILE.format(port=port))
    with shell.running("up", "--no-tui"):
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while shell.run("ps").returncode == 4:
            assert time.monotonic() < deadline
        assert TOOL is not None
        done = subprocess.run(
            [TOOL, "run", f"http://127.0.0.1:{port}/openapi.json", "-H", f"Authorization: Bearer {TOKEN}",
             "--exclude-path-regex", "shutdown", "--request-timeout", "2", "--max-examples", "20"],
            check=False, capture_output=True, text=True, timeout=600, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, re.sub(r"(?s)^.*?(=+ FAILURES)", r"\1", done.stdout)
        assert json.loads(shell.run("ps", "--json").stdout)["tunnels"], "the daemon still runs"
