"""The command that tests the way through tunnels of a running daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from orchestrator.client import RequestRefusedError
from orchestrator.commands.common import (
    EXIT_FAILED,
    complete_names,
    exit_on_api_error,
    file_option,
    json_option,
    make_client,
    print_json,
    select_tunnels,
    socket_option,
)
from orchestrator.process.messages import print_message
from orchestrator.status.tunnel_test import describe_test

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=complete_names)
@json_option
@socket_option
@file_option
def test(*, names: tuple[str, ...], as_json: bool, socket: Path | None, file: Path | None) -> int:
    """Dial through tunnels to their targets and time each leg; NAME may be a pattern like edge-*.

    The end that accepts visitors times the whole way, the other end its links and its targets. A test is no visitor:
    it is not counted, listed or logged as one. Exit code 1 if a leg fails.
    """
    has_failed = False
    results = []
    with exit_on_api_error():
        client = make_client(socket, file)
        selected = [tunnel["name"] for tunnel in select_tunnels(client.status()["tunnels"], names)]
        for name in selected:
            try:
                found = client.test(name)
            except RequestRefusedError as error:
                if len(selected) == 1:
                    raise
                print_message(f"{name}: {error}")
                has_failed = True
                continue
            results.append(found)
            has_failed |= not found["ok"]
            if not as_json:
                lines = describe_test(found)
                click.echo("\n".join(lines if len(selected) == 1 else [f"{name}:", *(f"  {line}" for line in lines)]))
    if as_json:
        print_json({"tests": results})
    return EXIT_FAILED if has_failed else 0


COMMANDS: Final = (test,)
