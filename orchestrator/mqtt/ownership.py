"""Which installation owns a host name on the broker: our own identity, and the detection of duplicates."""

from __future__ import annotations

import enum
import errno
import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.errors import OrchestratorError
from orchestrator.mqtt.broker import BrokerState
from orchestrator.mqtt.broker_socket import STEP_TIMEOUT_S
from orchestrator.mqtt.connection_report import CAUTIOUS_DELAY_S
from orchestrator.mqtt.payloads import StatusPayload, parse_timestamp
from orchestrator.process.file_replacement import replace_file
from orchestrator.process.state_directory import file_key
from tunnel.model.files import FileError, read_file
from tunnel.runtime.backoff import YOUNG_MAX_DELAY_S

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.mqtt.payloads import DaemonRun

_MAX_ID_BYTES: Final = 64

SILENT_AFTER_S: Final = 75.0
"""After so long without a message a host that is said to be online is not: hosts publish every 30 seconds."""

COPY_RETURNS_WITHIN_S: Final = CAUTIOUS_DELAY_S + YOUNG_MAX_DELAY_S + STEP_TIMEOUT_S
"""A copy of this host, whose connection ours replaced, has connected again by then: its pause, a delay, its log-in."""

_COPIED: Final = (
    "another machine is on this broker as {host!r} with the id of this one, and came later: nothing is published; one "
    "of them was copied from the other: remove its state directory, and give it another name with supervisor.mqtt.host"
)
_OCCUPIED: Final = (
    "another host is online as {host!r} on this broker, and was there first: nothing is published; "
    "give one of them another name with supervisor.mqtt.host"
)

# --- identity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The id of an installation, and, where it could not be stored, why."""

    instance: str
    problem: str | None = None

    def client_id(self, host: str) -> str:
        """The MQTT client id: the same in every run, or the will of an old connection would arrive after our birth.

        Short enough for every broker (MQTT 3.1.1, section 3.1.3.1). It depends on the host name too, because machines
        are copied together with their state directory.
        """
        return f"np-{hashlib.sha256(f'{self.instance} {host}'.encode()).hexdigest()[:20]}"


def load_identity(file: Path, directory: Path) -> HostIdentity:
    """The id of the installation that runs ``file``; it is created and stored if there is none yet."""
    path = directory / f"host-{file_key(file)}"
    new_id = str(uuid.uuid4())
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (stored := _read_id(path)) is not None:
            return HostIdentity(stored)
        replace_file(path, f"{new_id}\n".encode())
    except OSError as error:
        reason = error.strerror or str(error)
        return HostIdentity(new_id, f"cannot store this host's id in {path}: {reason}; it changes with each start")
    return HostIdentity(new_id)


def _read_id(path: Path) -> str | None:
    """Return the stored id; None where there is none, or something else. Raises FileError where it cannot be read."""
    try:
        return str(uuid.UUID(read_file(path, _MAX_ID_BYTES).text().strip()))
    except ValueError:
        return None
    except FileError as error:
        if error.errno not in {None, errno.ENOENT}:
            raise
        return None


# --- ownership --------------------------------------------------------------------------------------------------------


class DuplicateHostError(OrchestratorError):
    """Another host uses our host name and was first; the message is a sentence."""

    state = BrokerState.DUPLICATE


class StatusVerdict(enum.Enum):
    """What a status on our own topic means for us."""

    NONE = enum.auto()
    ECHO = enum.auto()
    """our own birth came back from the broker"""
    SAYS_OFFLINE = enum.auto()
    """we are reported as offline: by the will of an old connection, or by a duplicate that went offline"""
    DUPLICATE_CAME = enum.auto()
    """a duplicate of us came online; it withdraws when it receives our status"""


@dataclass(frozen=True, slots=True)
class _Claim:
    """One status that claims our host name."""

    boot: str | None
    ts: str | None


class _Mode(enum.Enum):
    """What the present connection is for."""

    PUBLISHING = enum.auto()
    WATCHING = enum.auto()
    """only to see whether the other host is still there"""


