"""The commands of ``nodepass-orch fleet``: all hosts of a broker, for scripts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.commands.common import (
    EXIT_FAILED,
    EXIT_NO_DAEMON,
    EXIT_NOT_UP,
    EXIT_USAGE,
    CommandGroup,
    chosen_member,
    exit_with_error,
    is_as_wanted,
    json_option,
    member_options,
    parse_duration_option,
    print_json,
)
from orchestrator.commands.control import format_tunnels
from orchestrator.name_patterns import matching_names
from orchestrator.process.messages import print_message
from orchestrator.process.terminal_text import printable
from orchestrator.table import format_bytes
from orchestrator.tunnel_commands import TUNNEL_COMMANDS
from tunnel.model.errors import did_you_mean
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Broker
    from orchestrator.mqtt.fleet import Fleet
    from orchestrator.mqtt.payloads import ResponsePayload
    from orchestrator.mqtt.reader import FleetReader
    from orchestrator.status.json_types import HostJson, TunnelJson

URL_VARIABLE: Final = "NODEPASS_ORCH_MQTT"

_ALL_TUNNELS: Final = "*"
_RELOAD: Final = "reload"
_MAX_HOSTS_LISTED: Final = 10
_CLOCKS_DIFFER_S: Final = 5.0  # a difference of the clocks that is reported


@click.group(cls=CommandGroup)
def fleet() -> None:
    """List and control all hosts that publish to a broker."""


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a broker, and the credentials for it."""
    help_text = f"mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT], percent-encoded; also {URL_VARIABLE}."
    url = click.option("--mqtt", "url", metavar="URL", envvar=URL_VARIABLE, help=help_text)
    return url(credential_options(command))


