"""Pipes through which the kernel moves bytes between two sockets without copying them (splice(2))."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

PIPE_SIZE: Final = 1 << 20
"""Bytes wished for a pipe. The kernel grants an unprivileged user 64 of this size, then smaller ones (pipe(7))."""

FLAGS: Final = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)
"""Never SPLICE_F_MORE: it holds back the last bytes of an answer for 200 ms."""

UNABLE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
"""Errors that speak of splicing itself. Any other speaks of the socket, and the kernel tells it only once."""

_KEPT: Final = 16  # empty pipes kept for the next one; a relay holds one only while bytes are in it or move
_AT_ONCE: Final = 256


class Pipe:
    """One pipe, and how many bytes are in it."""

    __slots__ = ("held", "inlet", "outlet", "size")

    def __init__(self) -> None:
        self.outlet, self.inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with contextlib.suppress(OSError):  # over the user's quota: the pipe works at its present size
            fcntl.fcntl(self.inlet, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.size = fcntl.fcntl(self.inlet, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Give both descriptors back."""
        os.close(self.outlet)
        os.close(self.inlet)


class Pipes:
    """All pipes of a process: lent while bytes move, empty ones kept for the next relay."""

    def __init__(self, ceiling: int | None = None) -> None:
        """``ceiling``: the first descriptor that no pipe shall have, because others need it more."""
        self._ceiling = ceiling
        self.usable = hasattr(os, "splice")
        """turns False when the kernel says that it cannot splice here"""
        self._free: list[Pipe] = []
        self._lent = 0

    def take(self) -> Pipe | None:
        """An empty pipe, or None where there is none to be had: then bytes are copied."""
        if self._free:
            self._lent += 1
            return self._free.pop()
        if not self.usable or self._lent >= _AT_ONCE:
            return None
        try:
            pipe = Pipe()
        except OSError:  # no descriptors left
            return None
        if self._ceiling is not None and pipe.inlet >= self._ceiling:
            pipe.close()
            return None
        self._lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back. One with bytes in it is destroyed: nobody else may ever read them."""
        self._lent -= 1
        if pipe.held or len(self._free) >= _KEPT:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the empty ones; lent ones are closed by those who hold them, through ``give_back``."""
        while self._free:
            self._free.pop().close()
