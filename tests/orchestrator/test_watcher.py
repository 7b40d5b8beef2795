"""The watcher notices every way to change a file, and reloads for nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest

from orchestrator.config import file_set
from orchestrator.config.faults import ConfigError
from orchestrator.config.file_set import (
    MISSING,
    FileSet,
    StuckFileError,
    check_none_stuck,
    is_open_for_writing,
    run_in_file_thread,
)
from orchestrator.config.load import load
from orchestrator.supervisor import directory_hints, watcher
from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.watcher import watch_files
from tests.support.scale import time_allowed
from tests.support.waiting import wait_until_async
from tunnel.model.files import noted_access
from tunnel.runtime.blocking_calls import ThreadShortageError

PROMPT = time_allowed(1.0)
"""Seconds from the save to the reload."""


class Reader:
    """Reads the file when it is called, as a supervisor does."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.bus = EventBus()
        self.texts: list[str] = []
        self.seen = FileSet(path=file)
        self.read()

    def read(self) -> None:
        try:
            self.seen = load(self.file, {}).sources
        except ConfigError as error:
            self.seen = error.sources or self.seen

    async def reload(self) -> None:
        self.read()
        self.texts.append(self.file.read_text() if self.file.exists() else "")

    def sources(self) -> FileSet:
        return self.seen


def text(number: int) -> str:
    return f"version: 1\ntunnels:\n  web: server://127.0.0.1:{number}/127.0.0.1:80\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/tunnels.yaml").write_text(text(1))
    return tmp_path / "etc"


@pytest.fixture
async def reader(folder: Path) -> AsyncIterator[Reader]:
    reader = Reader(folder / "tunnels.yaml")
    async with watch_files(reader.sources, reader.reload, reader.bus):
        await asyncio.sleep(0.1)  # that it is watch_files already makes the test sharper, not slower
        yield reader


def rename_over(file: Path) -> None:
    """As vim and most editors do: a backup, a new file, the new one under the old name."""
    new = file.with_name("4913")
    new.write_text(text(2))
    file.rename(file.with_name("tunnels.yaml~"))
    new.rename(file)


def write_in_place(file: Path) -> None:
    file.write_text(text(2))


def replace(file: Path) -> None:
    new = file.with_name("sedXYZ")
    new.write_text(text(2))
    new.replace(file)


def replace_from_elsewhere(file: Path) -> None:
    new = file.parent.parent / "new.yaml"
    new.write_text(text(2))
    shutil.move(new, file)


def delete_and_write(file: Path) -> None:
    file.unlink()
    file.write_text(text(2))


@pytest.mark.parametrize(
    "save",
    [rename_over, write_in_place, replace, replace_from_elsewhere, delete_and_write],
    ids=lambda save: save.__name__,
)
async def test_every_way_to_save_is_seen_at_once(reader: Reader, save: Callable[[Path], None]) -> None:
    save(reader.file)
    await wait_until_async(lambda: reader.texts == [text(2)], within=PROMPT)


async def test_unchanged_content_causes_no_reload(reader: Reader) -> None:
    reader.file.write_text(text(1))
    os.utime(reader.file)
    rename_over(reader.file)
    reader.file.write_text(text(1))
    await asyncio.sleep(1.0)
    assert reader.texts == []


async def test_twenty_saves_in_two_seconds_end_with_the_last(reader: Reader) -> None:
    pauses, before = 0, time.monotonic()
    for number in range(100, 120):
        reader.file.write_text(text(number))
        await asyncio.sleep(0.1)
        pauses += time.monotonic() - before > watcher._STABLE_AFTER_S
        before = time.monotonic()
    await wait_until_async(lambda: reader.texts[-1:] == [text(119)], within=PROMPT)
    assert len(reader.texts) <= 5 + pauses, "a machine that is held up between two saves makes each of them a whole one"
    tasks = len(asyncio.all_tasks())
    await asyncio.sleep(0.5)
    assert len(asyncio.all_tasks()) <= tasks


async def test_a_deleted_file_and_its_return_cause_reloads(reader: Reader) -> None:
    reader.file.unlink()
    await wait_until_async(lambda: reader.texts == [""], within=PROMPT)
    assert reader.seen.files == {reader.file: MISSING}
    reader.file.write_text(text(2))
    await wait_until_async(lambda: reader.texts == ["", text(2)], within=PROMPT)


async def test_a_file_that_is_being_written_is_not_read(reader: Reader) -> None:
    with reader.file.open("w") as stream:
        stream.write(text(2))
        stream.flush()
        assert is_open_for_writing(reader.file)
        await asyncio.sleep(1.5)
        assert reader.texts == []
        stream.write("  more: server://127.0.0.1:5/127.0.0.1:80\n")
    await wait_until_async(lambda: reader.texts, within=PROMPT)
    assert "more" in reader.texts[0]


