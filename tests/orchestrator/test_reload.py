"""Reloads: tunnels that did not change are not affected, and an invalid file is never applied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.config.file_set import StuckFileError
from orchestrator.config.load import load
from orchestrator.config.plan import EntryResult
from orchestrator.supervisor import reload
from orchestrator.supervisor.event_bus import EventBus
from orchestrator.supervisor.reload import ReloadResult
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import FakeEngine, FakeEngineFactory
from tests.support.engine_parts import pem
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.address import Address
from tunnel.model.options import SETTING_NAMES
from tunnel.model.spec import LogLevel
from tunnel.model.state import State

WEB = "server://127.0.0.1:1001/127.0.0.1:8001"
DB = "server://127.0.0.1:1002/127.0.0.1:8002"
OUT = "client://127.0.0.1:1003/127.0.0.1:8003"
START = {"web": WEB, "db": DB, "out": OUT}


class ReloadHarness:
    """A supervisor, its file, and engines without sockets."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tunnels.yaml"
        self.write(START)
        self.engines = FakeEngineFactory()
        self.bus = EventBus()
        self.supervisor = Supervisor(load(self.file, {}), engine_factory=self.engines, bus=self.bus)
        self.life = asyncio.create_task(self.supervisor.run())

    def write(self, tunnels: dict[str, str], more: str = "") -> None:
        """The file says this from now on."""
        lines = "".join(f"  {name}: {value}\n" for name, value in tunnels.items())
        self.file.write_text(f"version: 1\n{more}\ntunnels:\n{lines}")

    async def reload(self, tunnels: dict[str, str], more: str = "") -> ReloadResult:
        """Write the file and have it read again."""
        self.write(tunnels, more)
        return await self.supervisor.reload()

    def state(self, name: str) -> State:
        return self.supervisor.snapshot(name).state

    def engine(self, name: str) -> FakeEngine:
        return self.engines.last(name)

    def count_engines(self) -> dict[str, int]:
        """How many engines each tunnel has had."""
        return {name: len(made) for name, made in self.engines.made.items()}


def actions(answer: ReloadResult) -> dict[str, str]:
    return {name: result.action for name, result in answer.results.items()}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ReloadHarness]:
    harness = ReloadHarness(tmp_path)
    await wait_until_async(lambda: all(harness.state(name) is State.UP for name in START))
    yield harness
    harness.supervisor.close()
    await asyncio.wait_for(harness.life, GUARD_S)


async def test_only_changed_entries_get_another_engine(harness: ReloadHarness) -> None:
    others = {name: harness.engine(name) for name in ("db", "out")}
    answer = await harness.reload({**START, "web": WEB + "?tls=0"})
    assert (answer.generation, answer.is_ok, answer.fault) == (2, True, None)
    assert actions(answer) == {"web": "restarted", "db": "unchanged", "out": "unchanged"}
    assert answer.results["web"].changes == ("tls: 1 → 0",)
    await wait_until_async(lambda: harness.state("web") is State.UP)
    assert harness.count_engines() == {"web": 2, "db": 1, "out": 1}
    assert all(harness.engine(name) is engine and not engine.drained_with for name, engine in others.items())


async def test_the_old_engine_drains_beside_the_new_one_and_its_visitors_still_count(harness: ReloadHarness) -> None:
    old = harness.engine("web")
    old.visitor_left.clear()
    await harness.reload({**START, "web": WEB + "?tls=0"}, "supervisor: {drain_timeout: 7s}")
    await wait_until_async(lambda: harness.state("web") is State.UP)
    assert old.drained_with == [7.0]
    assert harness.supervisor.snapshot("web").connections.active == 1
    old.visitor_left.set()
    await wait_until_async(lambda: harness.supervisor.snapshot("web").connections.active == 0)


async def test_entries_are_added_and_removed(harness: ReloadHarness) -> None:
    gone = harness.engine("db")
    gone.visitor_left.clear()
    new = "client://127.0.0.1:1009/127.0.0.1:9"
    answer = await harness.reload({"new": new, "web": WEB, "out": OUT})
    assert actions(answer) == {"new": "added", "web": "unchanged", "out": "unchanged", "db": "removed"}
    assert answer.results["db"].detail == "1 visitor may finish"
    seen = [(s.name, s.state) for s in harness.supervisor.snapshots()]
    assert seen == [("new", State.UP), ("web", State.UP), ("out", State.UP), ("db", State.DRAINING)]
    gone.visitor_left.set()
    await wait_until_async(lambda: len(harness.supervisor.snapshots()) == 3)


