"""Types of the JSON objects of the status contract, for readers that keep them as they arrive.

A dashboard of hundreds of tunnels reads a few keys of each and never parses the rest. The types follow the dataclasses
in ``contract`` and ``tunnel.model``; ``tests/orchestrator/test_status_contract.py`` compares them field by field.
"""

from __future__ import annotations

from typing import TypedDict

BytesJson = TypedDict("BytesJson", {"in": int, "out": int})


class TrafficRatesJson(TypedDict):
    """Bits per second from visitors and to them: of one visitor, or of all visitors of a tunnel."""

    in_bps: int
    out_bps: int


class PoolJson(TypedDict):
    """The pool in numbers."""

    idle: int
    capacity: int
    dialing: int | None
    min: int
    max: int


class SignalsJson(TypedDict):
    """Visitors that wait for a data connection."""

    queued: int
    limit: int
    total: int


class ConnectionsJson(TypedDict):
    """How many visitors are served, were served and failed, and the limit."""

    active: int
    total: int
    failed: int
    limit: int


class RefusedJson(TypedDict):
    """Connection attempts and visitors that were refused, by reason; null where this end does not know."""

    handshakes: int
    prefaces: int
    silent: int
    allow: int | None
    per_address: int | None
    rate: int | None
    proxy: int | None
    quota: int | None
    limit: int | None


class CooldownJson(TypedDict):
    """The wait before the next attempt."""

    remaining_s: float
    attempt: int


class TargetChecksJson(TypedDict):
    """The checks of a target of a group."""

    kind: str
    failed: int
    in_a_row: int
    changes: int


class TargetJson(TypedDict):
    """A target, as the end that dials it sees it."""

    address: str
    state: str
    reason: str | None
    weight: int
    backup: bool
    visitors: int
    checks: TargetChecksJson | None


class QuotaJson(TypedDict):
    """How much of its quota a tunnel has used, in bytes of both directions."""

    used: int | None
    limit: int
    until: str | None


class LinkJson(TypedDict):
    """One link of a tunnel; a server has one with each client, a client one with each server."""

    id: str
    client: str | None
    peer: str
    state: str
    reason: str | None
    weight: int
    backup: bool
    pool: int
    rtt_ms: float | None
    udp_carrier: str | None
    udp_reason: str | None
    visitors: int
    lanes: int | None
    since: str


class ServerJson(TypedDict):
    """One of several servers of a client."""

    address: str
    state: str
    reason: str | None
    link: str | None
    weight: int
    backup: bool


class RateLimitsJson(TypedDict):
    """The limits of the rate at this end, and how long they have held visitors back."""

    rate_bps: int | None
    visitor_rate_bps: int | None
    paused_in_s: float
    paused_out_s: float


class TunnelJson(TypedDict, total=False):
    """One tunnel; in a change, only the fields that changed, each whole."""

    name: str
    role: str
    direction: str | None
    state: str
    reason: str | None
    since: str
    tunnel_addr: str
    target_addr: str
    targets: list[TargetJson]
    data_addr: str | None
    peer: str | None
    link: str | None
    auth: str
    service: str
    proto: str
    key_name: str | None
    published_by: str | None
    data_tls: int
    carrier: str | None
    tags: list[str]
    enabled: bool
    worker: int
    clients: int | None
    links: list[LinkJson]
    servers: list[ServerJson]
    pool: PoolJson
    signals: SignalsJson
    connections: ConnectionsJson
    bytes: BytesJson
    rates: TrafficRatesJson | None
    refused: RefusedJson
    counters: dict[str, int]
    rtt_ms: float | None
    cooldown: CooldownJson
    rate_limits: RateLimitsJson | None
    quota: QuotaJson | None
    restarts: int
    last_error: str | None
    last_error_at: str | None


class SettingJson(TypedDict):
    """One option of a tunnel: its value, what set it, and where that is written."""

    value: str | None
    source: str
    where: str | None


class TunnelDetailsJson(TunnelJson, total=False):
    """One tunnel with its entry in the file; a tunnel that is gone from the file has none of the latter."""

    url: str
    where: str
    settings: dict[str, SettingJson]


class ConfigJson(TypedDict):
    """The last attempt to read the configuration file, and its fault."""

    path: str
    ok: bool
    error: str | None
    line: int | None
    column: int | None
    warnings: list[str]
    loaded_at: str


class BrokerJson(TypedDict, total=False):
    """The connection with the MQTT broker."""

    state: str
    reason: str | None
    since: str | None
    broker: str | None
    host: str | None


class DaemonJson(TypedDict, total=False):
    """A daemon without its tunnels; in a change, only the fields that changed."""

    generation: int
    pid: int
    config: ConfigJson
    version: str
    host: str
    read_only: bool
    started_at: str
    mqtt: BrokerJson


