"""Several targets of one tunnel: each visitor gets one by weight, load, order or source, among those that are up.

A target is down after failed checks or dials in a row (``tunnel.model.health``). A visitor whose target cannot be
reached is tried on the next one while no byte of the visitor was forwarded. That holds also for a target that accepts
the connection and resets it at once. If no target is up, visitors are tried on all of them: the last one is never
removed.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tunnel.engine.dialler import Dialler, TargetDial
from tunnel.engine.group_target import GroupTarget
from tunnel.model.balancer import create_balancer
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel, Proto
from tunnel.model.wording import plural
from tunnel.runtime import sockets
from tunnel.runtime.connect_race import describe_failures
from tunnel.runtime.datagram_sockets import DatagramConnect
from tunnel.runtime.reactor import READABLE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Sequence

    from tunnel.engine.dialler import DialOwner
    from tunnel.engine.link import Link
    from tunnel.forwarding.base import UsedConnection
    from tunnel.model.balancer import Balancer
    from tunnel.model.events import EventLog
    from tunnel.model.snapshot import TargetView
    from tunnel.model.spec import TunnelSpec
    from tunnel.runtime.connect_race import Failure
    from tunnel.runtime.sockets import SockAddr

_SWEEP_INTERVAL_S: Final = 0.05  # between two looks for dials that have lasted too long
_GUARD_S: Final = 0.1
"""How long a new connection is watched for a reset before its relay starts, if the visitor has sent nothing yet."""
_RAMP_STEPS: Final = 20
_MIN_RAMP_INTERVAL_S: Final = 0.1
_MAX_REASONS: Final = 3  # targets whose reasons one sentence has
_PORT_BYTES: Final = 2  # of a packed address: a visitor's source is the address without the port
_ALL_DRAINED: Final = "every target is drained"
_RESET_AT_ONCE: Final = "it accepted the connection and reset it"


class GroupDial(TargetDial):
    """One attempt to connect a visitor to one of several targets."""

    __slots__ = ("_group", "member", "near", "near_events", "tried")

    def __init__(
        self, group: TargetGroup, link: Link, data: UsedConnection, member: GroupTarget, tried: tuple[GroupTarget, ...]
    ) -> None:
        super().__init__(group, link, data, 0.0)
        self.member = member
        self.tried = tried
        """the targets that this visitor was tried on, with the present one"""
        self.near: socket.SocketType | None = None
        """the connection to the target while it is watched for a reset"""
        self.near_events = 0
        self._group = group

    def on_all_failed(self, failures: Sequence[Failure]) -> None:
        """Report the failure to the group, unless it proves nothing about the target."""
        is_local = sockets.are_local_faults(failures)
        self._group.on_attempt_failed(self, describe_failures(failures), is_proof=not is_local)

    def on_near_event(self, events: int) -> None:
        """Handle events of the target's connection while it is watched."""
        self.near_events |= events
        if events & READABLE:
            self._group.on_near_readable(self)

    def on_far_event(self, events: int) -> None:
        """Handle events of the data connection while the target's is watched: the visitor's first bytes."""
        if self.data is not None:
            self.data.events |= events
        if events & READABLE:
            self._group.start_relay(self)

    def cancel(self) -> None:
        """Close every socket that is connecting, and the connected one."""
        super().cancel()
        if self.near is not None and self.data is not None:
            self.data.watch(None)
            self._reactor.close(self.near)
            self.near = None


class DatagramGroupDial(DatagramConnect, GroupDial):
    """One attempt to connect a UDP socket to one of several targets."""

    __slots__ = ()


_DIALS: Final[Mapping[Proto, type[GroupDial]]] = {Proto.TCP: GroupDial, Proto.UDP: DatagramGroupDial}


