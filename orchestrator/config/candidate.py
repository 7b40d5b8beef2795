"""A candidate: the text that may take the place of the running file. It is checked as if it stood there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config.faults import ConfigError, Fault


@dataclass(frozen=True, slots=True)
class Candidate:
    """The text of a configuration. Relative file names in it start at the running file's directory."""

    content: bytes
    name: str
    """what faults call it"""

    def relocate(self, error: ConfigError, path: Path) -> ConfigError:
        """Return an error whose faults in the file ``path`` are in the candidate."""
        shown = Path(self.name)
        faults = [
            Fault(replace(fault.place, path=shown), fault.message) if fault.place.path == path else fault
            for fault in error.faults
        ]
        return ConfigError(faults)