def replace_folder(folder: Path) -> None:
    new = folder.with_name("new")
    new.mkdir()
    (new / "tunnels.yaml").write_text(text(2))
    folder.rename(folder.with_name("old"))
    new.rename(folder)


async def test_a_replaced_directory_is_watched_again(reader: Reader, folder: Path) -> None:
    replace_folder(folder)
    await wait_until_async(lambda: reader.texts == [text(2)], within=time_allowed(4.0))
    (folder / "tunnels.yaml").write_text(text(3))
    await wait_until_async(lambda: reader.texts == [text(2), text(3)], within=PROMPT)


async def test_included_files_are_watched_when_they_appear_change_and_disappear(tmp_path: Path) -> None:
    (tmp_path / "tunnels.d").mkdir()
    file = tmp_path / "tunnels.yaml"
    file.write_text("version: 1\ninclude: [tunnels.d/*.yaml, more.yaml]\n")
    reader = Reader(file)  # more.yaml is missing: an error that its coming mends
    async with watch_files(reader.sources, reader.reload, reader.bus):
        for name in ("more.yaml", "tunnels.d/a.yaml"):
            (tmp_path / name).write_text(f"tunnels: {{{name[-6:-5]}: 'client://127.0.0.1:1/127.0.0.1:80'}}")
            await wait_until_async(lambda name=name: tmp_path / name in reader.seen.files, within=time_allowed(2.5))  # type: ignore[misc]  # of a default
        before = reader.seen
        (tmp_path / "tunnels.d/a.yaml").write_text("tunnels: {a: 'client://127.0.0.1:2/127.0.0.1:80'}")
        await wait_until_async(lambda: reader.seen != before, within=PROMPT)
        (tmp_path / "tunnels.d/a.yaml").unlink()
        await wait_until_async(lambda: tmp_path / "tunnels.d/a.yaml" not in reader.seen.files, within=PROMPT)


async def test_a_key_file_is_watched_too(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("one")
    file = tmp_path / "tunnels.yaml"
    file.write_text(text(1).rstrip() + "?key_file=secret/key\n")
    reader = Reader(file)
    async with watch_files(reader.sources, reader.reload, reader.bus):
        await asyncio.sleep(0.1)
        (tmp_path / "secret/key").write_text("two")
        await wait_until_async(lambda: reader.texts, within=PROMPT)


def swap_data(folder: Path, number: int) -> None:
    """As the kubelet updates a ConfigMap."""
    version = folder / f"..2026_{number}"
    version.mkdir()
    (version / "tunnels.yaml").write_text(text(number))
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    old = (folder / "..data").readlink() if (folder / "..data").is_symlink() else None
    link.rename(folder / "..data")
    if old is not None:
        shutil.rmtree(folder / old)


async def test_swapped_symbolic_links_cause_a_reload(tmp_path: Path) -> None:
    swap_data(tmp_path, 1)
    file = tmp_path / "tunnels.yaml"
    file.symlink_to("..data/tunnels.yaml")
    reader = Reader(file)
    async with watch_files(reader.sources, reader.reload, reader.bus):
        await asyncio.sleep(0.1)
        for number in (2, 3):
            swap_data(tmp_path, number)
            await wait_until_async(lambda number=number: reader.texts[-1:] == [text(number)], within=PROMPT)  # type: ignore[misc]  # of a default


async def test_without_hints_of_the_kernel_the_content_is_polled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no inotify watch is left")

    monkeypatch.setattr(watcher, "DirectoryHints", refuse)
    reader = Reader(folder / "tunnels.yaml")
    async with watch_files(reader.sources, reader.reload, reader.bus):
        for number in (2, 3):
            reader.file.write_text(text(number))
            await wait_until_async(lambda number=number: reader.texts[-1:] == [text(number)], within=PROMPT)  # type: ignore[misc]  # of a default
    warned = [event.text for event in reader.bus.events_of("")]
    assert len(warned) == 1
    assert "no inotify watch is left" in warned[0]


async def test_without_a_thread_the_file_is_read_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = file_set.run_in_file_thread
    is_short = True

    async def run_in_file_thread(work: Callable[[], object]) -> object:
        if is_short:
            raise ThreadShortageError("reading files")
        return await real(work)

    monkeypatch.setattr(watcher, "run_in_file_thread", run_in_file_thread)
    reader = Reader(folder / "tunnels.yaml")
    async with watch_files(reader.sources, reader.reload, reader.bus):
        reader.file.write_text(text(2))
        await wait_until_async(lambda: reader.bus.events_of(""), within=PROMPT)
        is_short = False
        await wait_until_async(lambda: reader.texts == [text(2)], within=2 * PROMPT)
    (warning,) = reader.bus.events_of("")
    assert warning.text.startswith("the file is not read at present: this process may start no further thread for")


async def test_without_threads_for_the_library_it_is_not_started_and_the_file_is_polled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        if self.name == "thread check":
            raise RuntimeError("can't start new thread")
        real(self)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the library was started")

    real = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(directory_hints, "awatch", fail)
    reader = Reader(folder / "tunnels.yaml")
    async with watch_files(reader.sources, reader.reload, reader.bus):
        reader.file.write_text(text(2))
        await wait_until_async(lambda: reader.texts == [text(2)], within=PROMPT)
    (warning,) = reader.bus.events_of("")
    assert "may start too few threads for that; raise its pids limit" in warning.text


async def test_an_error_of_the_library_leads_to_polling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> AsyncIterator[None]:
        for change in list[None]():
            yield change
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(directory_hints, "awatch", refuse)
    reader = Reader(folder / "tunnels.yaml")
    async with watch_files(reader.sources, reader.reload, reader.bus):
        reader.file.write_text(text(2))
        await wait_until_async(lambda: reader.texts == [text(2)], within=PROMPT)
    (warning,) = reader.bus.events_of("")
    assert "limit reached" in warning.text


async def test_a_crash_of_a_reload_does_not_end_the_watch(folder: Path) -> None:
    reader = Reader(folder / "tunnels.yaml")
    asked: list[int] = []

    async def reload() -> None:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("unexpected")
        await reader.reload()

    async with watch_files(reader.sources, reload, reader.bus):
        reader.file.write_text(text(2))
        await wait_until_async(lambda: asked, within=PROMPT)
        reader.file.write_text(text(3))
        await wait_until_async(lambda: reader.texts == [text(3)], within=PROMPT)
    assert "unexpected" in reader.bus.events_of("")[0].text


def test_the_directories_of_all_links_are_watched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "real/tunnels.yaml").write_text(text(1))
    (tmp_path / "links/b.yaml").symlink_to("../real/tunnels.yaml")
    (tmp_path / "a.yaml").symlink_to("links/b.yaml")
    sources = load(tmp_path / "a.yaml", {}).sources
    assert {path.resolve() for path in sources.directories()} == {tmp_path, tmp_path / "real", tmp_path / "links"}
    assert sources.refresh() == sources


