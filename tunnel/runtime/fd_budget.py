"""How many descriptors this process may have, and who goes without when they run short.

Visitors come last: what serves those who are here already (their data connections and targets), and what lets people
see and steer (the file, the local API, the broker), must find a descriptor when the table is all but full.
"""

from __future__ import annotations

import os
import resource
from typing import Final, Protocol

_LEAST_SPARE: Final = 32
_MOST_SPARE: Final = 512


class Promiser(Protocol):
    """Somebody who has taken on what will need more descriptors."""

    @property
    def promised(self) -> int:
        """How many: one for each visitor that waits for a data connection, or data connection that waits for one."""


class Descriptors:
    """One per reactor. Judges by the number of a descriptor just opened: the kernel gives the lowest that is free."""

    def __init__(self, probe: int) -> None:
        self.limit: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.ceiling: Final = self.limit - _spare(self.limit)
        """the first that is not for visitors"""
        self.promisers: set[Promiser] = set()
        self._probe = probe

    def are_scarce(self, fd: int) -> bool:
        """Whether, with ``fd`` the last one opened, no other visitor should be taken on."""
        if 2 * fd < self.ceiling:  # nobody promises more than one for each that he has
            return False
        return fd + sum(promiser.promised for promiser in self.promisers) >= self.ceiling

    def are_scarce_now(self) -> bool:
        """The same, of this moment."""
        try:
            fd = os.dup(self._probe)
        except OSError:
            return True
        os.close(fd)
        return self.are_scarce(fd)

    def __str__(self) -> str:
        """Why somebody has to go without, as the end of a sentence."""
        return (
            f"this process may have {self.limit} file descriptors and has almost none left; "
            "raise the limit (ulimit -Hn, or LimitNOFILE= of its service)"
        )


def _spare(limit: int) -> int:
    return min(max(limit // 8, _LEAST_SPARE), limit // 3, _MOST_SPARE)