async def test_settings_level_and_tags_reach_the_running_engine(harness: ReloadHarness) -> None:
    entry = f'{{url: "{WEB}", max_pool_capacity: 64, log: debug, tags: [prod]}}'
    answer = await harness.reload({**START, "web": entry})
    assert actions(answer)["web"] == "changed"
    assert harness.count_engines() == {"web": 1, "db": 1, "out": 1}
    assert [spec.settings.max_pool_capacity for spec in harness.engine("web").adopted] == [64]
    assert harness.supervisor.snapshot("web").tags == ("prod",)
    assert harness.supervisor.log_level("web") is LogLevel.DEBUG


async def test_an_engine_that_cannot_be_changed_is_reported_as_failed(harness: ReloadHarness) -> None:
    harness.engine("web").ignores_close = True
    answer = await harness.reload({**START, "web": WEB + "?log=debug", "db": DB + "?log=debug"})
    assert actions(answer) == {"web": "failed", "db": "changed", "out": "unchanged"}
    assert answer.is_ok is False
    harness.engine("web").ignores_close = False
    assert actions(await harness.supervisor.reload()) == {"web": "changed", "db": "unchanged", "out": "unchanged"}


async def test_an_entry_is_disabled_and_enabled_again(harness: ReloadHarness) -> None:
    harness.engine("web").visitor_left.clear()
    await harness.reload({**START, "web": f'{{url: "{WEB}", enabled: false}}'})
    assert harness.state("web") is State.DRAINING
    await harness.reload(START)  # while the last visitor is still there
    await wait_until_async(lambda: harness.state("web") is State.UP)
    assert harness.supervisor.snapshot("web").connections.active == 1
    await harness.reload({**START, "web": f'{{url: "{WEB}", enabled: false}}'})
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)
    assert harness.supervisor.snapshot("web").reason == "disabled in the file"


async def test_a_tunnel_stopped_by_command_stays_stopped_with_its_new_spec(harness: ReloadHarness) -> None:
    harness.supervisor.stop("web")
    await wait_until_async(lambda: harness.state("web") is State.STOPPED)
    answer = await harness.reload({**START, "web": WEB.replace("8001", "8801")})
    assert actions(answer)["web"] == "changed"
    assert harness.state("web") is State.STOPPED
    harness.supervisor.start("web")
    await wait_until_async(lambda: harness.state("web") is State.UP)
    assert harness.engine("web").spec.target.port == 8801


async def test_a_disabled_tunnel_that_was_started_by_command_is_restarted(harness: ReloadHarness) -> None:
    off = f'{{url: "{WEB}", enabled: false}}'
    await harness.reload({**START, "web": off})
    harness.supervisor.start("web")
    await wait_until_async(lambda: harness.state("web") is State.UP)
    answer = await harness.reload({**START, "web": off.replace("8001", "8801")})
    assert actions(answer)["web"] == "restarted"
    await wait_until_async(lambda: harness.state("web") is State.UP and harness.engine("web").spec.target.port == 8801)


async def test_a_failed_tunnel_is_started_again_when_its_entry_changes(harness: ReloadHarness) -> None:
    harness.engine("web").fail("the certificate is not one")
    await wait_until_async(lambda: harness.state("web") is State.FAILED)
    await harness.reload({**START, "web": WEB + "?tls=0"})
    await wait_until_async(lambda: harness.state("web") is State.UP)


