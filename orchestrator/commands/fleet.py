"""The commands of ``nodepass-orch fleet``: all hosts of a broker, from scripts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.commands.common import (
    EXIT_FAILED,
    EXIT_NO_DAEMON,
    EXIT_NOT_UP,
    EXIT_USAGE,
    CommandGroup,
    exit_with_error,
    json_option,
    parse_duration_option,
    print_json,
)
from orchestrator.commands.control import format_tunnels
from orchestrator.process.logformat import printable
from orchestrator.process.setup import print_message
from tunnel.model.errors import did_you_mean

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.fleet import Fleet, Host, Json
    from orchestrator.mqtt.reader import Reader

URL_VARIABLE: Final = "NODEPASS_ORCH_MQTT"

_ALL: Final = "*"
_Order = tuple[str, str | None]  # host and tunnel


@click.group(cls=CommandGroup)
def fleet() -> None:
    """See and steer all hosts that publish to a broker."""


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which broker, and who asks."""
    help_text = f"mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT], percent-encoded; also {URL_VARIABLE}."
    url = click.option("--mqtt", "url", metavar="URL", envvar=URL_VARIABLE, required=True, help=help_text)
    return url(credential_options(command))


def credential_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say who asks a broker."""
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--cert-key", type=file, help="The key of --cert, if it is in another file."),
        click.option("--cert", type=file, help="Our own certificate, for a broker that wants one."),
        click.option("--ca", type=file, help="Who may sign the broker's certificate, if not the system's authorities."),
        click.option("--password-file", type=file, help="The broker's password, if it is not in the URL."),
        click.option("--username", help="The broker's user, if it is not in the URL."),
    ):
        command = option(command)
    return command


def broker_at(url: str, **given: Any) -> Broker:  # noqa: ANN401  the other options
    """The broker that the options name; what makes no sense ends the command."""
    from orchestrator.mqtt.broker import PASSWORD_VARIABLE, Broker  # noqa: PLC0415  only where a broker is asked

    if given.get("password_file") is None:
        given["password"] = os.environ.get(PASSWORD_VARIABLE)
    try:
        broker = Broker.from_url(url, **given)
    except ValueError as error:
        exit_with_error(EXIT_USAGE, f"--mqtt: {error}")
    if not broker.is_tls and (broker.ca or broker.cert):
        exit_with_error(EXIT_USAGE, "--ca and --cert are for TLS: write --mqtt mqtts://…")
    return broker


def _with_reader(broker: Broker, work: Callable[[Reader], Coroutine[Any, Any, int]]) -> int:
    """Read the fleet, then do something with it; the exit code."""
    from orchestrator.mqtt.broker import BrokerError  # noqa: PLC0415  as in broker_at
    from orchestrator.mqtt.reader import Reader  # noqa: PLC0415

    async def run() -> int:
        reader = Reader(broker)
        async with reader.reading():
            return await work(reader)

    try:
        return asyncio.run(run())
    except BrokerError as error:
        exit_with_error(EXIT_NO_DAEMON, str(error))


@fleet.command()
@click.argument("names", nargs=-1, metavar="[HOST[/TUNNEL]]…")
@json_option
@click.option("--paths", is_flag=True, help="Show both ends of each link as one path, wherever they run.")
@broker_options
def ps(*, names: tuple[str, ...], as_json: bool, paths: bool, **broker: Any) -> int:  # noqa: ANN401  as in broker_at
    """List the tunnels of all hosts, or of some; names may be patterns like edge-*.

    Exit 3 if a host is gone or a tunnel is not up.
    """

    async def list_them(reader: Reader) -> int:
        now = time.monotonic()
        hosts = _chosen(reader.fleet, names, now)
        if paths:
            _show_paths(reader.fleet, hosts, now, as_json=as_json)
        elif as_json:
            print_json({"hosts": hosts})
        else:
            _show_hosts(hosts)
        is_good = all(h["presence"] == "online" and all(t["state"] == "up" for t in h["tunnels"]) for h in hosts)
        return 0 if is_good else EXIT_NOT_UP

    return _with_reader(broker_at(**broker), list_them)


def _chosen(found: Fleet, names: Sequence[str], now: float) -> list[Json]:
    """The hosts as JSON, with those of their tunnels that are meant; a name that means nothing ends the command."""
    hosts = [host.as_json(now, time.time()) for host in found]
    if not names:
        return hosts
    for name in names:
        _meant(found, name)
    chosen = []
    for host in hosts:
        tunnels = [t for t in host["tunnels"] if any(_matches(host["host"], t["name"], name) for name in names)]
        if tunnels or any(fnmatchcase(host["host"], name) for name in names):
            chosen.append({**host, "tunnels": tunnels})
    return chosen


def _matches(host: str, tunnel: str, name: str) -> bool:
    host_name, slash, tunnel_name = name.partition("/")
    return _is(host, host_name) and (not slash or _is(tunnel, tunnel_name))


def _is(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _meant(found: Fleet, name: str) -> list[_Order]:
    """What HOST[/TUNNEL] or a pattern of it stands for; nothing ends the command."""
    host_name, slash, tunnel_name = name.partition("/")
    hosts = [host for host in found if _is(host.name, host_name)]
    if not hosts:
        hint = did_you_mean(host_name, sorted(found.hosts)) or _heard_of(found)
        exit_with_error(EXIT_FAILED, f"no host {host_name!r} has published to this broker{hint}")
    if not slash:
        return [(host.name, None) for host in hosts]
    meant = [(host.name, name) for host in hosts for name in _names(host) if _is(name, tunnel_name)]
    if not meant:
        known = sorted({name for host in hosts for name in _names(host)})
        exit_with_error(
            EXIT_FAILED, f"no tunnel of {host_name} is named {tunnel_name!r}{did_you_mean(tunnel_name, known)}"
        )
    return list(meant)


def _names(host: Host) -> list[str]:
    return [str(tunnel["name"]) for tunnel in host.tunnels()]


def _heard_of(found: Fleet) -> str:
    return "; nobody has" if not found.hosts else f"; known: {', '.join(sorted(found.hosts)[:10])}"


def _show_hosts(hosts: Sequence[Json]) -> None:
    if not hosts:
        print_message("no host has published to this broker")
    for number, host in enumerate(hosts):
        if number:
            click.echo()
        click.echo(printable(_headline(host)))
        if not host["config"]["ok"] and host["config"]["error"]:
            click.echo(printable(f"the last good configuration is in force: {host['config']['error']}"))
        if host["tunnels"]:
            click.echo(format_tunnels([_as_of_now(tunnel, host) for tunnel in host["tunnels"]]))


def _as_of_now(tunnel: Json, host: Json) -> Json:
    """Nobody knows how a tunnel of a host that is gone is."""
    return tunnel if host["presence"] == "online" else {**tunnel, "state": f"was {tunnel['state']}"}


def _headline(host: Json) -> str:
    machine = f" ({host['name']})" if host["name"] not in {None, host["host"]} else ""
    count = len(host["tunnels"])
    words = [f"{host['host']}{machine}", host["presence"], "1 tunnel" if count == 1 else f"{count} tunnels"]
    if host["presence"] != "online":
        words.append("last heard of " + ("at an unknown time" if host["age_s"] is None else _ago(host["age_s"])))
    return ", ".join(words)


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _show_paths(found: Fleet, hosts: Sequence[Json], now: float, *, as_json: bool) -> None:
    from orchestrator.mqtt.pairing import paths  # noqa: PLC0415  as in broker_at

    wanted = {(host["host"], tunnel["name"]) for host in hosts for tunnel in host["tunnels"]}
    chosen = [
        path
        for path in paths(found, now)
        if any(end and (end.host, end.tunnel["name"]) in wanted for end in (path.server, path.client))
    ]
    if as_json:
        print_json({"paths": [path.as_json() for path in chosen]})
        return
    for path in chosen:
        click.echo(printable(str(path)))
    if not chosen:
        print_message("there are no tunnels")


def _verb(verb: str, text: str, *, drains: bool) -> None:
    def tell(*, names: tuple[str, ...], as_json: bool, timeout: float | None = None, **broker: Any) -> int:  # noqa: ANN401  as in broker_at
        async def tell_them(reader: Reader) -> int:
            orders = list(dict.fromkeys(order for name in names for order in _meant(reader.fleet, name)))
            if verb == "reload" and any(tunnel is not None for _, tunnel in orders):
                exit_with_error(EXIT_USAGE, "reload is for whole hosts: name HOST without /TUNNEL")
            results = await asyncio.gather(*(_told(reader, verb, order, timeout) for order in orders))
            return _report(verb, results, as_json=as_json)

        return _with_reader(broker_at(**broker), tell_them)

    metavar = "HOST…" if verb == "reload" else "HOST[/TUNNEL]…"
    decorators: list[Callable[[Any], Any]] = [
        click.argument("names", nargs=-1, required=True, metavar=metavar),
        json_option,
        broker_options,
    ]
    if drains:
        help_text = "How long present visitors may finish, as in 30s."
        decorators.append(click.option("--timeout", metavar="DURATION", callback=parse_duration_option, help=help_text))
    for decorate in reversed(decorators):
        tell = decorate(tell)
    patterns = "Names may be patterns like edge-*."
    fleet.command(verb, help=f"{text} {patterns}")(tell)


async def _told(reader: Reader, verb: str, order: _Order, timeout: float | None) -> Json:  # noqa: ASYNC109  of the drain
    from orchestrator.mqtt.broker import BrokerError  # noqa: PLC0415  as in broker_at
    from orchestrator.mqtt.reader import NoAnswerError  # noqa: PLC0415

    host, tunnel = order
    target = None if verb == "reload" else tunnel or _ALL
    began = time.monotonic()
    try:
        answer = await reader.command(host, verb, target, timeout)
    except (NoAnswerError, BrokerError) as error:
        answer = {"ok": False, "error": str(error), "result": None, "answered": False}
    seconds = round(time.monotonic() - began, 3)
    return {"host": host, "tunnel": tunnel, "answered": True, **answer, "seconds": seconds}


def _report(verb: str, results: Sequence[Json], *, as_json: bool) -> int:
    is_good = all(result["ok"] for result in results)
    if as_json:
        keys = ("host", "tunnel", "ok", "error", "result", "seconds")
        print_json({"ok": is_good, "results": [{key: result.get(key) for key in keys} for result in results]})
    else:
        for result in results:
            place = f"{result['host']}/{result['tunnel']}" if result["tunnel"] else result["host"]
            (click.echo if result["ok"] else print_message)(printable(f"{place}: {_outcome(verb, result)}"))
    if any(not result["answered"] for result in results):
        return EXIT_NO_DAEMON
    return 0 if is_good else EXIT_FAILED


def _outcome(verb: str, result: Json) -> str:
    if not result["ok"]:
        return str(result.get("error"))
    found = result.get("result") or {}
    if verb == "reload":
        return f"generation {found.get('generation')}, {len(found.get('results') or ())} tunnels"
    tunnels = found.get("tunnels")
    return str(found.get("text")) if tunnels is None else f"{len(tunnels)} tunnels told to {verb}"


_verb("start", "Run tunnels that rest; HOST alone means all of its tunnels.", drains=False)
_verb("stop", "Drain tunnels up to their SHUTDOWN_TIMEOUT, then let them rest; HOST alone means all.", drains=True)
_verb("restart", "Drain tunnels up to their SHUTDOWN_TIMEOUT, then run them anew; HOST alone means all.", drains=True)
_verb("drain", "Drain tunnels up to the file's drain_timeout, then let them rest; HOST alone means all.", drains=True)
_verb("retry", "End the cooldown of tunnels; HOST alone means all.", drains=False)
_verb("reload", "Have hosts read their file again.", drains=False)
