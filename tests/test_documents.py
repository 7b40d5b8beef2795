"""README and docs: each command that can run is run, each file of tunnels is checked, and no link is dead."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from orchestrator.commands import command_line
from orchestrator.config.faults import ConfigError
from orchestrator.config.load import FILE_KEYS, load
from tests.documents import ROOT, Block, blocks, dead_links, pages, words_of
from tests.support.peers import exchange
from tests.support.ports import free_ports
from tests.support.processes import ProcessHarness, running_harness
from tests.support.waiting import wait_until
from tui.launch import top
from tunnel.model.keys import generate_key
from tunnel.model.options import make_spec
from tunnel.model.url import parse_url

PAGES = pages()
USER_PAGES = [page for page in PAGES if page.parts[len(ROOT.parts)] in {"README.md", "docs"}]
COMMANDS = [(block, command) for page in PAGES for block in blocks(page) for command in block.commands()]
FILES = [block for page in USER_PAGES for block in blocks(page) if block.language == "yaml"]
TUTORIAL = ROOT / "docs" / "tutorial.md"

NOT_RUN = {
    "bash": "runs all checks",
    "cd": "changes the directory of the shell",
    "chown": "needs root",
    "curl": "needs what the page describes; the tutorial's are run",
    "docker": "needs a container engine",
    "export": "sets a variable of the shell",
    "install": "needs root",
    "iperf3": "a load that the page measures",
    "jq": "reads the output of a command that is run",
    "ln": "needs root",
    "make": "the Makefile's targets have tests of their own",
    "mosquitto_passwd": "needs root",
    "mosquitto_sub": "needs a broker; tests/integration/test_fleet_peers.py runs it",
    "openssl": "tests/integration/test_fleet_peers.py makes certificates",
    "pip": "installs",
    "pipx": "installs",
    "psql": "needs a database; tests/integration/test_programs.py runs it through a tunnel",
    "python": "a tool of the tests, with tests of its own",
    "python3": "installs",
    "source": "a matter of the shell",
    "sudo": "needs root",
    "systemctl": "needs systemd",
    "systemd-sysusers": "needs systemd",
    "tail": "reads a file that the page describes",
    "uv": "installs",
    "$EDITOR": "needs a person",
}
"""Programs whose lines are not run, with the reason."""
PARSED = {
    "apply": "writes the daemon's file", "demo": "has tests of its own", "down": "ends the daemon of the other pages",
    "fleet": "needs a broker", "top": "needs a terminal", "up": "starts a daemon; the tutorial's are run",
}  # fmt: skip
"""Commands of this program whose lines are only parsed, with the reason."""
FOLLOWING = {"-F", "--follow", "--watch"}
CODES = {"ps": {0, 3}, "kick": {1}, "test": {0, 1}, "init": {0, 1}, "import": {0, 1}}
"""Exit codes other than 0: tunnels of the sample are not up, it has no visitors, and files exist already."""
LINES = {"nodepass-orch check faulty.yaml": {2}}
MOMENTARY = "--link"
"""Names something that the sample does not have: the command is understood, and ends with 1."""


def test_each_program_in_a_command_block_is_known() -> None:
    first = {words_of(command)[0].rpartition("/")[2] for _, command in COMMANDS}
    assert first - set(NOT_RUN) - {"nodepass-orch"} == set(), "name the reason in NOT_RUN"


# --- single commands --------------------------------------------------------------------------------------------------

SAMPLE = """
version: 1
tunnels:
  web: {{url: "server://127.0.0.1:{0}/127.0.0.1:20080?mode=forward", targets: [127.0.0.1:20081, 127.0.0.1:20082]}}
  srv: server://127.0.0.1:{1}/127.0.0.1:{2}
  db: {{url: "server://127.0.0.1:{3}/127.0.0.1:{4}", enabled: false}}
  edge-1: server://127.0.0.1:{5}/127.0.0.1:{6}
  edge-2: server://127.0.0.1:{7}/127.0.0.1:{8}
  files: server://127.0.0.1:{9}/127.0.0.1:{10}
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the files that the pages name, and a daemon of its tunnels.yaml."""
    path = tmp_path_factory.mktemp("workshop")
    (path / "tunnels.yaml").write_text(SAMPLE.format(*free_ports(11)))
    (path / "next.yaml").write_text((path / "tunnels.yaml").read_text())
    (path / "faulty.yaml").write_text("version: 1\ntunnels: {a: 'server://h:1/h:2?mod=1'}\n")
    imported = ROOT / "tests" / "orchestrator" / "imported"
    for name, source in (
        ("frps.toml", "frps.toml"),
        ("frpc.toml", "frpc.toml"),
        ("start.sh", "nodepass.sh"),
        ("compose.yaml", "nodepass-compose.yaml"),
        ("instances.json", "nodepass-instances.json"),
    ):
        shutil.copy(imported / source, path / name)
    arguments = ("up", str(path / "tunnels.yaml"), "--no-tui", "--socket", str(path / "sock"))
    with running_harness(path) as harness:
        daemon = harness.start_command(*arguments, env={"XDG_STATE_HOME": str(path / "state")})
        wait_until((path / "sock").exists, lambda: f"the daemon answers: {daemon.log_text()}")
        yield path


def parse_only(words: list[str]) -> None:
    """Parse the words of a command without running it."""
    root = command_line.build_command_line((*command_line.COMMANDS, top))
    command, context = root, root.make_context("nodepass-orch", list(words), resilient_parsing=True)
    while words and isinstance(command, type(root)):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context = found.make_context(name, list(words), parent=context)
        command = found  # type: ignore[assignment]  # a group has commands of its own


OWN = sorted({command for _, command in COMMANDS if command.startswith("nodepass-orch")})


@pytest.mark.parametrize("command", OWN)
def test_a_command_of_the_pages_works(
    command: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("NODEPASS_ORCH_SOCKET", str(workshop / "sock"))
    monkeypatch.setenv("NODEPASS_ORCH_MQTT", "mqtt://broker.example")
    words = words_of(command)[1:]
    if "://" in words[0]:
        make_spec(parse_url(words[0]))
    elif words[0] in PARSED or FOLLOWING & set(words):
        parse_only(words)
    elif not re.search(
        r"\bserver\.yaml|\bclient\.yaml|/etc/", command
    ):  # files of the tutorial, which is run as a whole
        code = command_line.run(words, (*command_line.COMMANDS, top))
        expected = {1} if MOMENTARY in words else LINES.get(command, CODES.get(words[0], {0}))
        assert code in expected, capsys.readouterr().err


# --- the tutorial -----------------------------------------------------------------------------------------------------


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ProcessHarness]:
    with running_harness(tmp_path) as harness:
        yield harness


def answer(label: bytes, sock: socket.socket) -> None:
    """Serve one request, as a web server does."""
    sock.recv(1 << 16)
    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + label)


def test_the_readme_shows_the_commands_of_the_tutorial() -> None:
    shown = [command for block in blocks(ROOT / "README.md") for command in block.commands()]
    tutorial = {command for block in blocks(TUTORIAL) for command in block.commands()}
    assert {command for command in shown if re.search(r" init |\.yaml|curl", command)} <= tutorial
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_tutorial_works_as_written(
    harness: ProcessHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    labels = {"3000": b"first", "3001": b"second"}
    targets = {port: harness.start_target(partial(answer, label)) for port, label in labels.items()}
    ports = dict(zip(("10101", "8080", "8081"), map(str, free_ports(3)), strict=True))
    ports |= {written: str(target.port) for written, target in targets.items()}
    answers: list[bytes] = []
    edited = iter(("server.yaml", "client.yaml"))
    try:
        for block in blocks(TUTORIAL):
            if block.language == "yaml":
                _append(tmp_path / next(edited), localise(block.text, ports))
            for command in block.commands():
                if command.startswith("curl"):
                    answers.append(_get(localise(command.split()[1], ports)))
                elif not command.startswith("nodepass-orch top"):
                    code = command_line.run(words_of(command.replace("server-host", "127.0.0.1"))[1:])
                    assert code == 0, f"{block.place}: {command}: {capsys.readouterr().err}"
                if " init " in command:
                    for name in ("server.yaml", "client.yaml"):
                        (tmp_path / name).write_text(localise((tmp_path / name).read_text(), ports))
    finally:
        for name in ("server.yaml", "client.yaml"):
            command_line.run(["down", "--now", "--wait", name])
    assert answers == [b"first", b"second"]


def localise(text: str, ports: dict[str, str]) -> str:
    """Return a text with free ports, on this host, in place of those of the tutorial."""
    text = text.replace("server-host", "127.0.0.1")
    return re.sub(r"(?<=:)(\d{4,5})\b", lambda match: ports.get(match[1], match[1]), text)


def _append(file: Path, entry: str) -> None:
    """Add an entry, as the reader of the tutorial does: with the key that is in the file."""
    text = file.read_text()
    key = re.search(r"key: (\S+)", text)
    assert key is not None
    file.write_text(text + entry.replace("${WEB_KEY}", key[1]))


def _get(url: str) -> bytes:
    port = int(url.rpartition(":")[2].strip("/"))
    found: list[bytes] = []

    def has_answer() -> bool:
        try:
            found.append(exchange(("127.0.0.1", port), b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2])
        except OSError:
            return False
        return bool(found[-1])

    wait_until(has_answer, f"{url} answers")
    return found[-1]


# --- files and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", FILES, ids=lambda block: block.place)
def test_a_file_of_the_pages_passes_check(block: Block, tmp_path: Path) -> None:
    text = block.text if not block.text.startswith(" ") else f"tunnels:\n{block.text}"
    root = yaml.safe_load(text)
    assert set(root) <= set(FILE_KEYS), "a block of another kind needs another language than yaml"
    text = text if "version" in root else f"version: 1\n{text}"
    for name in re.findall(r"(?:key_file|password_file|token_file|token): ([\w.-]+)", text):
        (tmp_path / name).write_text(generate_key())
        (tmp_path / name).chmod(0o600)
    environ = {name: generate_key() for name in re.findall(r"\$\{(\w+)", text)} | {"NODEPASS_ORCH_KEY": generate_key()}
    file = tmp_path / "tunnels.yaml"
    file.write_text(text)
    file.chmod(0o600)
    try:
        manifest = load(file, environ)
    except ConfigError as error:
        pytest.fail(f"{block.place}: {error}")
    assert not manifest.warnings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_dead_link(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "a.md"
    page.write_text("[1](b.md) [2](b.md#a-heading-with-code) [3](c.md) [4](b.md#other) [5](https://x/) [6](#none)\n")
    assert list(dead_links(page)) == ["c.md", "b.md#other", "#none"]


def test_every_page_of_docs_is_in_its_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [
        path
        for page in (ROOT / "docs").rglob("*.md")
        if page.parent.name != "decisions"
        and page != ROOT / "docs" / "README.md"
        and f"({(path := str(page.relative_to(ROOT / 'docs')))})" not in index
    ]
    assert not missing