async def test_a_port_that_is_taken_rejects_that_entry_alone(harness: ReloadHarness) -> None:
    harness.engines.ports[Address("127.0.0.1", 7777)] = "another process"
    changed = {**START, "web": WEB.replace("1001", "7777"), "db": DB + "?tls=0"}
    answer = await harness.reload(changed)
    assert actions(answer) == {"web": "rejected", "db": "restarted", "out": "unchanged"}
    assert answer.is_ok is False
    assert "cannot listen on 127.0.0.1:7777" in (answer.results["web"].detail or "")
    seen = harness.supervisor.snapshot("web")
    assert (seen.state, seen.tunnel_addr) == (State.UP, "127.0.0.1:1001")
    assert "cannot listen on 127.0.0.1:7777" in (seen.last_error or "")
    assert not harness.engine("web").drained_with or harness.engines.made["web"][0].state.state is State.UP

    again = await harness.supervisor.reload()
    assert (actions(again)["web"], again.generation) == ("rejected", answer.generation)
    del harness.engines.ports[Address("127.0.0.1", 7777)]
    assert actions(await harness.supervisor.reload()) == {"web": "restarted", "db": "unchanged", "out": "unchanged"}
    await wait_until_async(lambda: harness.supervisor.snapshot("web").tunnel_addr == "127.0.0.1:7777")


async def test_a_new_entry_whose_port_is_taken_is_reported_as_failed(harness: ReloadHarness) -> None:
    harness.engines.ports[Address("127.0.0.1", 7777)] = "another process"
    answer = await harness.reload({**START, "new": "server://127.0.0.1:7777/10.0.0.1:80?auth=open"})
    assert answer.results["new"] == EntryResult("failed", "address in use", ())


async def test_a_tunnel_that_never_got_its_port_is_replaced_nevertheless(harness: ReloadHarness) -> None:
    harness.engines.ports[Address("127.0.0.1", 7777)] = "another process"
    await harness.reload({**START, "new": "server://127.0.0.1:7777/10.0.0.1:80?auth=open"})
    answer = await harness.reload({**START, "new": '{url: "server://127.0.0.1:7777/10.0.0.1:80", key: other}'})
    assert answer.results["new"].action == "failed"
    assert harness.engine("new").spec.key is not None


@pytest.mark.parametrize("swapped", [("web", "db"), ("db", "web")])
async def test_ports_pass_from_one_entry_to_the_other(harness: ReloadHarness, swapped: tuple[str, str]) -> None:
    """First in a chain, which works without a gap in either order; then in a circle, which cannot."""
    first, second = swapped
    urls = {"web": WEB, "db": DB}
    changed = {**START, first: urls[second], second: "server://127.0.0.1:1005/127.0.0.1:8005"}
    answer = await harness.reload(changed)
    assert {name: answer.results[name].action for name in swapped} == dict.fromkeys(swapped, "restarted")
    assert [answer.results[name].detail for name in swapped] == [None, None]

    answer = await harness.reload({**changed, first: changed[second], second: changed[first]})
    assert {name: answer.results[name].action for name in swapped} == dict.fromkeys(swapped, "restarted")
    assert "there was no listener for a moment" in (answer.results[first].detail or "")
    await wait_until_async(lambda: all(harness.state(name) is State.UP for name in swapped))


async def test_an_entry_that_waits_for_a_rejected_one_is_rejected_too(harness: ReloadHarness) -> None:
    harness.engines.ports[Address("127.0.0.1", 7777)] = "another process"
    answer = await harness.reload({**START, "web": DB, "db": DB.replace("1002", "7777").replace("8002", "8005")})
    assert actions(answer) == {"web": "rejected", "db": "rejected", "out": "unchanged"}
    assert harness.state("web") is harness.state("db") is State.UP
    assert harness.engine("web").spec != harness.engines.made["web"][0].spec


