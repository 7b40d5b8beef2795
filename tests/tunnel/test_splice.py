from __future__ import annotations

import errno
import os
import resource

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tunnel.runtime.splice import PipePool


def test_an_empty_pipe_is_kept_and_reused() -> None:
    with no_descriptor_leak():
        pipes = PipePool()
        pipe = pipes.acquire()
        assert pipe is not None
        pipes.release(pipe)
        assert pipes.acquire() is pipe
        pipes.release(pipe)
        pipes.close()


def test_a_pipe_with_bytes_in_it_is_never_reused() -> None:
    with no_descriptor_leak():
        pipes = PipePool()
        pipe = pipes.acquire()
        assert pipe is not None
        pipe.buffered = os.write(pipe.write_fd, b"leftover")
        pipes.release(pipe)
        other = pipes.acquire()
        assert other is not None
        with pytest.raises(BlockingIOError):
            os.read(other.read_fd, 1)
        pipes.release(other)
        pipes.close()


def test_few_idle_pipes_are_kept_and_the_number_in_use_is_limited() -> None:
    with no_descriptor_leak():
        pipes = PipePool(max_idle=2, max_in_use=5)
        acquired = [pipe for _ in range(8) if (pipe := pipes.acquire())]
        assert len(acquired) == 5
        for pipe in acquired:
            pipes.release(pipe)
        assert len(pipes._idle) == 2
        pipes.close()


def test_there_is_no_pipe_without_descriptors_or_kernel_support() -> None:
    with no_descriptor_leak():
        pipes = PipePool()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            assert pipes.acquire() is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        pipe = pipes.acquire()
        assert pipe is not None
        pipes.release(pipe)
        pipes.close()
        assert pipes.is_splice_error(OSError(errno.ENOSYS, "not here"))
        assert pipes.acquire() is None
