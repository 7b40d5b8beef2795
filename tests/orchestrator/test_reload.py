"""The supervisor's promises about its file: whoever is not meant notices nothing, and nothing wrong is ever applied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.load import load
from orchestrator.supervisor.bus import Bus
from orchestrator.supervisor.supervisor import Supervisor
from tests.orchestrator.fakes import FakeEngine, Workshop, until
from tests.scale import GUARD
from tunnel.model.spec import Address, LogLevel
from tunnel.model.state import State

WEB = "server://127.0.0.1:1001/127.0.0.1:8001"
DB = "server://127.0.0.1:1002/127.0.0.1:8002"
OUT = "client://127.0.0.1:1003/127.0.0.1:8003"
START = {"web": WEB, "db": DB, "out": OUT}


class House:
    """A supervisor, its file, and engines without sockets."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tunnels.yaml"
        self.write(START)
        self.workshop = Workshop()
        self.bus = Bus()
        self.supervisor = Supervisor(load(self.file, {}), make_engine=self.workshop, bus=self.bus)
        self.life = asyncio.create_task(self.supervisor.run())

    def write(self, tunnels: dict[str, str], more: str = "") -> None:
        """The file says this from now on."""
        lines = "".join(f"  {name}: {value}\n" for name, value in tunnels.items())
        self.file.write_text(f"version: 1\n{more}\ntunnels:\n{lines}")

    async def reload(self, tunnels: dict[str, str], more: str = "") -> dict[str, Any]:
        """Write the file and have it read again."""
        self.write(tunnels, more)
        return await self.supervisor.reload()

    def state(self, name: str) -> State:
        return self.supervisor.snapshot(name).state

    def engine(self, name: str) -> FakeEngine:
        return self.workshop.last(name)

    def engines(self) -> dict[str, int]:
        """How many engines each tunnel has had."""
        return {name: len(made) for name, made in self.workshop.made.items()}


def actions(answer: dict[str, Any]) -> dict[str, str]:
    return {name: result["action"] for name, result in answer["results"].items()}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await until(lambda: all(house.state(name) is State.UP for name in START))
    yield house
    house.supervisor.close()
    await asyncio.wait_for(house.life, GUARD)


async def test_only_what_changed_gets_another_engine(house: House) -> None:
    others = {name: house.engine(name) for name in ("db", "out")}
    answer = await house.reload({**START, "web": WEB + "?tls=1"})
    assert (answer["generation"], answer["ok"], answer["error"]) == (2, True, None)
    assert actions(answer) == {"web": "restarted", "db": "unchanged", "out": "unchanged"}
    assert answer["results"]["web"]["changes"] == ["tls: 0 → 1"]
    await until(lambda: house.state("web") is State.UP)
    assert house.engines() == {"web": 2, "db": 1, "out": 1}
    assert all(house.engine(name) is engine and not engine.drained_with for name, engine in others.items())


async def test_the_old_engine_drains_beside_the_new_one_and_its_visitors_still_count(house: House) -> None:
    old = house.engine("web")
    old.visitor_left.clear()
    await house.reload({**START, "web": WEB + "?tls=1"}, "supervisor: {drain_timeout: 7s}")
    await until(lambda: house.state("web") is State.UP)
    assert old.drained_with == [7.0]
    assert house.supervisor.snapshot("web").connections.active == 1
    old.visitor_left.set()
    await until(lambda: house.supervisor.snapshot("web").connections.active == 0)


async def test_added_and_removed(house: House) -> None:
    gone = house.engine("db")
    gone.visitor_left.clear()
    new = "client://127.0.0.1:1009/127.0.0.1:9"
    answer = await house.reload({"new": new, "web": WEB, "out": OUT})
    assert actions(answer) == {"new": "added", "web": "unchanged", "out": "unchanged", "db": "removed"}
    assert answer["results"]["db"]["detail"] == "1 visitor may finish"
    seen = [(s.name, s.state) for s in house.supervisor.snapshots()]
    assert seen == [("new", State.UP), ("web", State.UP), ("out", State.UP), ("db", State.DRAINING)]
    gone.visitor_left.set()
    await until(lambda: len(house.supervisor.snapshots()) == 3)


