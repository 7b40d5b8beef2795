"""The commands that list and disconnect visitors of a running daemon."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from orchestrator.commands.common import (
    EXIT_FAILED,
    EXIT_USAGE,
    exit_on_api_error,
    exit_with_error,
    file_option,
    json_option,
    make_client,
    names_argument,
    print_json,
    print_screen,
    select_tunnels,
    socket_option,
)
from orchestrator.process.messages import print_message
from orchestrator.status.visitors import RateMeter
from orchestrator.visitor_table import SORT_KEYS, format_visitors, sort_visitors
from tunnel.model.errors import InvalidValueError
from tunnel.model.visitors import parse_selector
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.client import ApiClient
    from orchestrator.status.json_types import VisitorJson

_WATCH_INTERVAL_S: Final = 1.0
_RATES_S: Final = 1.0
_ANSWER_TIMEOUT_S: Final = 30.0  # for tens of thousands of visitors on a busy host


@click.command()
@names_argument
@json_option
@click.option("--watch", is_flag=True, help="Repeat every second, with rates, until Ctrl-C.")
@click.option("--rates", is_flag=True, help="Measure rates for a second.")
@click.option("--sort", type=click.Choice(list(SORT_KEYS)), help="Order; default: by tunnel, with rates by rate.")
@click.option("-n", "limit", type=click.IntRange(1), metavar="COUNT", help="Show the first COUNT only.")
@socket_option
@file_option
def visitors(
    *, names: tuple[str, ...], as_json: bool, watch: bool, rates: bool, sort: str | None, limit: int | None,
    socket: Path | None, file: Path | None,
) -> int:  # fmt: skip
    """List the visitors of tunnels, of all without NAME; NAME may be a pattern like edge-*.

    At an egress the target is shown, at an ingress it is not known. An ID is the same at both ends.
    """
    rates = rates or sort == "rate"
    order = sort or ("rate" if rates or watch else "tunnel")
    meter = RateMeter()
    with exit_on_api_error():
        client = make_client(socket, file, _ANSWER_TIMEOUT_S)
        while True:
            found = client.visitors(_select_busy(client, names), _RATES_S if rates and not watch else 0.0)["visitors"]
            if watch:
                meter.start_list()
                meter.measure(found)
            shown = sort_visitors(found, order, limit)
            if as_json:
                print_json({"visitors": shown})
            else:
                _print_visitors(shown, len(found), is_screen=watch and sys.stdout.isatty())
            if not watch:
                return 0
            sys.stdout.flush()
            time.sleep(_WATCH_INTERVAL_S)


def _select_busy(client: ApiClient, names: Sequence[str]) -> list[str]:
    """Return the names of the selected tunnels; none if all are meant."""
    return [tunnel["name"] for tunnel in select_tunnels(client.status()["tunnels"], names)] if names else []


def _print_visitors(shown: Sequence[VisitorJson], total: int, *, is_screen: bool) -> None:
    text = format_visitors(shown) if shown else "no visitors"
    rest = f"{total - len(shown)} more" if len(shown) < total else ""
    if is_screen:
        print_screen([*text.split("\n"), *([rest] if rest else [])])
        return
    (click.echo if shown else print_message)(text)
    if rest:
        print_message(rest)


@click.command()
@click.argument("which", metavar="ID|ADDRESS|NETWORK")
@names_argument
@json_option
@socket_option
@file_option
def kick(*, which: str, names: tuple[str, ...], as_json: bool, socket: Path | None, file: Path | None) -> int:
    """Disconnect a visitor by ID, or all from an address (with or without port) or a network like 192.0.2.0/24.

    Of all tunnels, or of those named; NAME may be a pattern like edge-*. Exit code 1 if no visitor is meant.
    """
    try:
        parse_selector(which)
    except InvalidValueError as error:
        exit_with_error(EXIT_USAGE, str(error))
    with exit_on_api_error():
        client = make_client(socket, file, _ANSWER_TIMEOUT_S)
        kicked = client.kick(which, _select_busy(client, names))["kicked"]
    if as_json:
        print_json({"kicked": kicked})
    elif kicked:
        click.echo(format_visitors(sort_visitors(kicked, "tunnel")))
    if not kicked:
        print_message(f"no present visitor has the ID or address {which}")
        return EXIT_FAILED
    if not as_json:
        print_message(f"{plural(len(kicked), 'visitor')} disconnected")
    return 0


COMMANDS: Final = (visitors, kick)
