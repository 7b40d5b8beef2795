import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.bench.processes import BenchError, is_listening, run_and_read, run_process
from tests.support.ports import free_ports
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until

CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {CHILD!r}]).pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_no_process_of_the_group_outlives_the_block(tmp_path: Path) -> None:
    async with run_process("parent", (sys.executable, "-c", PARENT), directory=tmp_path) as parent:
        wait_until(lambda: parent.log.read_text().endswith("\n"))
        child = int(parent.log.read_text())
        assert is_alive(child)
        assert parent.rss_bytes() > 1_000_000
        assert parent.cpu_seconds() >= 0
    wait_until(lambda: not is_alive(child))
    assert parent.process.returncode is not None


async def test_a_cancelled_block_leaves_no_process(tmp_path: Path) -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def format_section() -> None:
        async with run_process("sleep", ("sleep", "60"), directory=tmp_path) as sleeper:
            started.set_result(sleeper.process.pid)
            await asyncio.Event().wait()

    task = asyncio.create_task(format_section())
    pid = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until(lambda: not is_alive(pid))


async def test_an_early_end_is_reported_with_the_last_output(tmp_path: Path) -> None:
    async with run_process("brief", ("sh", "-c", "echo port in use >&2; exit 3"), directory=tmp_path) as brief:
        await brief.process.wait()
        with pytest.raises(BenchError, match="brief ended with code 3: port in use"):
            brief.check()


async def test_a_program_that_cannot_start_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="x cannot be started: No such file"):
        async with run_process("x", ("/no/such",), directory=tmp_path):
            pass


async def test_output_is_returned_within_the_time_limit() -> None:
    assert await run_and_read(("sh", "-c", "echo out; echo err >&2; exit 1"), limit_s=GUARD_S) == "out\nerr\n"
    with pytest.raises(BenchError, match="sleep did not end within 0 s"):
        await run_and_read(("sleep", "60"), limit_s=0.05)


def test_free_ports_do_not_repeat_and_are_below_the_ephemeral_range() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [*free_ports(1000), *free_ports(1000)]
    assert len(set(ports)) == 2000
    assert max(ports) < lowest


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listener_is_detected_without_connecting(family: socket.AddressFamily) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError as error:
            pytest.skip(f"no loopback of this family: {os.strerror(error.errno or 0)}")
        port = listener.getsockname()[1]
        assert not is_listening(port)
        listener.listen()
        assert is_listening(port)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