async def test_a_port_of_a_removed_entry_is_free_for_a_new_one(harness: ReloadHarness) -> None:
    old = harness.engine("web")
    old.visitor_left.clear()
    answer = await harness.reload({"www": WEB + "?tls=0", "db": DB, "out": OUT})
    assert actions(answer) == {"www": "added", "db": "unchanged", "out": "unchanged", "web": "removed"}
    await wait_until_async(lambda: harness.state("www") is State.UP)
    assert harness.state("web") is State.DRAINING
    old.visitor_left.set()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("version: 1\ntunnels:\n  web: server://127.0.0.1:1001/127.0.0.1:80\n  db: serv", 4),
        ("version: 1\ntunnels:\n  web: [", 4),
        ("version: 2\ntunnels:\n", 1),
        (None, 1),
    ],
)
async def test_an_invalid_file_changes_nothing(harness: ReloadHarness, text: str | None, line: int) -> None:
    if text is None:
        harness.file.unlink()
    else:
        harness.file.write_text(text)
    answer = await harness.supervisor.reload()
    assert (answer.generation, answer.is_ok, answer.results) == (1, False, {})
    assert answer.fault is not None
    assert (answer.fault.place.path, answer.fault.place.line) == (harness.file, line)
    config = harness.supervisor.config_status()
    assert (config.ok, config.line) == (False, line)
    assert (config.error or "").startswith(f"{harness.file}:{line}:")
    assert harness.bus.events_of("")[-1].level is LogLevel.ERROR
    assert harness.count_engines() == {"web": 1, "db": 1, "out": 1}

    answer = await harness.reload(START)
    assert (answer.is_ok, harness.supervisor.config_status().error) == (True, None)
    assert harness.count_engines() == {"web": 1, "db": 1, "out": 1}


async def test_a_changed_comment_makes_a_generation_and_equal_content_does_not(harness: ReloadHarness) -> None:
    assert (await harness.reload(START)).generation == 1
    assert (await harness.reload(START, "# a comment")).generation == 2
    assert harness.count_engines() == {"web": 1, "db": 1, "out": 1}


async def test_reloads_run_one_after_the_other_and_the_latest_file_wins(harness: ReloadHarness) -> None:
    asked: list[asyncio.Task[ReloadResult]] = []
    for number in range(20):
        harness.write({**START, "web": WEB.replace("8001", str(9000 + number))})
        asked.append(asyncio.create_task(harness.supervisor.reload()))
        await asyncio.sleep(0)
    answers = await asyncio.gather(*asked)
    generations = [answer.generation for answer in answers]
    assert generations == sorted(generations)
    await wait_until_async(lambda: harness.engine("web").spec.target.port == 9019 and harness.state("web") is State.UP)
    await wait_until_async(lambda: len(asyncio.all_tasks()) < 20)


async def test_a_command_after_the_watcher_is_answered_once_with_its_result(harness: ReloadHarness) -> None:
    harness.write({**START, "web": WEB + "?tls=0"})
    await harness.supervisor.reload_after_change()
    asked = await harness.supervisor.reload()
    assert (asked.generation, actions(asked)["web"]) == (2, "restarted")
    again = await harness.supervisor.reload()
    assert (again.generation, actions(again)["web"]) == (2, "unchanged")
    assert harness.count_engines() == {"web": 2, "db": 1, "out": 1}


async def test_a_plan_changes_nothing(harness: ReloadHarness) -> None:
    harness.write({"web": WEB + "?tls=0", "db": DB + "?log=debug", "new": OUT})
    plan = (await harness.supervisor.plan()).as_json()
    assert (plan["ok"], plan["error"]) == (True, None)
    assert (plan["add"], plan["remove"]) == (["new"], ["out"])
    assert plan["restart"] == [{"name": "web", "changes": ["tls: 1 → 0"]}]
    assert plan["change"] == [{"name": "db", "changes": ["log: info → debug"]}]
    assert harness.supervisor.generation == 1
    harness.file.write_text("")
    result = await harness.supervisor.plan()
    assert result.fault is not None
    assert (result.plan.is_empty, result.fault.place.line) == (True, 1)
    assert harness.supervisor.config_status().ok is True


async def test_a_plan_says_how_many_visitors_may_finish_and_for_how_long(harness: ReloadHarness) -> None:
    for name in ("web", "out"):
        harness.engine(name).visitor_left.clear()
    harness.write({"web": WEB + "?tls=0", "db": DB + "?tls=0"})
    plan = (await harness.supervisor.plan()).as_json()
    assert plan["finishing"] == [
        {"name": "out", "visitors": 1, "timeout_s": 5.0},
        {"name": "web", "visitors": 1, "timeout_s": 5.0},
    ]  # db, which is restarted as well, has no visitor
    harness.write({**START, "web": f"{{url: '{WEB}', enabled: false}}"}, "supervisor: {drain_timeout: 1m}")
    plan = (await harness.supervisor.plan()).as_json()
    assert plan["finishing"] == [{"name": "web", "visitors": 1, "timeout_s": 60.0}]
    for name in ("web", "out"):
        harness.engine(name).visitor_left.set()


