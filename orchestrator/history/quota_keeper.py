"""The accounts of all quotas of a daemon: what they have used, when users are warned, and when visitors are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator.history.quota import QuotaAccount, QuotaLevel, describe_level
from tunnel.model.events import EventKind, EventLog
from tunnel.model.snapshot import QuotaView
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tunnel.model.events import EventSink
    from tunnel.model.quota import Quota


class QuotaHolder(Protocol):
    """What the keeper uses of the supervisor."""

    def quotas(self) -> Mapping[str, Quota]:
        """The quotas of the tunnels that have one."""

    def set_quota(self, name: str, quota: QuotaView | None, refusal: str | None) -> None:
        """Show this of a tunnel's quota; with ``refusal`` refuse new visitors."""


class QuotaKeeper:
    """Follows the quotas of the file. An account counts from the moment at which the history of its tunnel was read."""

    def __init__(self, holder: QuotaHolder, sink: EventSink) -> None:
        self._holder = holder
        self._sink = sink
        self._accounts: dict[str, QuotaAccount] = {}
        self._unread: dict[str, Quota] = {}
        self._evaluated_hour = -1

    @property
    def unread(self) -> Mapping[str, Quota]:
        """The quotas of which the history has not been read yet."""
        return self._unread

    def follow_file(self) -> bool:
        """Take over the quotas of the file; return whether one is new or changed: its history has to be read."""
        is_new = False
        wanted = self._holder.quotas()
        for name in [name for name in self._accounts if name not in wanted]:
            del self._accounts[name]
            self._holder.set_quota(name, None, None)
        self._unread = {name: quota for name, quota in self._unread.items() if wanted.get(name) == quota}
        for name, quota in wanted.items():
            account = self._accounts.get(name)
            if name not in self._unread and (account is None or account.quota != quota):
                self._unread[name], is_new = quota, True
                if account is None:
                    self._holder.set_quota(name, QuotaView(limit=quota.limit), None)
        return is_new

    def open_account(self, name: str, quota: Quota, hours: Mapping[int, int], *, is_complete: bool) -> None:
        """Start to count from the bytes of these hours; without ``is_complete`` until the history can be read."""
        if is_complete:
            self._unread.pop(name, None)
        elif name in self._accounts:
            return
        former = self._accounts.get(name)
        self._accounts[name] = QuotaAccount(quota, hours, former.level if former is not None else None)

    def add(self, name: str, hour: int, count: int) -> None:
        """Count what a tunnel carried."""
        account = self._accounts.get(name)
        if account is not None:
            account.add(hour, count)

    def evaluate(self, names: Iterable[str], now: float) -> None:
        """Show, warn and refuse as these tunnels have used their quotas; all of them once in an hour."""
        hour = int(now // 3600)
        if hour != self._evaluated_hour:
            self._evaluated_hour = hour
            names = list(self._accounts)
        for name in names:
            account = self._accounts.get(name)
            if account is not None:
                self._holder.set_quota(name, account.view(now), account.refusal(now))
                self._report_level(name, account, now)

    def is_followed(self, name: str) -> bool:
        """Whether a tunnel has a quota."""
        return name in self._accounts or name in self._unread

    def _report_level(self, name: str, account: QuotaAccount, now: float) -> None:
        before, level = account.advance_level(now)
        if level is before or (level.value < before.value and before is not QuotaLevel.USED_UP):
            return
        kind = LogLevel.WARN if level.value > before.value else LogLevel.INFO
        data = {"quota": str(account.quota), "used": account.used(now)}
        EventLog(name, self._sink).log(kind, EventKind.QUOTA, describe_level(account, level, now), **data)
