from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from tests.support.waiting import wait_until_async
from tunnel.runtime.blocking_calls import BlockingCalls, ThreadShortageError

GUARD_S = 10.0


async def test_a_call_gives_its_result_and_its_exception_to_the_caller() -> None:
    calls = BlockingCalls("tests", 1)
    assert await calls.run(lambda: 7) == 7
    with pytest.raises(KeyError):
        await calls.run(lambda: dict[str, int]()["absent"])


async def test_no_more_threads_than_allowed_work_at_once_and_every_call_is_served() -> None:
    calls = BlockingCalls("tests", 3)
    lock, gate = threading.Lock(), threading.Event()
    running = most = 0

    def work() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(GUARD_S)
        with lock:
            running -= 1
        return threading.get_ident()

    tasks = [asyncio.create_task(calls.run(work)) for _ in range(20)]
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(lambda: most == 3, "three threads work")
        gate.set()
        threads = set(await asyncio.gather(*tasks))
    assert most == 3
    assert len(threads) <= 3


async def test_a_cancelled_caller_does_not_wait_for_its_call() -> None:
    calls = BlockingCalls("tests", 1)
    gate, is_running = threading.Event(), threading.Event()

    def block() -> None:
        is_running.set()
        gate.wait(GUARD_S)

    task = asyncio.create_task(calls.run(block))
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(is_running.is_set, "the call runs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        assert await calls.run(lambda: "next") == "next"


async def test_an_idle_thread_ends_and_a_later_call_gets_another() -> None:
    calls = BlockingCalls("tests", 1, idle_lifetime_s=0.01)
    first = await calls.run(threading.current_thread)
    async with asyncio.timeout(GUARD_S):
        await wait_until_async(lambda: not first.is_alive(), "the idle thread has ended")
    second = await calls.run(threading.current_thread)
    assert second is not first


async def test_a_call_that_is_cancelled_while_it_waits_is_never_made() -> None:
    calls, release, made = BlockingCalls("tests", 1), threading.Event(), list[int]()
    first = asyncio.ensure_future(calls.run(release.wait))
    second = asyncio.ensure_future(calls.run(lambda: made.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    release.set()
    await first
    await calls.run(lambda: made.append(3))
    assert made == [3]


async def test_a_refused_thread_is_an_error_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    calls = BlockingCalls("name lookups", 2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ThreadShortageError, match=r"no further thread for name lookups; raise its pids limit"):
            await calls.run(lambda: 1)
    assert await calls.run(lambda: 2) == 2


def test_the_process_ends_while_a_call_still_blocks() -> None:
    program = """
import asyncio, threading
from tunnel.runtime.blocking_calls import BlockingCalls
async def main():
    asyncio.create_task(BlockingCalls("tests", 1).run(threading.Event().wait))
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=GUARD_S, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_process_ends_while_the_default_executor_still_blocks() -> None:
    program = """
import asyncio, threading
from tunnel.runtime.blocking_calls import UnjoinedExecutor
async def main():
    loop = asyncio.get_running_loop()
    loop.set_default_executor(UnjoinedExecutor(2))
    assert await asyncio.to_thread(lambda: 5) == 5
    loop.run_in_executor(None, threading.Event().wait)
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=GUARD_S, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