async def test_settings_level_and_tags_reach_the_running_engine(house: House) -> None:
    entry = f'{{url: "{WEB}", max_pool_capacity: 64, log: debug, tags: [prod]}}'
    answer = await house.reload({**START, "web": entry})
    assert actions(answer)["web"] == "changed"
    assert house.engines() == {"web": 1, "db": 1, "out": 1}
    assert [spec.settings.max_pool_capacity for spec in house.engine("web").adopted] == [64]
    assert house.supervisor.snapshot("web").tags == ("prod",)
    assert house.supervisor.log_level("web") is LogLevel.DEBUG


async def test_an_engine_that_cannot_change_is_said_to_have_failed(house: House) -> None:
    house.engine("web").deaf = True
    answer = await house.reload({**START, "web": WEB + "?log=debug", "db": DB + "?log=debug"})
    assert actions(answer) == {"web": "failed", "db": "changed", "out": "unchanged"}
    assert answer["ok"] is False
    house.engine("web").deaf = False
    assert actions(await house.supervisor.reload()) == {"web": "changed", "db": "unchanged", "out": "unchanged"}


async def test_disabled_and_enabled_again(house: House) -> None:
    house.engine("web").visitor_left.clear()
    await house.reload({**START, "web": f'{{url: "{WEB}", enabled: false}}'})
    assert house.state("web") is State.DRAINING
    await house.reload(START)  # while the last visitor is still there
    await until(lambda: house.state("web") is State.UP)
    assert house.supervisor.snapshot("web").connections.active == 1
    await house.reload({**START, "web": f'{{url: "{WEB}", enabled: false}}'})
    await until(lambda: house.state("web") is State.STOPPED)
    assert house.supervisor.snapshot("web").reason == "disabled in the file"


async def test_what_rests_by_command_rests_on_as_somebody_else(house: House) -> None:
    house.supervisor.stop("web")
    await until(lambda: house.state("web") is State.STOPPED)
    answer = await house.reload({**START, "web": WEB.replace("8001", "8801")})
    assert actions(answer)["web"] == "changed"
    assert house.state("web") is State.STOPPED
    house.supervisor.start("web")
    await until(lambda: house.state("web") is State.UP)
    assert house.engine("web").spec.target.port == 8801


async def test_what_was_started_by_command_though_disabled_is_changed_too(house: House) -> None:
    off = f'{{url: "{WEB}", enabled: false}}'
    await house.reload({**START, "web": off})
    house.supervisor.start("web")
    await until(lambda: house.state("web") is State.UP)
    answer = await house.reload({**START, "web": off.replace("8001", "8801")})
    assert actions(answer)["web"] == "restarted"
    await until(lambda: house.state("web") is State.UP and house.engine("web").spec.target.port == 8801)


async def test_a_failed_tunnel_is_tried_anew_when_its_entry_changes(house: House) -> None:
    house.engine("web").fail("the certificate is not one")
    await until(lambda: house.state("web") is State.FAILED)
    await house.reload({**START, "web": WEB + "?tls=1"})
    await until(lambda: house.state("web") is State.UP)


async def test_a_port_that_is_taken_rejects_that_entry_alone(house: House) -> None:
    house.workshop.ports[Address("127.0.0.1", 7777)] = "somebody else"
    changed = {**START, "web": WEB.replace("1001", "7777"), "db": DB + "?tls=1"}
    answer = await house.reload(changed)
    assert actions(answer) == {"web": "rejected", "db": "restarted", "out": "unchanged"}
    assert answer["ok"] is False
    assert "cannot listen on 127.0.0.1:7777" in answer["results"]["web"]["detail"]
    seen = house.supervisor.snapshot("web")
    assert (seen.state, seen.tunnel_addr) == (State.UP, "127.0.0.1:1001")
    assert "cannot listen on 127.0.0.1:7777" in (seen.last_error or "")
    assert not house.engine("web").drained_with or house.workshop.made["web"][0].standing.state is State.UP

    again = await house.supervisor.reload()
    assert (actions(again)["web"], again["generation"]) == ("rejected", answer["generation"])
    del house.workshop.ports[Address("127.0.0.1", 7777)]
    assert actions(await house.supervisor.reload()) == {"web": "restarted", "db": "unchanged", "out": "unchanged"}
    await until(lambda: house.supervisor.snapshot("web").tunnel_addr == "127.0.0.1:7777")


async def test_a_new_entry_whose_port_is_taken_is_said_to_have_failed(house: House) -> None:
    house.workshop.ports[Address("127.0.0.1", 7777)] = "somebody else"
    answer = await house.reload({**START, "new": "server://127.0.0.1:7777/10.0.0.1:80"})
    assert answer["results"]["new"] == {"action": "failed", "detail": "address in use", "changes": []}


