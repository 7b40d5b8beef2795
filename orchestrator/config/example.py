"""The file that messages show as an example."""

from __future__ import annotations

from typing import Final

SMALLEST_FILE: Final = '{version: 1, tunnels: {web: "server://127.0.0.1:10101/127.0.0.1:8080"}}'
"""One line that is a complete file; a test loads it."""
