"""The samples in configs/ other than tunnel files match the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from orchestrator.commands.command_line import COMMANDS
from tests.orchestrator.test_metrics import page, snapshot

CONFIGS = Path(__file__).parent.parent.parent / "configs"
UNIT = CONFIGS / "systemd" / "nodepass-orch.service"
DOCS = CONFIGS.parent / "docs" / "how-to"


@pytest.mark.parametrize("name", ["alerts.yml", "grafana-dashboard.json"])
def test_every_metric_of_a_sample_exists(name: str) -> None:
    ours = set(re.findall(r"^(nodepass_orch_\w+)", page(snapshot(rtt_ms=1.0))[0], re.MULTILINE))
    used = set(re.findall(r"nodepass_orch_\w+", (CONFIGS / "monitoring" / name).read_text()))
    assert used
    assert used <= ours


def test_the_alerts_have_the_fields_that_prometheus_reads() -> None:
    (group,) = yaml.safe_load((CONFIGS / "monitoring" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_grafana_dashboard_is_json_with_panels() -> None:
    board = json.loads((CONFIGS / "monitoring" / "grafana-dashboard.json").read_text())
    assert all(panel["targets"] for panel in board["panels"])


def test_the_commands_of_the_samples_exist() -> None:
    lines = re.findall(
        r"nodepass-orch ([a-z]+)\b", UNIT.read_text() + (CONFIGS / "container" / "compose.yaml").read_text()
    )
    assert set(lines) - {"up"}
    assert set(lines) <= {command.name for command in COMMANDS}
    for name in ("server", "client"):
        assert (CONFIGS / "container" / name / "tunnels.yaml").exists()


def test_the_services_of_the_compose_file_use_its_networks() -> None:
    compose = yaml.safe_load((CONFIGS / "container" / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert set(service["networks"]) <= set(compose["networks"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/nodepass-orch", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_documented_installation_is_that_of_the_unit() -> None:
    unit, install, systemd = UNIT.read_text(), (DOCS / "install.md").read_text(), (DOCS / "systemd.md").read_text()
    (program, file), (user,) = (
        re.findall(r"ExecStart=(\S+) up (\S+)", unit)[0],
        re.findall(r"^User=(\S+)", unit, re.MULTILINE),
    )
    assert program == "/usr/local/bin/nodepass-orch"
    for command in ("python3 -m venv /opt/nodepass-orch", "/opt/nodepass-orch/bin/pip install .",
                    "ln -s /opt/nodepass-orch/bin/nodepass-orch /usr/local/bin/",
                    "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install ."):  # fmt: skip
        assert command in unit
        assert command in install
    assert f"server.yaml {file}" in systemd
    assert f"-g {user} " in systemd
    assert re.search(rf"^u {user} ", (UNIT.parent / "nodepass-orch.sysusers").read_text(), re.MULTILINE)
    for line in re.findall(r"^#\s+(install -m 644 .*|systemctl .*)$", unit, re.MULTILINE):
        assert all(part in systemd for part in line.split(" && ")), line


def test_make_starts_again_after_the_module_for_virtual_environments_was_missing(tmp_path: Path) -> None:
    """Debian without python3-venv: `python3 -m venv` leaves a program without pip and fails."""
    shutil.copy(CONFIGS.parent / "Makefile", tmp_path)
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho started >> runs; mkdir -p .venv/bin; touch .venv/bin/python; exit 1\n")
    fake.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(["make", f"PYTHON={fake}", ".venv/bin/python"], cwd=tmp_path, check=False)
        assert done.returncode
        assert not (tmp_path / ".venv" / "bin" / "python").exists()
    assert (tmp_path / "runs").read_text() == "started\n" * 2


def test_the_image_has_every_package_and_runs_without_privileges() -> None:
    image = (CONFIGS / "container" / "Dockerfile").read_text()
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"COPY {package} {package}\n" in image
    (uid, home), (run,) = (
        re.findall(r"--uid (\d+) --home-dir (\S+)", image)[0],
        re.findall(r"install -d .* (/run/\S+)", image),
    )
    assert re.search(r"^USER nodepass-orch$", image, re.MULTILINE)
    documented = (DOCS / "containers.md").read_text()
    assert f"--tmpfs {run}:uid={uid}," in documented
    assert f"--tmpfs {home}:uid={uid}" in documented
    assert f"{run}/" in re.findall(r"NODEPASS_ORCH_SOCKET=(\S+)", image)[0]
