"""The egress: for every signal it has the target dialled and a relay started. Independent of the role.

What is dialled, and how the health of targets is known, is the matter of its dialler.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tunnel.engine.dialler import describe_dialing
from tunnel.engine.single_target import SingleTarget
from tunnel.engine.target_group import TargetGroup
from tunnel.engine.target_test import EgressTests
from tunnel.engine.tunnel_end import EndParts, TunnelEnd
from tunnel.forwarding.lanes import Lane
from tunnel.forwarding.proxy_out import with_proxy_header
from tunnel.model.spec import MUX, End
from tunnel.model.token_bucket import TokenBucket
from tunnel.model.visitor_end import VisitorEnd
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frames import ConnectionShared, Launch, StreamsEnded, UdpLaunch

if TYPE_CHECKING:
    from collections.abc import Collection

    from tunnel.engine.link import Link
    from tunnel.engine.link_events import EventTable
    from tunnel.forwarding.base import UsedConnection
    from tunnel.model.events import EventLog
    from tunnel.model.snapshot import TargetView
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.visitors import VisitorSelector, VisitorView

_MISSING_PER_S: Final = 50.0
_MISSING_AT_ONCE: Final = 8192
"""Signals for connections that are gone: all that a router forgets at once. More cost this end time for nothing."""
_MISSING: Final = "the other end names too many data connections that do not exist"
_PUBLISH_INTERVAL_S: Final = 0.5  # between two changes of the target's status: it may fail every other visitor


class Egress(TunnelEnd):
    """The end that dials the target. Owns the dialler and the relays."""

    def __init__(self, parts: EndParts, spec: TunnelSpec) -> None:
        self._tests = EgressTests(parts.reactor, spec)
        super().__init__(parts, self._tests)
        self._forwarder = parts.forwarder
        self._protos = spec.proto.parts
        self._published_error: str | None = None
        self._publish_timer: asyncio.TimerHandle | None = None
        self._dialler = _create_dialler(self, parts.event_log, spec)
        self._missing = TokenBucket(_MISSING_PER_S, _MISSING_AT_ONCE, self._loop.time())

    @property
    def is_ingress(self) -> bool:
        """False: targets are dialled here."""
        return False

    @property
    def reserved(self) -> int:
        """Descriptors needed yet: one target socket for each idle connection, promised lane, and dial to be resolved.

        Data connections that are being dialled have their descriptors at a client; a server checks each on arrival.
        """
        pooled = sum(len(link.pool) + (link.session.dialing if link.is_client else 0) for link in self._links)
        return self._dialler.resolving + pooled + self.promised_lanes

    @property
    def is_busy(self) -> bool:
        """Whether a drain has visitors to wait for."""
        return bool(self.relays.active) or self._dialler.has_visitors or self._has_ending_shared

    @property
    def remark(self) -> str | None:
        """What the user probably did not mean although it works, as a sentence."""
        return self._dialler.remark or super().remark

    @property
    def target_error(self) -> str | None:
        """Why the target cannot be reached, as a sentence; None while it can."""
        return self._dialler.error

    @property
    def targets(self) -> tuple[TargetView, ...]:
        """The targets as observers see them; the same object while nothing changes."""
        return self._dialler.targets

    @property
    def next_target_attempt(self) -> tuple[float, int] | None:
        """When the target is probed next, and the number of failed attempts, while it cannot be reached."""
        return self._dialler.next_attempt

    def apply_settings(self, spec: TunnelSpec, max_visitors: int) -> None:
        """Use targets and settings of a spec; the number of visitors concerns the ingress."""
        self.relays.apply_limits(spec, End.EGRESS)
        self._check_options(spec, End.EGRESS)
        self._tests.update_spec(spec)
        self.relays.set_forwarder(with_proxy_header(self._forwarder, spec.proxy))
        if spec.is_target_group is isinstance(self._dialler, TargetGroup):
            self._dialler.apply_settings(spec)
            return
        before, self._dialler = self._dialler, _create_dialler(self, self._event_log, spec)
        now = self._loop.time()
        for dial in before.release_visitors():  # nothing of these visitors was forwarded yet
            if dial.link is not None and dial.data is not None:
                self._dialler.dial(dial.link, dial.data, now)
                if dial.end_offset is not None:
                    self._end_stream(dial.link, dial.data.ident, dial.end_offset)
        before.close()
        self.on_targets_changed()

    def set_refusal(self, reason: str | None) -> None:
        """Ignore it: only an ingress meets visitors first."""

    def start_drain(self, goodbye: str) -> None:
        """Ask the other ends to stop sending visitors; launches on their way are still served."""
        for link in list(self._links):
            link.send_goodbye(goodbye)

    async def wait_links_unneeded(self, grace_s: float) -> None:
        """Return when the other ends have closed the links in answer to the goodbye, or after ``grace_s``."""
        await self.wait_links_closed(grace_s)

    def attach(self, link: Link) -> None:
        """Serve the signals of this link, too, and report an unreachable target on it."""
        super().attach(link)
        if self._dialler.error is not None:
            link.session.send_target_status(self._dialler.error)

    # --- visitors -------------------------------------------------------------------------------------------------

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of new visitors and of streams that are complete."""
        table.add(Launch, self._launch)
        table.add(ConnectionShared, self._on_shared)
        table.add(UdpLaunch, self._launch)
        table.add(StreamsEnded, self._end_streams)
        self.tests.register_handlers(table)

    def _end_streams(self, link: Link, ended: StreamsEnded) -> None:
        for ident, total in ended.ends:
            self._end_stream(link, ident, total)

    def _launch(self, link: Link, launch: Launch) -> None:
        launches, proto = launch.launches, launch.proto
        if proto not in self._protos:
            raise ProtocolError(f"the other end has a visitor of {proto}, and this tunnel has none")
        self.stats.signals += len(launches)
        self.stats.total += len(launches)
        now = self._loop.time()
        for ident, address in launches:
            data = link.pool.claim(ident)
            if data is None:
                if not self._missing.take_token(self._loop.time()):
                    raise ProtocolError(_MISSING)
                self.stats.failed += 1
                link.session.send_visitor_failed(ident, "its data connection was lost")
            else:
                data.visitor_address, data.proto = address, proto
                self._dialler.dial(link, data, now)

    def _on_shared(self, link: Link, shared: ConnectionShared) -> None:
        """Serve the lanes of a data connection from now on; one that is lost shows its end at the ingress."""
        if MUX not in link.features:
            raise ProtocolError("the other end shares a data connection, and this end does not")
        data = link.claim(shared.ident)
        if data is not None:
            self._add_shared(link, data)
        elif not self._missing.take_token(self._loop.time()):
            raise ProtocolError(_MISSING)

    def serve_lane(self, link: Link, lane: Lane) -> None:
        """Have the target dialled for a visitor in a lane."""
        self.stats.signals += 1
        self.stats.total += 1
        self._dialler.dial(link, lane, self._loop.time())

    def move_visitor(self, link: Link, lane: Lane) -> None:
        """Ask the ingress for a data connection; it has none without the link."""
        if lane.may_move and not link.keeps_visitors and not link.is_lost:
            lane.send_wanted()

    def on_lane_reset(self, link: Link, lane: Lane) -> None:
        """Stop to dial the target for a visitor that has left."""
        self._dialler.drop(link, lane.ident)

    def _end_stream(self, link: Link, ident: int, total: int) -> None:
        """Note that the visitor of a data connection has ended after ``total`` bytes."""
        relay = self.relays.find(link, ident)
        if relay is not None:
            relay.set_end_offset(total)
            return
        dial = self._dialler.find(link, ident)
        if dial is not None:
            dial.end_offset = total
            return
        data = link.sharing.find_moved(ident) or link.pool.find(ident)
        if data is not None:  # a visitor is about to move to it, or its target is dialled
            data.end_offset = total

    def on_visitor_unserved(self, link: Link, data: UsedConnection, reason: str) -> None:
        """Disconnect the visitor, here and through FAILED at the ingress."""
        self.stats.failed += 1
        self._log_unserved(describe_dialing(link, data), VisitorEnd.FAILED, reason)
        if isinstance(data, Lane):
            data.fail(reason)
        else:
            data.close()
            link.session.send_visitor_failed(data.ident, reason)
        self._notify_observers()

    def waiting_visitors(self) -> list[VisitorView]:
        """The visitors whose target is being dialled."""
        return self._dialler.visitors()

    def kick_waiting(self, selector: VisitorSelector) -> list[VisitorView]:
        """Reset visitors whose target is being dialled."""
        kicked = self._dialler.kick(selector)
        for seen in kicked:
            self._log_unserved(seen, VisitorEnd.KICKED)
        if kicked:
            self._notify_observers()
        return kicked

    def disconnect(self, links: Collection[Link]) -> int:
        """Disconnect the visitors of these links, whose target is dialled or connected; return how many there were."""
        self._log_dialing(VisitorEnd.KEY_REVOKED, {link.ident for link in links})
        return self._dialler.disconnect(links) + super().disconnect(links)

    def _log_dialing(self, end: VisitorEnd, links: Collection[str] | None = None) -> None:
        """Log the visitors whose targets are dialled, of all links or of those with these ids."""
        if self._visitor_log is not None:
            for seen in self._dialler.visitors():
                if links is None or seen.link in links:
                    self._log_unserved(seen, end)

    # --- the status of the target ---------------------------------------------------------------------------------

    def on_target_error_changed(self) -> None:
        """Show the target's status at both ends, at most once in ``_PUBLISH_INTERVAL_S``."""
        if self._publish_timer is not None:
            return
        self._publish_timer = self.reactor.call_later(_PUBLISH_INTERVAL_S, self._publish_change)
        self._published_error = self._dialler.error
        for link in self._links:
            link.session.send_target_status(self._published_error)
        self._on_state_input_changed()

    def on_targets_changed(self) -> None:
        """Show a target of several that has changed, and the tunnel's state if that has changed, too."""
        if self._dialler.error != self._published_error:
            self.on_target_error_changed()
        self._on_state_input_changed()

    def _publish_change(self) -> None:
        self._publish_timer = None
        if self._dialler.error != self._published_error:
            self.on_target_error_changed()

    def set_target_drained(self, address: str, *, is_drained: bool) -> bool:
        """Give one of several targets no new visitors, or new ones again; return whether this end dials it."""
        return isinstance(self._dialler, TargetGroup) and self._dialler.set_drained(address, is_drained=is_drained)

    def retry_target(self) -> None:
        """Probe an unreachable target now, without waiting for its delay."""
        self._dialler.retry()

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> int:
        """Close everything; return how many visitors were disconnected."""
        if self._publish_timer is not None:
            self._publish_timer.cancel()
        self._tests.close()
        self._log_dialing(VisitorEnd.TUNNEL_CLOSED)
        return self._dialler.close() + self._close_relays()


def _create_dialler(owner: Egress, event_log: EventLog, spec: TunnelSpec) -> SingleTarget | TargetGroup:
    """Return what dials the targets of a spec: one target costs no choice for each visitor, and has no checks."""
    if spec.is_target_group:
        return TargetGroup(owner, event_log, spec)
    return SingleTarget(owner, event_log, spec)