async def test_the_event_of_a_reload_has_the_result_of_each_changed_entry(harness: ReloadHarness) -> None:
    await harness.reload({**START, "web": WEB + "?tls=0"})
    event = harness.bus.events_of("")[-1]
    assert (event.kind, event.text) == ("reload", "generation 2: 1 restarted, 2 unchanged")
    assert event.data["generation"] == 2
    assert event.data["results"] == {"web": {"action": "restarted", "detail": None, "changes": ["tls: 1 → 0"]}}


async def test_a_reload_is_refused_during_shutdown(harness: ReloadHarness) -> None:
    harness.engine("web").visitor_left.clear()
    harness.supervisor.shutdown()
    answer = await harness.reload({"new": WEB})
    assert (answer.is_ok, answer.fault and answer.fault.message) == (False, "the daemon is shutting down")
    assert "new" not in harness.engines.made


async def test_a_shutdown_during_a_reload_stops_every_tunnel(harness: ReloadHarness) -> None:
    reload = asyncio.create_task(harness.reload({**START, "web": WEB + "?tls=0", "new": OUT.replace("1003", "1009")}))
    await wait_until_async(lambda: len(harness.engines.made["web"]) == 2)
    harness.supervisor.shutdown()
    await reload
    await asyncio.wait_for(harness.life, GUARD_S)
    assert all(s.state is State.STOPPED for s in harness.supervisor.snapshots())


async def test_a_changed_certificate_file_restarts_the_tunnel(harness: ReloadHarness, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(pem())
    key.write_bytes(pem())
    tunnels = {**START, "web": f"{WEB}?tls_cert=cert.pem&tls_key=key.pem"}
    await harness.reload(tunnels)
    assert {certificate, key} <= set(harness.supervisor.sources().files)
    certificate.write_bytes(pem() + b"\n")
    answer = await harness.supervisor.reload()
    assert answer.results["web"] == EntryResult("restarted", None, ("tls_cert: the content of the file changed",))


async def test_the_details_of_a_tunnel_have_the_origin_of_each_option(harness: ReloadHarness, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "defaults: {min_pool_capacity: 2}\n"
        "tunnels:\n"
        '  inner: {url: "server://hunter2@127.0.0.1:1006/10.0.0.1:80?log=debug", semaphore_limit: 5, enabled: no}\n'
    )
    await harness.reload(START, "include: more.yaml\ndefaults: {report_interval: 2s}")
    seen = harness.supervisor.details("inner")
    assert seen["url"] == "server://***@127.0.0.1:1006/10.0.0.1:80?log=debug"
    assert (seen["where"], seen["enabled"], seen["state"]) == ("more.yaml:3:3", False, State.STOPPED)
    settings = seen["settings"]
    assert settings["log"] == {"value": "debug", "source": "URL", "where": "more.yaml:3:61"}
    assert settings["semaphore_limit"] == {"value": "5", "source": "entry", "where": "more.yaml:3:90"}
    assert settings["min_pool_capacity"] == {"value": "2", "source": "defaults", "where": "more.yaml:1:31"}
    assert settings["report_interval"] == {"value": "2s", "source": "defaults", "where": "tunnels.yaml:3:29"}
    assert settings["max_pool_capacity"] == {"value": "1024", "source": "built in", "where": None}
    assert {"log", "mode", "tls", *SETTING_NAMES} <= set(settings)


async def test_a_file_system_that_does_not_answer_is_a_fault_until_the_file_is_read(
    harness: ReloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: object) -> None:
        raise StuckFileError("/mnt/web.key")

    with monkeypatch.context() as patch:
        patch.setattr(reload, "run_in_file_thread", hang)
        result = await harness.supervisor.reload()
        events = harness.bus.events_of("")
        assert (await harness.supervisor.reload()).fault == result.fault
        assert harness.bus.events_of("") == events, "a scan that fails again causes no further event"
    assert "cannot read the configuration: its file system has not answered for 10 s: /mnt/web.key" in str(result.fault)
    assert harness.supervisor.sources().is_unread
    await harness.supervisor.reload()
    assert not harness.supervisor.sources().is_unread
    assert harness.supervisor.config_status().ok
