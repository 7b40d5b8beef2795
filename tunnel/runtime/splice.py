"""Pipes through which the kernel moves bytes between two sockets without copying them (splice(2))."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

PIPE_SIZE: Final = 1 << 20
"""Bytes requested for a pipe. The kernel grants an unprivileged user 64 of this size, then smaller ones (pipe(7))."""

FLAGS: Final = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)
"""Never SPLICE_F_MORE: it delays the last bytes of an answer by 200 ms."""

UNSUPPORTED_ERRNOS: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EACCES})
"""Errors about splicing as such: the kernel cannot do it, or a security policy (SELinux, seccomp) denies it."""
SHORTAGE_ERRNOS: Final = frozenset({errno.ENOMEM, errno.ENFILE, errno.ENOBUFS})
"""Errors about splicing now. Any other error belongs to the socket, and the kernel reports it only once."""

_MAX_IDLE_PIPES: Final = 16  # empty pipes kept for reuse; a relay holds a pipe only while bytes are in it or move
_MAX_PIPES_IN_USE: Final = 256


class Pipe:
    """One pipe, and the number of bytes in it."""

    __slots__ = ("buffered", "read_fd", "write_fd")

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.buffered = 0
        with contextlib.suppress(OSError):  # over the user's quota: the pipe works at its present size
            fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def read_buffered(self) -> bytes:
        """Take the bytes out of the pipe, so that they can be sent without splicing."""
        parts: list[bytes] = []
        while self.buffered:
            parts.append(os.read(self.read_fd, self.buffered))
            self.buffered -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Close both descriptors of the pipe."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """All pipes of a process: in use while bytes move, empty ones kept for the next relay."""

    def __init__(
        self,
        fd_ceiling: int | None = None,
        *,
        max_idle: int = _MAX_IDLE_PIPES,
        max_in_use: int = _MAX_PIPES_IN_USE,
    ) -> None:
        """``fd_ceiling``: the first descriptor number that a pipe must not use, because others need it more."""
        self._fd_ceiling = fd_ceiling
        self._max_idle = max_idle
        self._max_in_use = max_in_use
        self.can_splice = hasattr(os, "splice")
        """turns False when the kernel reports that it cannot splice here"""
        self._idle: list[Pipe] = []
        self.in_use = 0
        """pipes that relays hold at this moment"""

    def acquire(self) -> Pipe | None:
        """Return an empty pipe, or None if none is available: then bytes are copied."""
        if self._idle:
            self.in_use += 1
            return self._idle.pop()
        if not self.can_splice or self.in_use >= self._max_in_use:
            return None
        try:
            pipe = Pipe()
        except OSError:  # no descriptors left
            return None
        if self._fd_ceiling is not None and pipe.write_fd >= self._fd_ceiling:
            pipe.close()
            return None
        self.in_use += 1
        return pipe

    def release(self, pipe: Pipe) -> None:
        """Return a pipe to the pool. A pipe with bytes in it is closed: no other relay may ever read them."""
        self.in_use -= 1
        if pipe.buffered or len(self._idle) >= self._max_idle:
            pipe.close()
        else:
            self._idle.append(pipe)

    def is_splice_error(self, error: OSError) -> bool:
        """Whether an error is about splicing and not about the socket: then the relay copies.

        Where the kernel cannot splice at all, no relay of this process tries again.
        """
        if error.errno in UNSUPPORTED_ERRNOS:
            self.can_splice = False
            return True
        return error.errno in SHORTAGE_ERRNOS

    def close(self) -> None:
        """Close the idle pipes; a pipe in use is closed by the relay that holds it, through ``release``."""
        while self._idle:
            self._idle.pop().close()