class TargetGroup(Dialler[GroupDial]):
    """Chooses a target for each visitor. Owns its targets and their checks."""

    def __init__(self, owner: DialOwner, event_log: EventLog, spec: TunnelSpec) -> None:
        super().__init__(owner, event_log)
        self._spec = spec
        self._members = [GroupTarget(self, self._relays, each, spec) for each in spec.members]
        self._balancer: Balancer[GroupTarget] = create_balancer(spec.balance)
        self._last_resort: Balancer[GroupTarget] = create_balancer(spec.balance)
        self._count_up = 0
        self._short_limit_s = min(spec.check_timeout, spec.dial_timeout)
        self._without_udp: list[GroupTarget] = []  # visitors of UDP avoid them, or did until a moment ago
        self._ramp_timer: asyncio.TimerHandle | None = None
        self._error: str | None = None
        self._remark: str | None = None
        self._views: tuple[TargetView, ...] = ()
        for member in self._members:
            if member.wildcard_remark is not None:
                event_log.log_warn(EventKind.TARGET, member.wildcard_remark)
            member.start_checks()
        self._choose_members()

    @property
    def error(self) -> str | None:
        """Why no target can be reached, as a sentence; None while one is up."""
        return self._error

    @property
    def next_attempt(self) -> tuple[float, int] | None:
        """When the next target that is down is checked, and the failures in a row, while none is up."""
        down = [member for member in self._members if not member.health.is_up]
        if self._error is None or not down:
            return None
        return min(member.checks.next_at for member in down), max(member.health.failures for member in down)

    @property
    def remark(self) -> str | None:
        """Which targets are down or drained, or that one is a wildcard address."""
        return self._remark

    @property
    def targets(self) -> tuple[TargetView, ...]:
        """The targets as observers see them; the same object while nothing changes."""
        views = tuple(member.view() for member in self._members)
        if views != self._views:
            self._views = views
        return self._views

    # --- configuration --------------------------------------------------------------------------------------------

    def apply_settings(self, spec: TunnelSpec) -> None:
        """Use targets, weights, checks and time limits of a spec; visitors of removed targets stay."""
        before, self._spec = self._spec, spec
        self._short_limit_s = min(spec.check_timeout, spec.dial_timeout)
        present = {member.address: member for member in self._members}
        now = self._loop.time()
        self._members = []
        for each in spec.members:
            member = present.pop(each.address, None)
            if member is None:
                member = GroupTarget(self, self._relays, each, spec, ramped_since=now)
                member.start_checks()
            else:
                member.update(each, spec)
            self._members.append(member)
        for member in present.values():
            member.close()
        if before.balance is not spec.balance:
            self._balancer, self._last_resort = create_balancer(spec.balance), create_balancer(spec.balance)
        if spec.dial_timeout < before.dial_timeout:
            self._bound_deadlines(spec.dial_timeout)
        self._update_members()

    def set_drained(self, address: str, *, is_drained: bool) -> bool:
        """Give a target no new visitors, or new ones again; return whether there is such a target."""
        member = next((member for member in self._members if str(member.address) == address), None)
        if member is not None and member.is_drained is not is_drained:
            member.is_drained = is_drained
            self._update_members()
        return member is not None

    # --- visitors -------------------------------------------------------------------------------------------------

    def dial(self, link: Link, data: UsedConnection, now: float) -> None:
        """Dial a target for the visitor of a data connection."""
        if not self._try_next(link, data, (), now):
            self._owner.on_visitor_unserved(link, data, _ALL_DRAINED)

    def _try_next(
        self,
        link: Link,
        data: UsedConnection,
        tried: tuple[GroupTarget, ...],
        now: float,
        end_offset: int | None = None,
    ) -> bool:
        """Dial the next target for a visitor; return False if it was tried on all of them.

        The dial may have failed, and another one may have been tried, before this returns: where no route leads to a
        target, the kernel says so at once.
        """
        source = data.visitor_address[_PORT_BYTES:]
        avoids_some = self._without_udp and data.proto is Proto.UDP
        if not tried and not avoids_some and (member := self._balancer.choose(source)) is not None:  # nearly always
            self._start_attempt(link, data, member, tried, now, end_offset)
            return True

        def is_untried(member: GroupTarget) -> bool:
            return member not in tried

        def serves_udp(member: GroupTarget) -> bool:
            return member not in tried and not member.udp_refusals.is_avoided(now)

        member = None
        if avoids_some:
            member = self._balancer.choose(source, serves_udp, use_backup=True)
            self._without_udp = [each for each in self._without_udp if each.udp_refusals.is_avoided(now)]
        if member is None:
            member = self._balancer.choose(source, is_untried, use_backup=True)
        if member is None:
            member = self._last_resort.choose(source, is_untried, use_backup=True)
            if member is None:
                return False
        self._start_attempt(link, data, member, tried, now, end_offset)
        return True

    def _start_attempt(
        self,
        link: Link,
        data: UsedConnection,
        member: GroupTarget,
        tried: tuple[GroupTarget, ...],
        now: float,
        end_offset: int | None,
    ) -> None:
        member.active_visitors += 1
        dial = _DIALS[data.proto](self, link, data, member, (*tried, member))
        dial.end_offset = end_offset
        dial.deadline = now + self._time_limit(dial)
        self._by_data[link, data.ident] = dial
        self._start(dial, member.target)

    def _time_limit(self, dial: GroupDial) -> float:
        """Seconds for a target to accept: as long as a check may take, or ``dial_timeout`` where no other is left."""
        if len(dial.tried) < self._count_up:
            return self._short_limit_s
        is_up = dial.member.health.is_up
        others = (each for each in self._members if each.takes_visitors and each not in dial.tried)
        if any(each.health.is_up or not is_up for each in others):
            return self._short_limit_s
        return self._spec.dial_timeout

    def on_dial_succeeded(self, dial: GroupDial, sock: socket.SocketType, sockaddr: SockAddr, events: int) -> None:
        """Relay the visitor, or watch the connection for a reset first if the visitor has sent nothing yet."""
        if dial.data is None:
            return
        dial.member.target.prefer(sockaddr)
        dial.near, dial.near_events = sock, events
        if dial.data.events & READABLE or dial.end_offset is not None:
            self.start_relay(dial)
            return
        dial.deadline = self._loop.time() + _GUARD_S
        self.reactor.set_handler(sock, dial.on_near_event)
        dial.data.watch(dial.on_far_event)
        if events & READABLE:
            self.on_near_readable(dial)

    def on_near_readable(self, dial: GroupDial) -> None:
        """Start the relay of a visitor whose target sends, or ends; try another target if it has reset."""
        if dial.near is None:
            return
        try:
            dial.near.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self.on_attempt_failed(dial, _RESET_AT_ONCE, is_proof=True)
        else:
            self.start_relay(dial)

    def start_relay(self, dial: GroupDial) -> None:
        """Relay between the visitor's data connection and the connected target."""
        member, near = dial.member, dial.near
        if dial.data is None or dial.link is None or near is None:
            return
        self._forget(dial)
        dial.near = None
        if member.health.wants_success and dial.proto is Proto.TCP and self._spec.shows_health_when_connected:
            self.note_success(member)
        relay = self._relays.start(near, dial.data, dial.link, near_events=dial.near_events, owner=member)
        if dial.end_offset is not None:
            relay.set_end_offset(dial.end_offset)

    def on_dial_failed(self, dial: GroupDial, cause: str) -> None:
        """Try the visitor on another target."""
        self.on_attempt_failed(dial, cause, is_proof=True)

    def on_attempt_failed(self, dial: GroupDial, cause: str, *, is_proof: bool) -> None:
        """Try the visitor on another target; ``is_proof``: the failure counts as a failed check."""
        if dial not in self._dials:
            return
        self._forget(dial)
        dial.cancel()
        member = dial.member
        member.active_visitors -= 1
        member.target.invalidate()
        if is_proof:
            topic = f"dial {member.address}"
            text = f"the target {member.address} could not be reached for a visitor: {cause}"
            self._event_log.warn_throttled(EventKind.TARGET, topic, text)
            self.note_failure(member, cause)
        if dial.link is None or dial.data is None:
            return
        if not self._try_next(dial.link, dial.data, dial.tried, self._loop.time(), dial.end_offset):
            self._owner.on_visitor_unserved(dial.link, dial.data, self._describe_unserved(dial, cause))

    def _describe_unserved(self, dial: GroupDial, cause: str) -> str:
        if len(dial.tried) == 1:
            return f"the target {dial.member.address} cannot be reached: {cause}"
        return f"none of {len(dial.tried)} targets can be reached; {dial.member.address}: {cause}"

    def _schedule_deadline(self, due: float) -> asyncio.TimerHandle:
        """Look soon for dials that are due: their deadlines are in no order."""
        del due
        return self.reactor.call_later(_SWEEP_INTERVAL_S, self._on_deadline)

    def _on_deadline(self) -> None:
        now = self._loop.time()
        for dial in [dial for dial in self._dials if dial.deadline <= now]:
            if dial.near is not None:
                self.start_relay(dial)
            else:
                self.on_attempt_failed(dial, sockets.describe_connect_error(TimeoutError()), is_proof=True)
        self._deadline_timer = self._schedule_deadline(now) if self._dials else None

    def _drop(self, dials: Collection[GroupDial]) -> int:
        for dial in dials:
            dial.member.active_visitors -= 1
        return super()._drop(dials)

    def release_visitors(self) -> list[GroupDial]:
        """Stop all dials; return those for visitors, whose data connections the caller owns from now on."""
        dials = super().release_visitors()
        for dial in dials:
            dial.member.active_visitors -= 1
        return dials

    # --- health ---------------------------------------------------------------------------------------------------

    def note_success(self, member: GroupTarget) -> None:
        """Count a passed check, or a visitor that reached the target. A target that was removed counts no more."""
        now = self._loop.time()
        if member in self._members and member.health.note_success(now):
            member.on_returned(now)
            self._on_changed(member, LogLevel.INFO, f"the target {member.address} is up again")

    def note_failure(self, member: GroupTarget, cause: str) -> None:
        """Count a failed check, or a visitor that could not reach the target; as ``note_success``."""
        if member in self._members and member.health.note_failure():
            member.on_fallen(cause)
            failures = plural(member.health.failures, "failure")
            self._on_changed(member, LogLevel.WARN, f"the target {member.address} is down after {failures}: {cause}")

    def note_udp_refusal(self, member: GroupTarget) -> None:
        """Let visitors of UDP avoid a target after ``fall`` refusals in a row, for ``rise`` times ``inter``."""
        now, pause_s = self._loop.time(), self._spec.inter * self._spec.rise
        if member in self._members and member.udp_refusals.note_refusal(now, self._spec.fall, pause_s):
            self._without_udp.append(member)
            text = f"the target {member.address} does not listen on UDP: visitors of UDP avoid it for {pause_s:g} s"
            self._event_log.log_paced(LogLevel.WARN, EventKind.TARGET, "udp", text, target=str(member.address))
            self._owner.on_targets_changed()

    def on_reason_changed(self) -> None:
        """Show that a target is down for another reason."""
        self._update_members()

    def _on_changed(self, member: GroupTarget, level: LogLevel, text: str) -> None:
        up = sum(each.health.is_up for each in self._members)
        data = {"target": str(member.address), "target_state": member.state.value}
        text = f"{text}; {up} of {plural(len(self._members), 'target')} {'is' if up == 1 else 'are'} up"
        self._event_log.log_paced(level, EventKind.TARGET, "health", text, **data)
        self._update_members()

    def _update_members(self) -> None:
        """Choose among the targets as they are now, and show what has changed."""
        self._choose_members()
        self._owner.on_targets_changed()

    def _choose_members(self) -> None:
        self._update_weights()
        available = [member for member in self._members if member.takes_visitors]
        up = [member for member in available if member.health.is_up]
        self._count_up = len(up)
        self._balancer.set_members(up)
        self._last_resort.set_members(available)
        self._error = None if up else self._describe_error(available)
        self._remark = self._describe_remark()

    def _update_weights(self) -> None:
        """Let the weights of targets that have returned grow."""
        now = self._loop.time()
        is_ramping = False
        for member in self._members:
            is_ramping |= member.update_weight(now, self._spec.slowstart)
        if is_ramping and self._ramp_timer is None:
            delay_s = max(_MIN_RAMP_INTERVAL_S, self._spec.slowstart / _RAMP_STEPS)
            self._ramp_timer = self.reactor.call_later(delay_s, self._on_ramp)

    def _on_ramp(self) -> None:
        self._ramp_timer = None
        self._update_weights()

    def _describe_error(self, available: Sequence[GroupTarget]) -> str:
        if not available:
            return _ALL_DRAINED
        if len(available) == 1:
            return f"the target {available[0].address} cannot be reached: {available[0].reason}"
        return f"none of {len(available)} targets can be reached: {_list_reasons(available)}"

    def _describe_remark(self) -> str | None:
        texts = []
        if down := [member for member in self._members if not member.health.is_up]:
            verb = "is" if len(down) == 1 else "are"
            texts.append(f"{len(down)} of {plural(len(self._members), 'target')} {verb} down: {_list_reasons(down)}")
        if drained := [str(member.address) for member in self._members if member.is_drained]:
            texts.append(f"drained by command: {', '.join(drained[:_MAX_REASONS])}")
        texts += [member.wildcard_remark for member in self._members if member.wildcard_remark is not None]
        return "; ".join(texts) or None

    def retry(self) -> None:
        """Check the targets that are down now."""
        for member in self._members:
            if not member.health.is_up:
                member.checks.check_now()

    def close(self) -> int:
        """Stop everything; return how many visitors were disconnected."""
        if self._ramp_timer is not None:
            self._ramp_timer.cancel()
        for member in self._members:
            member.close()
        return super().close()


def _list_reasons(members: Sequence[GroupTarget]) -> str:
    shown = "; ".join(f"{member.address}: {member.reason}" for member in members[:_MAX_REASONS])
    return f"{shown}; and {len(members) - _MAX_REASONS} more" if len(members) > _MAX_REASONS else shown