class HostOwnership:
    """What is known of other hosts that claim our name. Times are seconds of one monotonic clock. Pure.

    Of two hosts with different ids the first one stays. A copied machine has our id and our client id as well, so
    each of the two ends the other's connection when it connects. The copy is recognised by a run of its daemon that
    began later than ours; the run that began earlier withdraws, because the other one cannot know of it.
    """

    def __init__(self, run: DaemonRun, host: str) -> None:
        self._run = run
        self._host = host
        self._mode = _Mode.PUBLISHING
        self._has_published = False
        self._owner: _Claim | None = None
        """the other host that is online under our name"""
        self._owner_seen_at = 0.0
        self._copy: _Claim | None = None
        self._copy_expected_until = 0.0
        self._expired: _Claim | None = None
        """a claim whose host is gone, though the broker still holds its status"""

    def begin_publishing(self) -> None:
        """There is a new connection, on which we want to come online."""
        self._mode = _Mode.PUBLISHING
        self._owner = self._copy = None

    def begin_watching(self, now: float) -> None:
        """There is a new connection, only to see whether the other host is still there."""
        self._mode = _Mode.WATCHING
        self._owner_seen_at = now
        self._copy_expected_until = now + COPY_RETURNS_WITHIN_S if self._copy is not None else 0.0

    def confirm_published(self) -> None:
        """Our birth has come back from the broker."""
        self._has_published = True

    def check_free(self) -> None:
        """To be called before birth. Raises DuplicateHostError where another host is online under our name."""
        if self._owner is not None and self._owner != self._expired:
            raise DuplicateHostError(_OCCUPIED.format(host=self._host))

    def is_occupied(self, now: float) -> bool:
        """Whether the other host is still there: it has not gone offline, and was not silent for too long."""
        if self._owner is not None and now - self._owner_seen_at >= SILENT_AFTER_S:
            self._expired, self._owner = self._owner, None
        elif self._owner is None and now >= self._copy_expected_until:
            self._expired = self._copy or self._expired
        return self._owner is not None or now < self._copy_expected_until

    def note_message(self, boot: str | None, now: float) -> None:
        """A new ``info`` or ``state`` of our host, from the run ``boot`` of a daemon."""
        if self._owner is not None and boot == self._owner.boot:
            self._owner_seen_at = now

    def receive_status(self, status: StatusPayload, now: float, *, is_retained: bool) -> StatusVerdict:
        """A status of our host. Raises DuplicateHostError where we have to withdraw."""
        claim_socket = _Claim(status.boot, status.ts)
        if status.boot == self._run.boot:
            return self._receive_own(status, is_retained=is_retained)
        instance = status.instance or str(status.boot)
        if self._is_copy(instance, status) and claim_socket != self._expired:
            self._copy = claim_socket
            if self._mode is _Mode.PUBLISHING:
                raise DuplicateHostError(_COPIED.format(host=self._host))
        if not status.online:
            self._owner = None
            return StatusVerdict.NONE if is_retained else StatusVerdict.SAYS_OFFLINE
        if instance == self._run.instance and self._copy is None:
            return StatusVerdict.NONE  # an earlier run of ours
        self._owner, self._owner_seen_at = claim_socket, now
        if is_retained or self._mode is _Mode.WATCHING:
            return StatusVerdict.NONE
        if instance < self._run.instance:  # both came at once: both hosts decide the same way
            raise DuplicateHostError(_OCCUPIED.format(host=self._host))
        return StatusVerdict.DUPLICATE_CAME

    def _receive_own(self, status: StatusPayload, *, is_retained: bool) -> StatusVerdict:
        if is_retained:
            return StatusVerdict.NONE
        return StatusVerdict.ECHO if status.online else StatusVerdict.SAYS_OFFLINE

    def _is_copy(self, instance: str, status: StatusPayload) -> bool:
        """Before our first birth it may be an earlier run of ours whose clock was wrong."""
        is_later = (parse_timestamp(status.started_at) or 0.0) > self._run.started_at
        return self._has_published and is_later and instance == self._run.instance
