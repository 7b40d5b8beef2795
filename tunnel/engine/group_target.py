"""One target of a group: its health, weight and checks, and its share of the visitors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.engine.single_target import describe_wildcard
from tunnel.engine.target_checks import TargetChecks
from tunnel.model.balancer import ramped_weight
from tunnel.model.health import Health, HealthRules, UdpRefusals
from tunnel.model.snapshot import TargetChecksView, TargetView
from tunnel.model.spec import Proto
from tunnel.model.targets import CheckKind, TargetState
from tunnel.runtime.resolver import DialTarget

if TYPE_CHECKING:
    import socket

    from tunnel.engine.relays import RelaySet
    from tunnel.forwarding.base import ForwardedVisitor, OwnedConnection
    from tunnel.forwarding.tcp import Relay
    from tunnel.model.address import Address
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.targets import TargetSpec
    from tunnel.runtime.reactor import Reactor

_HELD: Final = "it changed its state too often, and returns when it has been in order for a while"
_UDP_CLOSED: Final = "visitors of UDP met a closed port, and get other targets for a while if there are any"
_DRAINED: Final = "it gets no new visitors, by command"


class TargetOwner(Protocol):
    """The group, as its targets see it."""

    reactor: Reactor

    def note_success(self, member: GroupTarget) -> None:
        """Count a passed check."""

    def note_failure(self, member: GroupTarget, cause: str) -> None:
        """Count a failed check; ``cause`` is the end of a sentence."""

    def note_udp_refusal(self, member: GroupTarget) -> None:
        """Let visitors of UDP avoid a target that has closed its port of UDP, but accepts TCP."""

    def on_reason_changed(self) -> None:
        """Show that the target is down for another reason."""

    def on_handler_error(self, error: Exception) -> None:
        """Handle a defect in a check."""


class GroupTarget:
    """A member of the group's balancer, and the owner of the relays of its visitors."""

    def __init__(
        self,
        group: TargetOwner,
        relays: RelaySet,
        configured: TargetSpec,
        spec: TunnelSpec,
        ramped_since: float | None = None,
    ) -> None:
        """``ramped_since``: when its weight starts to grow, on the loop's clock; None: it has its full weight."""
        self.address: Address = configured.address
        self.target = DialTarget(configured.address)
        self.wildcard_remark = describe_wildcard(configured.address, self.target)
        self.health = Health(HealthRules(spec.fall, spec.rise))
        self.udp_refusals = UdpRefusals()
        """of a target with proto=both"""
        self.checks = TargetChecks(self, group.reactor, asyncio.get_running_loop(), spec)
        self.reason: str | None = None
        """why it is down"""
        self.is_drained = False
        """whether a command keeps new visitors away"""
        self.active_visitors = 0
        """relays and dials of visitors"""
        self.balance_key = str(configured.address).encode()
        self.balance_weight = float(configured.weight)
        self._group = group
        self._relays = relays
        self._is_udp_alone = spec.proto is Proto.UDP
        self._configured = configured
        self._failed_checks = 0
        self._ramped_since = ramped_since

    @property
    def is_backup(self) -> bool:
        """Whether it gets visitors only while no other target is up."""
        return self._configured.is_backup

    @property
    def takes_visitors(self) -> bool:
        """Whether it may get new visitors, if it is up or no other is."""
        return not self.is_drained and self._configured.weight > 0

    @property
    def state(self) -> TargetState:
        """What it is doing."""
        if self.is_drained:
            return TargetState.DRAINING if self.active_visitors else TargetState.DRAINED
        return TargetState.UP if self.health.is_up else TargetState.DOWN

    def view(self) -> TargetView:
        """Return what observers see of it."""
        health = self.health
        checks = TargetChecksView(
            kind=str(self.checks.check),
            failed=self._failed_checks,
            in_a_row=health.failures if health.is_up else health.successes,
            changes=health.changes,
        )
        return TargetView(
            address=str(self.address),
            state=self.state,
            reason=_DRAINED if self.is_drained else self.reason or self._udp_reason,
            weight=self._configured.weight,
            backup=self.is_backup,
            visitors=self.active_visitors,
            checks=checks,
        )

    @property
    def _udp_reason(self) -> str | None:
        is_avoided = self.udp_refusals.count and self.udp_refusals.is_avoided(asyncio.get_running_loop().time())
        return _UDP_CLOSED if is_avoided else None

    # --- configuration and health ---------------------------------------------------------------------------------

    def update(self, configured: TargetSpec, spec: TunnelSpec) -> None:
        """Use another weight, other rules and other checks."""
        self._configured = configured
        self.health.update_rules(HealthRules(spec.fall, spec.rise))
        self.checks.update_spec(spec)
        self.start_checks()

    def start_checks(self) -> None:
        """Check at intervals; without checks, only while it is down: so its return is noticed."""
        if self.checks.check.kind is CheckKind.OFF and self.health.is_up:
            self.checks.stop()
        elif not self.checks.is_running:
            self.checks.start()

    def update_weight(self, now: float, slowstart_s: float) -> bool:
        """Set the weight that it has at ``now``; return whether the weight still grows."""
        age_s = slowstart_s if self._ramped_since is None else now - self._ramped_since
        self.balance_weight = ramped_weight(self._configured.weight, age_s, slowstart_s)
        return age_s < slowstart_s

    def on_returned(self, now: float) -> None:
        """Take visitors again, with a weight that grows."""
        self.reason = None
        self._ramped_since = now
        self.start_checks()

    def on_fallen(self, cause: str) -> None:
        """Take no visitors until it has returned."""
        self.reason = cause
        self.start_checks()

    def close(self) -> None:
        """Make no more checks; its visitors stay."""
        self.checks.stop()

    def on_check_passed(self) -> None:
        """Count a passed check."""
        self._group.note_success(self)
        if self.health.is_held:
            self._set_reason(_HELD)

    def on_check_failed(self, cause: str) -> None:
        """Count a failed check; ``cause`` is the end of a sentence."""
        self._failed_checks += 1
        if not self.health.is_up:
            self._set_reason(cause)
        self._group.note_failure(self, cause)

    def _set_reason(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            self._group.on_reason_changed()

    def on_handler_error(self, error: Exception) -> None:
        """Report a defect in a check."""
        self._group.on_handler_error(error)

    # --- the relays of its visitors -------------------------------------------------------------------------------

    def on_relay_closed(self, relay: ForwardedVisitor) -> None:
        """Count one visitor less. A UDP target that has answered is in order."""
        self.active_visitors -= 1
        if self._is_udp_alone:
            if self.health.wants_success and relay.passed()[0]:
                self._group.note_success(self)
        elif self.udp_refusals.count and relay.proto is Proto.UDP and relay.passed()[0]:
            self.udp_refusals.note_answer()
        self._relays.on_relay_closed(relay)

    def on_relay_finished(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        """Count one visitor less, which has left in order."""
        self.active_visitors -= 1
        self._relays.on_relay_finished(relay, sock)

    def on_relay_moved(self, relay: Relay, data: OwnedConnection) -> None:
        """Find the relay under the id of its data connection."""
        self._relays.on_relay_moved(relay, data)

    def on_flows_changed(self, relay: Relay) -> None:
        """Limit the rates of the new flows, too."""
        self._relays.on_flows_changed(relay)

    def on_relay_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log a defect that ended a relay."""
        self._relays.on_relay_error(relay, error)

    def on_target_unreachable(self, relay: ForwardedVisitor, reason: str) -> None:
        """Count it as a failed check: UDP shows only with the datagrams whether there is a target.

        With proto=both, it says nothing about TCP.
        """
        self._relays.on_target_unreachable(relay, reason)
        if self._is_udp_alone:
            self._group.note_failure(self, reason)
        else:
            self._group.note_udp_refusal(self)

    def on_stream_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """Log that a data connection was interfered with."""
        self._relays.on_stream_error(relay, error)