async def test_a_tunnel_that_never_got_its_port_is_changed_all_the_same(house: House) -> None:
    house.workshop.ports[Address("127.0.0.1", 7777)] = "somebody else"
    await house.reload({**START, "new": "server://127.0.0.1:7777/10.0.0.1:80"})
    answer = await house.reload({**START, "new": '{url: "server://127.0.0.1:7777/10.0.0.1:80", key: other}'})
    assert answer["results"]["new"]["action"] == "failed"
    assert house.engine("new").spec.key is not None


@pytest.mark.parametrize("swapped", [("web", "db"), ("db", "web")])
async def test_ports_pass_from_one_entry_to_the_other(house: House, swapped: tuple[str, str]) -> None:
    """First in a chain, which works without a gap in either order; then in a circle, which cannot."""
    first, second = swapped
    urls = {"web": WEB, "db": DB}
    changed = {**START, first: urls[second], second: "server://127.0.0.1:1005/127.0.0.1:8005"}
    answer = await house.reload(changed)
    assert {name: answer["results"][name]["action"] for name in swapped} == dict.fromkeys(swapped, "restarted")
    assert [answer["results"][name]["detail"] for name in swapped] == [None, None]

    answer = await house.reload({**changed, first: changed[second], second: changed[first]})
    assert {name: answer["results"][name]["action"] for name in swapped} == dict.fromkeys(swapped, "restarted")
    assert "for a moment nobody listened" in answer["results"][first]["detail"]
    await until(lambda: all(house.state(name) is State.UP for name in swapped))


async def test_whoever_waits_for_one_that_is_rejected_is_rejected_too(house: House) -> None:
    house.workshop.ports[Address("127.0.0.1", 7777)] = "somebody else"
    answer = await house.reload({**START, "web": DB, "db": DB.replace("1002", "7777").replace("8002", "8005")})
    assert actions(answer) == {"web": "rejected", "db": "rejected", "out": "unchanged"}
    assert house.state("web") is house.state("db") is State.UP
    assert house.engine("web").spec != house.workshop.made["web"][0].spec


async def test_a_port_of_a_removed_entry_is_free_for_a_new_one(house: House) -> None:
    old = house.engine("web")
    old.visitor_left.clear()
    answer = await house.reload({"www": WEB + "?tls=1", "db": DB, "out": OUT})
    assert actions(answer) == {"www": "added", "db": "unchanged", "out": "unchanged", "web": "removed"}
    await until(lambda: house.state("www") is State.UP)
    assert house.state("web") is State.DRAINING
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
async def test_a_file_that_is_wrong_changes_nothing(house: House, text: str | None, line: int) -> None:
    if text is None:
        house.file.unlink()
    else:
        house.file.write_text(text)
    answer = await house.supervisor.reload()
    assert (answer["generation"], answer["ok"], answer["results"]) == (1, False, {})
    assert (answer["error"]["file"], answer["error"]["line"]) == (str(house.file), line)
    config = house.supervisor.head()["config"]
    assert (config["ok"], config["line"]) == (False, line)
    assert config["error"].startswith(f"{house.file}:{line}:")
    assert house.bus.recent("")[-1].level is LogLevel.ERROR
    assert house.engines() == {"web": 1, "db": 1, "out": 1}

    answer = await house.reload(START)
    assert (answer["ok"], house.supervisor.head()["config"]["error"]) == (True, None)
    assert house.engines() == {"web": 1, "db": 1, "out": 1}


async def test_the_same_content_is_no_generation_and_a_comment_is(house: House) -> None:
    assert (await house.reload(START))["generation"] == 1
    assert (await house.reload(START, "# a comment"))["generation"] == 2
    assert house.engines() == {"web": 1, "db": 1, "out": 1}


async def test_reloads_are_in_turn_and_the_latest_wins(house: House) -> None:
    asked = []
    for number in range(20):
        house.write({**START, "web": WEB.replace("8001", str(9000 + number))})
        asked.append(asyncio.create_task(house.supervisor.reload()))
        await asyncio.sleep(0)
    answers = await asyncio.gather(*asked)
    generations = [answer["generation"] for answer in answers]
    assert generations == sorted(generations)
    await until(lambda: house.engine("web").spec.target.port == 9019 and house.state("web") is State.UP)
    await until(lambda: len(asyncio.all_tasks()) < 20)