def credential_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for the credentials of a broker."""
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--cert-key", type=file, help="The key of --cert, if it is in another file."),
        click.option("--cert", type=file, help="The client certificate, for a broker that requires one."),
        click.option(
            "--ca", type=file, help="The authorities that may sign the broker's certificate; default: the system's."
        ),
        click.option("--password-file", type=file, help="The broker's password, if it is not in the URL."),
        click.option("--username", help="The broker's user, if it is not in the URL."),
    ):
        command = option(command)
    return command


def broker_at(url: str | None, **given: Any) -> Broker:  # noqa: ANN401  the other options
    """The broker that the options name; none, or options that contradict one another, end the command."""
    if not url:
        exit_with_error(EXIT_USAGE, f"name the broker: --mqtt mqtt://HOST, or {URL_VARIABLE} in the environment")
    from orchestrator.mqtt.broker import PASSWORD_VARIABLE, Broker  # noqa: PLC0415  imports aiomqtt only where needed

    if given.get("password_file") is None:
        given["password"] = os.environ.get(PASSWORD_VARIABLE)
    try:
        broker = Broker.from_url(url, **given)
    except ValueError as error:
        exit_with_error(EXIT_USAGE, f"--mqtt: {error}")
    if not broker.is_tls and (broker.ca or broker.cert):
        exit_with_error(EXIT_USAGE, "--ca and --cert are for TLS: write --mqtt mqtts://…")
    return broker


def _run_with_reader(
    broker: Broker, work: Callable[[FleetReader], Coroutine[Any, Any, int]], names: Sequence[str] = ()
) -> int:
    """Read the fleet, then do the work; the exit code. With names, the tunnels of other hosts are not read."""
    from orchestrator.mqtt.broker import BrokerError  # noqa: PLC0415  as in broker_at
    from orchestrator.mqtt.reader import FleetReader  # noqa: PLC0415
    from orchestrator.process.setup import run_event_loop  # noqa: PLC0415

    patterns = [name.partition("/")[0] for name in names]

    def is_named(host: str) -> bool:
        return not patterns or any(matching_names([host], pattern) for pattern in patterns)

    async def run() -> int:
        reader = FleetReader(broker, wants_tunnels=is_named)
        async with reader.connected():
            return await work(reader)

    try:
        return run_event_loop(run())
    except BrokerError as error:
        exit_with_error(EXIT_NO_DAEMON, str(error))


# --- ps ---------------------------------------------------------------------------------------------------------------


@fleet.command()
@click.argument("names", nargs=-1, metavar="[HOST[/TUNNEL]]…")
@json_option
@click.option("--routes", is_flag=True, help="Show both ends of each link as one route, on whichever hosts they run.")
@click.option("--strict", is_flag=True, help="Exit code 2 if a host refused its file and runs with an earlier one.")
@broker_options
def ps(
    *, names: tuple[str, ...], as_json: bool, routes: bool, strict: bool, **broker: Any,  # noqa: ANN401  as in broker_at
) -> int:  # fmt: skip
    """List the tunnels of all hosts, or of some; names may be patterns like edge-*.

    Exit 3 if a host is gone or silent, or an enabled tunnel is not up. If a host refused its file, as it is now, the
    line after its name has the fault; the tunnels of its last valid file go on.
    """

    async def list_tunnels(reader: FleetReader) -> int:
        await reader.ask_silent_hosts()
        now = time.monotonic()
        hosts = _select_hosts(reader.fleet, names, now)
        if routes:
            _print_routes(reader.fleet, hosts, now, as_json=as_json)
        elif as_json:
            print_json({"hosts": hosts})
        else:
            _print_hosts(hosts)
        refused = [host for host in hosts if host["config"]["ok"] is False]  # None: it has not published that
        if strict and refused:
            if routes:  # which name no file
                for host in refused:
                    print_message(printable(f"{host['host']}: {_describe_refused_file(host)}"))
            return EXIT_USAGE
        is_good = all(h["presence"] == "online" and all(map(is_as_wanted, h["tunnels"])) for h in hosts)
        return 0 if is_good else EXIT_NOT_UP

    return _run_with_reader(broker_at(**broker), list_tunnels, () if routes else names)


def _select_hosts(found: Fleet, names: Sequence[str], now: float) -> list[HostJson]:
    """The named hosts as JSON, with the named tunnels; a name that matches nothing ends the command."""
    hosts = [host.as_json(now, time.time()) for host in found]
    if not names:
        return hosts
    targets = {target for name in names for target in _resolve_targets(found, name)}
    selected: list[HostJson] = []
    for host in hosts:
        is_whole = _Target(host["host"]) in targets
        tunnels = [t for t in host["tunnels"] if is_whole or _Target(host["host"], t["name"]) in targets]
        if tunnels or is_whole:
            selected.append({**host, "tunnels": tunnels})
    return selected


@dataclass(frozen=True, slots=True)
class _Target:
    """What a command is for: a tunnel, or a whole host."""

    host: str
    tunnel: str | None = None

    def __str__(self) -> str:
        return f"{self.host}/{self.tunnel}" if self.tunnel else self.host


def _resolve_targets(found: Fleet, name: str) -> list[_Target]:
    """The targets that HOST[/TUNNEL], or a pattern of it, matches; none ends the command."""
    host_pattern, slash, tunnel_pattern = name.partition("/")
    matching = set(matching_names([host.name for host in found], host_pattern))
    hosts = [host for host in found if host.name in matching]
    if not hosts:
        hint = did_you_mean(host_pattern, sorted(found.hosts)) or _known_hosts(found)
        exit_with_error(EXIT_FAILED, f"no host {host_pattern!r} has published to this broker{hint}")
    if not slash:
        return [_Target(host.name) for host in hosts]
    targets = [
        _Target(host.name, name) for host in hosts for name in matching_names(host.tunnel_names(), tunnel_pattern)
    ]
    if not targets:
        known = sorted({name for host in hosts for name in host.tunnel_names()})
        exit_with_error(
            EXIT_FAILED, f"no tunnel of {host_pattern} is named {tunnel_pattern!r}{did_you_mean(tunnel_pattern, known)}"
        )
    return targets


def _known_hosts(found: Fleet) -> str:
    if not found.hosts:
        return "; no host has"
    return f"; known hosts: {', '.join(sorted(found.hosts)[:_MAX_HOSTS_LISTED])}"


def _print_hosts(hosts: Sequence[HostJson]) -> None:
    if not hosts:
        print_message("no host has published to this broker")
    for number, host in enumerate(hosts):
        if number:
            click.echo()
        click.echo(printable(_headline(host)))
        if host["config"]["ok"] is False:
            click.echo(printable(_describe_refused_file(host)))
        if host["tunnels"]:
            click.echo(format_tunnels([_mark_unknown_state(tunnel, host) for tunnel in host["tunnels"]]))


def _describe_refused_file(host: HostJson) -> str:
    return f"the last valid configuration stays in force: {host['config']['error'] or 'the host does not say why'}"


def _mark_unknown_state(tunnel: TunnelJson, host: HostJson) -> TunnelJson:
    """The state of a tunnel is unknown while its host is not online."""
    return tunnel if host["presence"] == "online" else {**tunnel, "state": f"was {tunnel['state']}"}


def _headline(host: HostJson) -> str:
    machine = f" ({host['name']})" if host["name"] not in {None, host["host"]} else ""
    parts = [f"{host['host']}{machine}", host["presence"], plural(len(host["tunnels"]), "tunnel")]
    if host["presence"] != "online":
        parts.append("last message " + ("at an unknown time" if host["age_s"] is None else _format_age(host["age_s"])))
    elif (today := host["bytes_today"]) is not None and (month := host["bytes_month"]) is not None:
        parts.append(f"{format_bytes(today)} today, {format_bytes(month)} this month")
    offset_s = host["clock_offset_s"] or 0.0
    if abs(offset_s) >= _CLOCKS_DIFFER_S:
        parts.append(f"its clock is {abs(offset_s):.0f} s {'ahead' if offset_s > 0 else 'behind'}")
    return ", ".join(parts)


def _format_age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _print_routes(found: Fleet, hosts: Sequence[HostJson], now: float, *, as_json: bool) -> None:
    from orchestrator.link_routes import link_routes, route_texts  # noqa: PLC0415  as in broker_at

    selected = {(host["host"], tunnel["name"]) for host in hosts for tunnel in host["tunnels"]}
    routes = [
        route
        for route in link_routes(found, now)
        if any(end and (end.host, end.tunnel["name"]) in selected for end in (route.server, route.client))
    ]
    if as_json:
        print_json({"routes": [route.as_json() for route in routes]})
        return
    for text in route_texts(routes):
        click.echo(printable(text))
    if not routes:
        print_message("there are no tunnels")


# --- commands to hosts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _CommandResult:
    """What became of a command for one target."""

    target: _Target
    response: ResponsePayload
    seconds: float
    is_answered: bool = True

    def as_json(self) -> dict[str, object]:
        response = self.response
        return {
            "host": self.target.host,
            "tunnel": self.target.tunnel,
            "ok": response.ok,
            "error": response.error,
            "result": response.result,
            "seconds": self.seconds,
        }

    def describe(self, verb: str) -> str:
        """The result in words."""
        if not self.response.ok:
            return str(self.response.error)
        result: Any = self.response.result or {}
        omitted = result.get("omitted") or 0  # tunnels for which the answer had no room
        if verb == _RELOAD:
            count = len(result.get("results") or ()) + omitted
            return f"generation {result.get('generation')}, {plural(count, 'tunnel')}"
        tunnels = result.get("tunnels")
        if tunnels is None:
            return str(result.get("text"))
        return f"{verb} accepted for {plural(len(tunnels) + omitted, 'tunnel')}"


def _add_verb(verb: str, help_text: str, *, drains: bool = False, members: Sequence[Callable[[Any], Any]] = ()) -> None:
    def send(
        *, names: tuple[str, ...], as_json: bool, timeout: float | None = None, target: str | None = None,
        link: str | None = None, **broker: Any,  # noqa: ANN401  as in broker_at
    ) -> int:  # fmt: skip
        member = chosen_member(target, link, is_for_all=timeout is not None)

        async def send_to_targets(reader: FleetReader) -> int:
            targets = list(dict.fromkeys(target for name in names for target in _resolve_targets(reader.fleet, name)))
            if verb == _RELOAD and any(target.tunnel is not None for target in targets):
                exit_with_error(EXIT_USAGE, "reload is for whole hosts: name HOST without /TUNNEL")
            if member and any(target.tunnel is None for target in targets):
                exit_with_error(EXIT_USAGE, f"--{next(iter(member))} goes with the name of a tunnel: HOST/TUNNEL")
            import asyncio  # noqa: PLC0415  as in _run_with_reader

            results = await asyncio.gather(
                *(_send_command(reader, verb, target, timeout, member) for target in targets)
            )
            return _print_results(verb, results, as_json=as_json)

        return _run_with_reader(broker_at(**broker), send_to_targets, names)

    metavar = "HOST…" if verb == _RELOAD else "HOST[/TUNNEL]…"
    decorators: list[Callable[[Any], Any]] = [
        click.argument("names", nargs=-1, required=True, metavar=metavar),
        json_option,
        broker_options,
        *members,
    ]
    if drains:
        timeout_help = "How long present visitors may finish, as in 30s."
        decorators.append(
            click.option("--timeout", metavar="DURATION", callback=parse_duration_option, help=timeout_help)
        )
    for decorate in reversed(decorators):
        send = decorate(send)
    fleet.command(verb, help=f"{help_text} Names may be patterns like edge-*.")(send)


async def _send_command(
    reader: FleetReader, verb: str, target: _Target, drain_timeout_s: float | None, member: Mapping[str, str]
) -> _CommandResult:
    from orchestrator.mqtt.broker import BrokerError  # noqa: PLC0415  as in broker_at
    from orchestrator.mqtt.payloads import ResponsePayload  # noqa: PLC0415
    from orchestrator.mqtt.reader import NoAnswerError  # noqa: PLC0415

    tunnel = None if verb == _RELOAD else target.tunnel or _ALL_TUNNELS
    began = time.monotonic()
    is_answered = True
    try:
        response = await reader.send_command(target.host, verb, tunnel, drain_timeout_s, member=member)
    except (NoAnswerError, BrokerError) as error:
        response, is_answered = ResponsePayload.failed(None, str(error)), False
    return _CommandResult(target, response, round(time.monotonic() - began, 3), is_answered)


def _print_results(verb: str, results: Sequence[_CommandResult], *, as_json: bool) -> int:
    is_good = all(result.response.ok for result in results)
    if as_json:
        print_json({"ok": is_good, "results": [result.as_json() for result in results]})
    else:
        for result in results:
            (click.echo if result.response.ok else print_message)(
                printable(f"{result.target}: {result.describe(verb)}")
            )
    if any(not result.is_answered for result in results):
        return EXIT_NO_DAEMON
    return 0 if is_good else EXIT_FAILED


for _command in TUNNEL_COMMANDS.values():
    _add_verb(
        _command.name,
        f"{_command.summary} HOST alone means all its tunnels.",
        drains=_command.takes_timeout,
        members=member_options(_command),
    )
_add_verb(_RELOAD, "Make hosts read their file again.")