class StatusJson(DaemonJson, total=False):
    """The object of ``ps --json``."""

    tunnels: list[TunnelJson]


class TunnelsJson(TypedDict):
    """The answer of ``GET /v1/tunnels``."""

    tunnels: list[TunnelJson]


class VisitorJson(TypedDict):
    """One visitor, as one end of its tunnel sees the visitor. What is not known is null."""

    id: str | None
    tunnel: str
    address: str | None
    proto: str
    since: str | None
    age_s: float | None
    bytes: BytesJson
    rates: TrafficRatesJson | None
    target: str | None
    link: str | None
    state: str
    paused_s: float | None


class VisitorsJson(TypedDict):
    """The answer of ``GET /v1/visitors``."""

    visitors: list[VisitorJson]


class KickJson(TypedDict):
    """The answer of ``POST /v1/kick``: the visitors that were disconnected."""

    kicked: list[VisitorJson]


class TunnelTestLegJson(TypedDict):
    """One leg of a test, timed ``here`` or at the ``other`` end. ``ms`` is null where nothing was timed."""

    leg: str
    at: str
    link: str | None
    target: str | None
    ms: float | None
    error: str | None


class TunnelTestJson(TypedDict):
    """The answer of ``POST /v1/tunnels/NAME/test``: ``ok`` unless a leg has an error."""

    name: str
    proto: str
    ok: bool
    legs: list[TunnelTestLegJson]


class DeltaJson(TypedDict):
    """What changed since the message before."""

    changed: dict[str, TunnelJson]
    removed: list[str]
    status: DaemonJson


class ChangeJson(DeltaJson):
    """The same as the stream ``/v1/watch`` sends it."""

    ts: str


class EventJson(TypedDict):
    """An event; it may have more keys, by its kind."""

    ts: str
    tunnel: str
    level: str
    kind: str
    text: str


class EventsJson(TypedDict):
    """The answer of ``GET /v1/logs``."""

    lines: list[EventJson]


class FaultJson(TypedDict):
    """What is wrong in the file, and where."""

    file: str
    line: int | None
    column: int | None
    message: str


class EntryResultJson(TypedDict):
    """What a reload did to one entry."""

    action: str
    detail: str | None
    changes: list[str]


class ReloadJson(TypedDict):
    """The answer of ``POST /v1/reload``."""

    generation: int
    ok: bool
    error: FaultJson | None
    results: dict[str, EntryResultJson]


class PlanStepJson(TypedDict):
    """An entry that a reload would restart or change."""

    name: str
    changes: list[str]


class FinishingJson(TypedDict):
    """An entry that a reload would restart, remove or disable: its present visitors, and how long they may finish."""

    name: str
    visitors: int
    timeout_s: float


class PlanJson(TypedDict):
    """The answer of ``GET /v1/plan``. ``finishing`` has entries with visitors; what is left of them is disconnected."""

    ok: bool
    error: FaultJson | None
    add: list[str]
    remove: list[str]
    restart: list[PlanStepJson]
    change: list[PlanStepJson]
    finishing: list[FinishingJson]
    unchanged: int
    warnings: list[str]


class CommandResultJson(TypedDict):
    """The answer of ``POST /v1/tunnels/NAME/VERB``."""

    name: str
    ok: bool
    state: str
    text: str


class ShutdownJson(TypedDict):
    """The answer of ``POST /v1/shutdown``."""

    ok: bool
    pid: int
    active: int


TrafficCountsJson = TypedDict(
    "TrafficCountsJson", {"in": int, "out": int, "visitors": int, "failed": int, "refused": int}
)
TrafficRowJson = TypedDict(
    "TrafficRowJson", {"start": str, "in": int, "out": int, "visitors": int, "failed": int, "refused": int}
)


class TunnelTrafficJson(TypedDict):
    """What one tunnel carried; ``present`` is false for one that is not in the file any more."""

    name: str
    present: bool
    total: TrafficCountsJson
    rows: list[TrafficRowJson]


class TrafficJson(TypedDict):
    """The answer of ``GET /v1/traffic``; a period without traffic has no row."""

    by: str
    days: int
    since: str
    until: str
    tunnels: list[TunnelTrafficJson]


class HostConfigJson(TypedDict):
    """Whether the file of a host is valid."""

    ok: bool | None
    error: str | None


class HostJson(TypedDict):
    """One host, as ``fleet ps --json`` shows it. What the host has not published is null."""

    host: str
    presence: str
    heard_at: str | None
    age_s: float | None
    clock_offset_s: float | None
    boot: str | None
    name: str | None
    version: str | None
    generation: int | None
    config: HostConfigJson
    read_only: bool | None
    commands: bool | None
    bytes_today: int | None
    bytes_month: int | None
    started_at: str | None
    tunnels: list[TunnelJson]
