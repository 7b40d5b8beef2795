"""The command ``traffic`` and its route: what is asked for, what is shown, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.commands.traffic import format_traffic
from orchestrator.history.periods import Step
from orchestrator.history.recorder import TrafficRecorder
from orchestrator.status.json_types import TrafficJson
from orchestrator.table import align_columns
from tests.orchestrator.api_harness import run_api
from tests.orchestrator.test_control_commands import DaemonShell, daemon_in_background
from tests.support.waiting import wait_until_async


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonShell]:
    with daemon_in_background(tmp_path) as daemon:
        yield daemon


def answer(by: str, *, refused: int = 0) -> TrafficJson:
    def counts(visitors: int) -> dict[str, int]:
        return {"in": visitors * 1024, "out": visitors * 10240, "visitors": visitors, "failed": 0, "refused": refused}

    def tunnel(name: str, *rows: tuple[str, int]) -> dict[str, object]:
        listed = [{"start": f"2026-11-{day}:00:00+01:00", **counts(visitors)} for day, visitors in rows]
        return {"name": name, "present": True, "total": counts(0), "rows": listed}

    tunnels = [tunnel("web", ("27T00", 2), ("28T13", 3)), tunnel("m[ail]", ("28T13", 1)), tunnel("idle")]
    found = {"by": by, "days": 30, "since": "", "until": "", "tunnels": tunnels}
    parsed: TrafficJson = json.loads(json.dumps(found))
    return parsed


def test_lines_are_in_the_order_of_time_and_end_with_their_sum() -> None:
    assert align_columns(format_traffic(answer("day"))).splitlines() == [
        "DAY         TUNNEL  VISITORS  FAILED  FROM VISITORS  TO VISITORS",
        "2026-11-27  web     2         0       2.0K           20.0K",
        "2026-11-28  web     3         0       3.0K           30.0K",
        "2026-11-28  m[ail]  1         0       1.0K           10.0K",
        "all                 6         0       6.0K           60.0K",
    ]
    assert [cells[0] for cells in format_traffic(answer("hour"))][1:3] == ["2026-11-27 00:00", "2026-11-28 13:00"]
    assert [cells[0] for cells in format_traffic(answer("month"))][1] == "2026-11"


def test_totals_have_no_column_of_times_and_refused_visitors_one_of_their_own() -> None:
    rows = format_traffic(answer("total", refused=4))
    assert rows[0] == ("TUNNEL", "VISITORS", "FAILED", "REFUSED", "FROM VISITORS", "TO VISITORS")
    assert rows[-1] == ("all", "6", "0", "12", "6.0K", "60.0K")


def test_the_command_asks_the_daemon(daemon: DaemonShell) -> None:
    done = daemon.run("traffic")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no traffic in the last 30 days" in done.stderr
    shown = json.loads(daemon.run("traffic", "--by", "hour", "--json", "edge-*").stdout)
    assert (shown["by"], shown["days"]) == ("hour", 1)
    assert [tunnel["name"] for tunnel in shown["tunnels"]] == ["edge-1", "edge-2"]
    done = daemon.run("traffic", "nope")
    assert (done.returncode, done.stderr) == (1, "nodepass-orch: no tunnel is named 'nope'\n")
    assert daemon.run("traffic", "--days", "0").returncode == 2
    (file,) = (daemon.path / "state" / "nodepass-orch").glob("tunnels-*.history.db")
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_daemon_the_command_says_so(tmp_path: Path) -> None:
    done = DaemonShell(tmp_path).run("traffic", "web")
    assert done.returncode == 4
    assert "no daemon answers" in done.stderr


def test_without_a_history_the_command_says_so(tmp_path: Path) -> None:
    shell = DaemonShell(tmp_path)
    shell.file.write_text("version: 1\nsupervisor: {history: 0}\ntunnels: {}\n")
    assert shell.run("up", "-d").returncode == 0
    done = shell.run("traffic")
    assert (done.returncode, "supervisor: history: 0" in done.stderr) == (1, True)
    shell.run("down", "--wait")
    assert list((tmp_path / "state" / "nodepass-orch").glob("*.history.db")) == []


async def test_the_route_answers_as_documented(tmp_path: Path) -> None:
    async with run_api(tmp_path) as harness:
        assert (await harness.request("GET", "/v1/traffic")).status == 503
        supervisor = harness.supervisor
        recorder = TrafficRecorder(supervisor, tmp_path / "history.db", harness.control.bus.publish)
        harness.control.history = recorder
        harness.engines.last("web").served = 3
        await recorder.collect(everything=True)
        for step in Step:
            shown = (await harness.request("GET", f"/v1/traffic?by={step}&tunnel=w*")).json
            assert [tunnel["total"]["in"] for tunnel in shown["tunnels"]] == [300]
            assert shown["tunnels"][0]["rows"][0]["visitors"] == 3
        assert (await harness.request("GET", "/v1/traffic?tunnel=nope")).status == 404
        for query in ("by=week", "days=0", "days=9999", "days=x", "hours=1"):
            assert (await harness.request("GET", f"/v1/traffic?{query}")).status == 400
        page = (await harness.request("GET", "/metrics")).body.decode()
        assert "nodepass_orch_history_pending_rows 1.0" in page
        assert "nodepass_orch_history_lost_rows_total 0.0" in page
        await recorder.close()


async def test_restarts_and_reloads_of_a_tunnel_continue_its_history(tmp_path: Path) -> None:
    async with run_api(tmp_path) as harness:
        supervisor = harness.supervisor
        recorder = TrafficRecorder(supervisor, tmp_path / "history.db", harness.control.bus.publish)
        supervisor.subscribe_removals(recorder.on_removed)

        async def visitors() -> dict[str, int]:
            report = (await recorder.read(Step.TOTAL, 1, ["web"])).as_json()
            return {tunnel["name"]: tunnel["total"]["visitors"] for tunnel in report["tunnels"]}

        harness.engines.last("web").served = 3
        await recorder.collect(everything=True)
        harness.engines.last("web").served = 5  # two more, which no collection sees before the restart
        supervisor.restart("web", 0.0)
        await wait_until_async(lambda: len(harness.engines.made["web"]) == 2)
        harness.engines.last("web").served = 1
        await recorder.collect(everything=True)
        assert await visitors() == {"web": 6}
        text = harness.file.read_text()
        harness.file.write_text(text.replace("127.0.0.1:8080", "127.0.0.1:8081"))
        assert (await supervisor.reload()).is_ok
        harness.engines.last("web").served = 1
        await recorder.collect(everything=True)
        assert await visitors() == {"web": 7}
        harness.engines.last("web").served = 4
        harness.file.write_text("version: 1\ntunnels: {}\n")
        assert (await supervisor.reload()).is_ok
        await wait_until_async(lambda: "web" not in supervisor.names())
        assert await visitors() == {"web": 10}
        await recorder.close()
