from __future__ import annotations

import os
import resource

import pytest

from tests.support.engine_parts import no_descriptor_leak
from tunnel.runtime import splice
from tunnel.runtime.splice import Pipes


def test_an_empty_pipe_is_kept_and_lent_again() -> None:
    with no_descriptor_leak():
        pipes = Pipes()
        pipe = pipes.take()
        assert pipe is not None
        assert pipe.size >= 4096
        pipes.give_back(pipe)
        assert pipes.take() is pipe
        pipes.give_back(pipe)
        pipes.close()


def test_a_pipe_with_bytes_in_it_is_read_by_nobody_else() -> None:
    with no_descriptor_leak():
        pipes = Pipes()
        pipe = pipes.take()
        assert pipe is not None
        pipe.held = os.write(pipe.inlet, b"somebody's")
        pipes.give_back(pipe)
        other = pipes.take()
        assert other is not None
        with pytest.raises(BlockingIOError):
            os.read(other.outlet, 1)
        pipes.give_back(other)
        pipes.close()


def test_few_are_kept_and_not_too_many_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "_KEPT", 2)
    monkeypatch.setattr(splice, "_AT_ONCE", 5)
    with no_descriptor_leak():
        pipes = Pipes()
        lent = [pipe for _ in range(8) if (pipe := pipes.take())]
        assert len(lent) == 5
        for pipe in lent:
            pipes.give_back(pipe)
        assert len(pipes._free) == 2
        pipes.close()


def test_without_descriptors_or_a_kernel_that_can_there_is_no_pipe() -> None:
    with no_descriptor_leak():
        pipes = Pipes()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            assert pipes.take() is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        pipe = pipes.take()
        assert pipe is not None
        pipes.give_back(pipe)
        pipes.close()
        pipes.usable = False
        assert pipes.take() is None
