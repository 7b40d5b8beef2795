"""A candidate: compared with what runs, and put in place of the file."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from orchestrator.config.candidate import Candidate
from tests.orchestrator.api_harness import FILE, run_api
from tests.orchestrator.test_reload import DB, OUT, WEB, ReloadHarness, actions, harness
from tests.support.waiting import wait_until_async
from tunnel.model.state import State

__all__ = ["harness"]

TEXT = f"version: 1\ntunnels:\n  web: {WEB}?tls=0\n  db: {DB}\n  new: server://127.0.0.1:1009/127.0.0.1:8009\n"


async def test_a_plan_of_a_candidate_compares_it_with_what_runs(harness: ReloadHarness) -> None:
    before = harness.file.read_text()
    plan = (await harness.supervisor.plan(Candidate(TEXT.encode(), "next.yaml"))).plan
    assert [entry.name for entry in plan.add] == ["new"]
    assert [entry.name for entry in plan.remove] == ["out"]
    assert [change.new.name for change in plan.restart] == ["web"]
    assert harness.file.read_text() == before
    assert harness.count_engines() == {"web": 1, "db": 1, "out": 1}


async def test_a_candidate_takes_the_place_of_the_file(harness: ReloadHarness) -> None:
    harness.file.chmod(0o600)
    answer = await harness.supervisor.apply_candidate(Candidate(TEXT.encode(), "next.yaml"))
    assert (answer.is_ok, answer.generation) == (True, 2)
    assert actions(answer) == {"web": "restarted", "db": "unchanged", "new": "added", "out": "removed"}
    assert harness.file.read_text() == TEXT
    assert stat.S_IMODE(harness.file.stat().st_mode) == 0o600
    await wait_until_async(lambda: harness.state("new") is State.UP)
    again = await harness.supervisor.reload()
    assert not again.has_changes
    assert sorted(path.name for path in harness.file.parent.iterdir()) == ["tunnels.yaml"]


@pytest.mark.parametrize(
    "text",
    ["", "version: 1\ntunnels: {a: nonsense}", f"version: 1\ntunnels: {{a: '{OUT}'", "\x07", TEXT + "#" * (5 << 20)],
    ids=["empty", "invalid", "cut off", "control character", "larger than a file may be"],
)
async def test_an_invalid_candidate_changes_nothing(harness: ReloadHarness, text: str) -> None:
    before = harness.file.read_text()
    answer = await harness.supervisor.apply_candidate(Candidate(text.encode(), "dir/next.yaml"))
    assert answer.fault is not None
    assert answer.fault.place.path == Path("dir/next.yaml")
    assert harness.file.read_text() == before
    assert harness.supervisor.config_status().ok
    assert harness.supervisor.generation == 1
    assert (await harness.supervisor.plan(Candidate(text.encode(), "x"))).fault is not None


async def test_a_file_that_cannot_be_written_stays_in_force(
    harness: ReloadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, __: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.supervisor.reload.replace_file", full)
    answer = await harness.supervisor.apply_candidate(Candidate(TEXT.encode(), "next.yaml"))
    assert str(answer.fault) == f"{harness.file}:1:1: cannot write the file: No space left on device"
    assert harness.count_engines() == {"web": 1, "db": 1, "out": 1}


async def test_the_api_plans_and_applies_a_candidate(tmp_path: Path) -> None:
    async with run_api(tmp_path) as api:
        added = FILE + "  added: server://127.0.0.1:1/127.0.0.1:2\n"
        body = json.dumps({"content": added, "name": "next.yaml"})
        planned = await api.request("POST", "/v1/plan", body)
        assert (planned.status, planned.json["add"]) == (200, ["added"])
        applied = await api.request("POST", "/v1/apply", body)
        assert applied.json["results"]["added"]["action"] == "added"
        assert api.file.read_text() == added
        bad = await api.request("POST", "/v1/apply", json.dumps({"content": "version: 2"}))
        assert (bad.status, bad.json["ok"]) == (200, False)
        assert (bad.json["error"]["file"], bad.json["error"]["line"]) == ("candidate", 1)


@pytest.mark.parametrize("body", ["", "{}", '{"content": 1}', '{"content": "x", "name": 1}', '{"contents": "x"}'])
async def test_a_request_without_a_candidate_is_malformed(tmp_path: Path, body: str) -> None:
    async with run_api(tmp_path) as api:
        for route in ("/v1/plan", "/v1/apply"):
            assert (await api.request("POST", route, body)).status == 400


async def test_a_large_candidate_is_accepted_and_other_bodies_stay_small(tmp_path: Path) -> None:
    async with run_api(tmp_path) as api:
        body = json.dumps({"content": FILE + "#" * 200_000})
        assert (await api.request("POST", "/v1/plan", body)).json["ok"]
        assert (await api.request("POST", "/v1/reload", " " * 100_000)).status == 413


async def test_a_read_only_daemon_plans_a_candidate_and_applies_none(tmp_path: Path) -> None:
    async with run_api(tmp_path, read_only=True) as api:
        body = json.dumps({"content": "version: 1"})
        assert (await api.request("POST", "/v1/plan", body)).status == 200
        assert (await api.request("POST", "/v1/apply", body)).status == 403
        assert api.file.read_text() == FILE


async def test_two_candidates_are_applied_one_after_the_other(harness: ReloadHarness) -> None:
    texts = [TEXT, TEXT.replace("new:", "newer:")]
    answers = await asyncio.gather(*(harness.supervisor.apply_candidate(Candidate(t.encode(), "x")) for t in texts))
    assert [answer.is_ok for answer in answers] == [True, True]
    assert harness.file.read_text() == texts[1]
    assert set(harness.supervisor.names()) >= {"web", "db", "newer"}
