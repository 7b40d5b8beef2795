from pathlib import Path

import pytest

from tests.bench import contenders
from tests.bench.processes import BenchError

PLACES = {"tunnel_port": 1, "visitor_port": 2, "target_port": 3, "dir": "/d"}


def write_file(directory: Path, text: str) -> Path:
    path = directory / "contenders.toml"
    path.write_text(text)
    return path


def test_only_known_placeholders_are_replaced() -> None:
    one = contenders.Contender(
        "x", ("absent", "{tunnel_port}:{visitor_port}"), ("absent", "{dir}/{other}"), files={"f": "{ {target_port} }"}
    )
    filled = one.filled(PLACES)
    assert filled.server == ("absent", "1:2")
    assert filled.client == ("absent", "/d/{other}")
    assert filled.files == {"f": "{ 3 }"}


def test_the_two_haproxy_hops_share_the_tunnel_port() -> None:
    files = contenders.haproxy().filled(PLACES).files
    assert "bind 127.0.0.1:2\n    server next 127.0.0.1:1\n" in files["ingress.cfg"]
    assert "bind 127.0.0.1:1\n    server next 127.0.0.1:3\n" in files["egress.cfg"]


def test_the_command_of_this_project_can_be_replaced() -> None:
    one = contenders.ours("python -X dev -m thing")
    assert one.server[:-1] == one.client[:-1] == ("python", "-X", "dev", "-m", "thing")
    assert one.filled(PLACES).client[-1] == "client://127.0.0.1:1/127.0.0.1:3?log=warn"


def test_a_missing_program_is_named() -> None:
    assert contenders.ours("no-such-program").missing() == "no-such-program"
    assert contenders.direct().missing() is None


def test_the_example_file_is_valid() -> None:
    found = contenders.load(Path(__file__).with_name("contenders.example.toml"))
    assert [one.name for one in found] == ["ours-min64", "socat"]
    assert "min_pool_capacity=64" in found[0].server[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[contender]]\nname = 1", "contender 1: needs name, server and client"),
        ("[contender]", "as a \\[\\[contender\\]\\] table"),
        ("[other]", "as a \\[\\[contender\\]\\] table"),
        ("x = ]", "not TOML: .*line 1"),
        ("[[contender]]\nname='a'\nserver='b'\nclient='c'\ncolour='red'", "unknown key 'colour'; known are name"),
        ("[[contender]]\nname='a'\nserver='\"b'\nclient='c'", "cannot be split"),
        ("[[contender]]\nname='a'\nserver=''\nclient='c'", "must each name a program"),
        ("[[contender]]\nname='a'\nserver='b'\nclient='c'\nenv={X=1}", "env must be a table of strings"),
        ("[[contender]]\nname='ours'\nserver='b'\nclient='c'", "the name 'ours' is in use"),
    ],
)
def test_an_invalid_file_is_refused_with_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        contenders.load(write_file(tmp_path, text))


def test_a_missing_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file"):
        contenders.load(tmp_path / "none.toml")


def test_an_empty_command_for_this_project_is_refused() -> None:
    with pytest.raises(BenchError, match="--ours-command is empty"):
        contenders.ours("")
