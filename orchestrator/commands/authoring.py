"""The commands that write files: ``init`` for a first tunnel, ``import`` for those of other programs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from orchestrator.commands.common import EXIT_FAILED, EXIT_USAGE, exit_with_error
from orchestrator.process.terminal_text import printable
from tunnel.model.address import Address, parse_address
from tunnel.model.errors import UrlError
from tunnel.model.files import FileError, read_file
from tunnel.model.keys import generate_key
from tunnel.model.spec import Proto
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from orchestrator.authoring.draft import Note, WrittenFile
    from orchestrator.authoring.source import ForeignFile
    from orchestrator.authoring.starter import Starter

_TUNNEL_PORT: Final = 10101
_MAX_IMPORT_BYTES: Final = 4 << 20
_PROGRAMS: Final = ("nodepass", "frp", "rathole")

_directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    help="Where the files are written; default: this directory.",
)


def _parse_address_option(text: str, default_host: str, option: str, default_port: int | None = None) -> Address:
    """Return the address of an option: ``HOST:PORT``, or a port alone, or with a default port a host alone."""
    if text.isascii() and text.isdigit() and default_host:
        text = f"{default_host}:{text}"
    elif default_port is not None and (not text.rpartition(":")[2].isdigit() or text.count(":") > 1 > text.count("[")):
        bare = text.removeprefix("[").removesuffix("]")
        text = f"[{bare}]:{default_port}" if ":" in bare else f"{bare}:{default_port}"
    try:
        address = parse_address(text)
    except UrlError as error:
        raise click.UsageError(f"{option}: {error}") from None
    if not address.port:
        raise click.UsageError(f"{option}: port 0 is not one that can be reached; name a port from 1 to 65535")
    return address


@click.command()
@click.option(
    "--server",
    metavar="HOST[:PORT]",
    help=f"Where the client finds the server; default: this host, port {_TUNNEL_PORT}.",
)
@click.option(
    "--visitors", metavar="[HOST:]PORT", default="8080", show_default=True, help="Where visitors are accepted."
)
@click.option(
    "--target", metavar="[HOST:]PORT", default="3000", show_default=True, help="The service that visitors reach."
)
@click.option(
    "--forward", is_flag=True, help="The client accepts the visitors, and the server connects them to the target."
)
@click.option(
    "--proto",
    type=click.Choice([proto.value for proto in Proto]),
    default="tcp",
    show_default=True,
    help="What visitors and the service speak.",
)
@click.option("--name", metavar="NAME", default="web", show_default=True, help="The name of the tunnel.")
@_directory_option
def init(
    *, server: str | None, visitors: str, target: str, forward: bool, proto: str, name: str, directory: Path
) -> int:
    """Write server.yaml and client.yaml for a first tunnel between two hosts, with a new key."""
    from orchestrator.authoring.starter import Starter, own_address  # noqa: PLC0415  loads the file reader
    from orchestrator.config.faults import ConfigError  # noqa: PLC0415  as above

    if not name.isprintable():
        exit_with_error(EXIT_USAGE, f"--name: {name!r} has characters that cannot be printed")
    where = server or own_address()
    if not where:
        exit_with_error(
            EXIT_USAGE, "this host has no address that others reach; name that of the server: init --server HOST"
        )
    starter = Starter(
        name=name,
        server=_parse_address_option(where, "", "--server", _TUNNEL_PORT),
        visitors=_parse_address_option(visitors, "127.0.0.1" if forward else "0.0.0.0", "--visitors"),
        target=_parse_address_option(target, "127.0.0.1", "--target"),
        is_forward=forward,
        proto=Proto(proto),
        key=generate_key(),
    )
    try:
        files = starter.write()
    except (ConfigError, UrlError) as error:
        exit_with_error(EXIT_USAGE, str(error))
    for written in files:
        if written.notes:
            exit_with_error(EXIT_USAGE, written.notes[0].text.removeprefix("is left out: "))
    paths = directory / "server.yaml", directory / "client.yaml"
    _create({path: written.text for path, written in zip(paths, files, strict=True)})
    _show_next_steps(starter, paths, is_guessed=server is None)
    return 0


_PORT_TEXTS: Final = {Proto.TCP: "port", Proto.UDP: "UDP port", Proto.BOTH: "TCP and UDP port"}


def _show_next_steps(starter: Starter, paths: tuple[Path, Path], *, is_guessed: bool) -> None:
    """Name the written files and what to run on each host; an address that was not given may be the wrong one."""
    host = starter.server.host
    ingress, egress = ("the other host", host) if starter.is_forward else (host, "the other host")
    click.echo(f"wrote {paths[0]} for {host},")
    click.echo(f"and {paths[1]} for the other host: copy that file there. Then run:")
    click.echo(f"  on {host}:  nodepass-orch up -d {shlex.quote(str(paths[0]))}")
    click.echo("  on the other host:  nodepass-orch up -d client.yaml --wait")
    port = f"{_PORT_TEXTS[starter.proto]} {starter.visitors.port}"
    click.echo(f"Visitors of {port} of {ingress} then reach {starter.target} of {egress}.")
    click.echo(
        "Both files contain the key, and only their owner can read them (mode 0600): keep that where you copy them.\n"
        "Not up? nodepass-orch ps shows the reason, nodepass-orch logs the log."
    )
    if is_guessed:
        click.echo(
            f"{host} is an address of this host; if the client needs another one: nodepass-orch init --server HOST"
        )


def _create(texts: Mapping[Path, str]) -> None:
    from orchestrator.authoring.starter import FileExistsHereError, create_files  # noqa: PLC0415  as in init

    try:
        create_files(texts)
    except FileExistsHereError as error:
        exit_with_error(EXIT_FAILED, str(error))
    except OSError as error:
        exit_with_error(EXIT_FAILED, f"cannot write {error.filename}: {error.strerror}")


@click.command(name="import")
@click.argument("program", type=click.Choice(_PROGRAMS))
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path))
@_directory_option
def import_files(*, program: str, files: tuple[Path, ...], directory: Path) -> int:
    """Translate files of nodepass, frp or rathole, and list what cannot be translated.

    nodepass: command lines, compose files, instances of a master as JSON. frp: frpc.toml or .ini, also together with
    that of frps. rathole: its TOML.
    """
    from orchestrator.authoring.source import ImportFileError  # noqa: PLC0415  as in init

    sources = [_read_source(path, program) for path in files]
    try:
        written = _translate(program, sources)
    except ImportFileError as error:
        _list_notes([note for source in sources for note in source.notes])
        exit_with_error(EXIT_USAGE, str(error))
    notes = [note for source in sources for note in source.notes]
    _list_notes(notes + [note for each in written.values() for note in each.notes])
    texts = {directory / name: each for name, each in written.items() if each.drafts}
    if not texts:
        exit_with_error(EXIT_FAILED, "nothing could be translated, so no file is written")
    _create({path: each.text for path, each in texts.items()})
    for path, each in texts.items():
        count = plural(len(each.drafts), "tunnel")
        click.echo(f"wrote {printable(str(path))} ({count}); next: nodepass-orch check {shlex.quote(str(path))}")
    return 0


def _list_notes(notes: Sequence[Note]) -> None:
    for note in dict.fromkeys(notes):
        click.echo(str(note), err=True)


def _read_source(path: Path, program: str) -> ForeignFile:
    from orchestrator.authoring.nodepass import BINARY_TEXT  # noqa: PLC0415  as in init
    from orchestrator.authoring.source import ForeignFile  # noqa: PLC0415  as in init

    try:
        content = read_file(path, _MAX_IMPORT_BYTES)
        is_gob = program == "nodepass" and b"\0" in content.data
        return ForeignFile(str(path), BINARY_TEXT if is_gob else content.text())
    except FileError as error:
        exit_with_error(EXIT_FAILED, f"cannot read {path}: {error}")


def _translate(program: str, sources: Sequence[ForeignFile]) -> dict[str, WrittenFile]:
    """Return the files that are to be written, by their names. Raises ImportFileError."""
    from orchestrator.authoring import frp, nodepass, rathole  # noqa: PLC0415  as in init
    from orchestrator.authoring.draft import write_file  # noqa: PLC0415  as in init
    from orchestrator.authoring.frp import CLIENT_DEFAULTS, SERVER_DEFAULTS  # noqa: PLC0415  as in init

    title = [
        f"Made from {', '.join(Path(source.name).name for source in sources)} of {program} by nodepass-orch import.",
        f"Both ends of a tunnel have to run nodepass-orch: it does not speak the protocol of {program}.",
    ]
    if program == "nodepass":
        drafts = [draft for source in sources for draft in nodepass.translate(source)]
        return {"tunnels.yaml": write_file(drafts, [*title, *_as_comment(sources)])}
    found = frp.translate(sources, environ=os.environ) if program == "frp" else rathole.translate(sources)
    comment = [*title, *_as_comment(sources)]
    stems = [Path(name).stem for name in found.clients]
    names = ["client.yaml"] if len(stems) == 1 else [f"client-{n}-{stem}.yaml" for n, stem in enumerate(stems, 1)]
    clients = zip(names, found.clients.values(), strict=True)
    return {
        "server.yaml": write_file(found.server, comment, SERVER_DEFAULTS),
        **{name: write_file(drafts, comment, CLIENT_DEFAULTS) for name, drafts in clients},
    }


def _as_comment(sources: Sequence[ForeignFile]) -> list[str]:
    """Return the notes of sources for the head of a file, which outlives the output of the command."""
    notes = [f"  {note}" for source in sources for note in source.notes]
    return ["Left out, or different:", *notes] if notes else []


COMMANDS: Final = (init, import_files)