def test_circular_links_count_as_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "a.yaml", {})
    sources = caught.value.sources
    assert sources is not None
    assert sources.refresh() == sources
    assert sources.directories() == {tmp_path}


async def test_equal_content_is_loaded_again_after_a_load_that_did_not_end(reader: Reader) -> None:
    reader.file.write_text(text(2))
    await wait_until_async(lambda: reader.texts == [text(2)], within=PROMPT)
    reader.seen = replace_fields(reader.seen, is_unread=True)
    reader.file.touch()
    await wait_until_async(lambda: reader.texts == [text(2)] * 2, within=PROMPT)


async def test_a_file_system_that_does_not_answer_is_an_error_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_set, "ACCESS_TIMEOUT_S", 0.05)
    answer = threading.Event()

    def read() -> None:
        with noted_access("/mnt/key"):
            answer.wait()

    try:
        with pytest.raises(StuckFileError, match=r"its file system has not answered for 0\.05 s: /mnt/key"):
            await run_in_file_thread(read)
    finally:
        answer.set()


async def test_the_watcher_reads_nothing_while_a_file_system_hangs(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tunnel.model.files.find_stuck_access", lambda _: "/mnt/key")
        with pytest.raises(StuckFileError):
            check_none_stuck()
        reader.file.write_text(text(1))  # a hint
        await wait_until_async(lambda: any("/mnt/key" in event.text for event in reader.bus.events_of("")))
        reader.file.write_text(text(2))  # not before: a scan that began earlier would read it
        patch.setattr(watcher, "run_in_file_thread", None)  # a read would raise another error
        await asyncio.sleep(2 * watcher._POLL_INTERVAL_S)
        assert reader.texts == []
        assert len(reader.bus.events_of("")) == 1
    await wait_until_async(lambda: reader.texts == [text(2)], within=time_allowed(2.0))


def test_a_directory_that_cannot_be_examined_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "tunnels.yaml").write_text("")
    files = FileSet(path=tmp_path / "tunnels.yaml", patterns=(f"{'x' * 300}/*.yaml",), files={tmp_path / "t": MISSING})
    assert files.directories() == {tmp_path}