async def test_whoever_asks_after_the_watcher_hears_what_it_did_once(house: House) -> None:
    house.write({**START, "web": WEB + "?tls=1"})
    await house.supervisor.follow()
    asked = await house.supervisor.reload()
    assert (asked["generation"], actions(asked)["web"]) == (2, "restarted")
    again = await house.supervisor.reload()
    assert (again["generation"], actions(again)["web"]) == (2, "unchanged")
    assert house.engines() == {"web": 2, "db": 1, "out": 1}


async def test_a_plan_changes_nothing(house: House) -> None:
    house.write({"web": WEB + "?tls=1", "db": DB + "?log=debug", "new": OUT})
    plan = await house.supervisor.plan()
    assert (plan["ok"], plan["error"]) == (True, None)
    assert (plan["add"], plan["remove"]) == (["new"], ["out"])
    assert plan["restart"] == [{"name": "web", "changes": ["tls: 0 → 1"]}]
    assert plan["change"] == [{"name": "db", "changes": ["log: info → debug"]}]
    assert house.supervisor.head()["generation"] == 1
    house.file.write_text("")
    plan = await house.supervisor.plan()
    assert (plan["ok"], plan["add"], plan["error"]["line"]) == (False, [], 1)
    assert house.supervisor.head()["config"]["ok"] is True


async def test_the_event_tells_what_became_of_whom(house: House) -> None:
    await house.reload({**START, "web": WEB + "?tls=1"})
    event = house.bus.recent("")[-1]
    assert (event.kind, event.text) == ("reload", "generation 2: 1 restarted, 2 unchanged")
    assert event.data["generation"] == 2
    assert event.data["results"] == {"web": {"action": "restarted", "detail": None, "changes": ["tls: 0 → 1"]}}


async def test_no_reload_while_shutting_down(house: House) -> None:
    house.engine("web").visitor_left.clear()
    house.supervisor.shutdown()
    answer = await house.reload({"new": WEB})
    assert (answer["ok"], answer["error"]["message"]) == (False, "the daemon is shutting down")
    assert "new" not in house.workshop.made


async def test_a_shutdown_in_the_middle_of_a_reload_ends_all_of_it(house: House) -> None:
    reload = asyncio.create_task(house.reload({**START, "web": WEB + "?tls=1", "new": OUT.replace("1003", "1009")}))
    await until(lambda: len(house.workshop.made["web"]) == 2)
    house.supervisor.shutdown()
    await reload
    await asyncio.wait_for(house.life, GUARD)
    assert all(s.state is State.STOPPED for s in house.supervisor.snapshots())


async def test_a_change_of_a_certificate_restarts_the_tunnel(house: House, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_text("one")
    key.write_text("one")
    tunnels = {**START, "web": f"{WEB}?tls_cert=cert.pem&tls_key=key.pem"}
    await house.reload(tunnels)
    assert {certificate, key} <= set(house.supervisor.sources().files)
    certificate.write_text("two")
    answer = await house.supervisor.reload()
    assert answer["results"]["web"] == {
        "action": "restarted",
        "detail": None,
        "changes": ["tls_cert: another content"],
    }


async def test_one_tunnel_in_detail(house: House, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "defaults: {min_pool_capacity: 2}\n"
        "tunnels:\n"
        '  inner: {url: "server://hunter2@127.0.0.1:1006/10.0.0.1:80?log=debug", semaphore_limit: 5, enabled: no}\n'
    )
    await house.reload(START, "include: more.yaml\ndefaults: {report_interval: 2s}")
    seen = house.supervisor.inspect("inner")
    assert seen["url"] == "server://***@127.0.0.1:1006/10.0.0.1:80?log=debug"
    assert (seen["where"], seen["enabled"], seen["state"]) == ("more.yaml:3:3", False, State.STOPPED)
    settings = seen["settings"]
    assert settings["log"] == {"value": "debug", "source": "URL", "where": "more.yaml:3:61"}
    assert settings["semaphore_limit"] == {"value": "5", "source": "entry", "where": "more.yaml:3:90"}
    assert settings["min_pool_capacity"] == {"value": "2", "source": "defaults", "where": "more.yaml:1:31"}
    assert settings["report_interval"] == {"value": "2s", "source": "defaults", "where": "tunnels.yaml:3:29"}
    assert settings["max_pool_capacity"] == {"value": "1024", "source": "built in", "where": None}
    assert len(settings) == 13
