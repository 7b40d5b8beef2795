"""Ownership of a host name on the broker: duplicates, copies, and the stored identity of an installation."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.mqtt.broker import TAKEN_OVER_CODE, BrokerError
from orchestrator.mqtt.broker_socket import STEP_TIMEOUT_S
from orchestrator.mqtt.connection_report import RetryPolicy
from orchestrator.mqtt.ownership import (
    COPY_RETURNS_WITHIN_S,
    SILENT_AFTER_S,
    DuplicateHostError,
    HostOwnership,
    StatusVerdict,
    load_identity,
)
from orchestrator.mqtt.payloads import DaemonRun, StatusPayload
from tunnel.runtime.backoff import YOUNG_ATTEMPTS

NOW = 1_800_000_000.0
OURS = DaemonRun("b-instance", "boot-1")


def status(run: DaemonRun, *, online: bool = True) -> StatusPayload:
    return StatusPayload.of_run(run, "2027-01-15T08:00:00Z", online=online)


def receive(ownership: HostOwnership, payload: StatusPayload, *, now: float = 0, old: bool = False) -> StatusVerdict:
    return ownership.receive_status(payload, now, is_retained=old)


def test_our_own_messages_and_earlier_runs_are_no_duplicates() -> None:
    ownership = HostOwnership(OURS, "edge-1")
    earlier = DaemonRun(OURS.instance, "boot-0")
    assert receive(ownership, status(earlier), old=True) is StatusVerdict.NONE
    assert receive(ownership, status(OURS), old=True) is StatusVerdict.NONE
    ownership.check_free()
    assert receive(ownership, status(OURS)) is StatusVerdict.ECHO
    assert receive(ownership, status(earlier, online=False)) is StatusVerdict.SAYS_OFFLINE, "a will that comes late"
    assert receive(ownership, status(OURS, online=False)) is StatusVerdict.SAYS_OFFLINE


def test_the_first_owner_stays_until_it_is_gone_or_silent() -> None:
    ownership = HostOwnership(OURS, "edge-1")
    other = DaemonRun("z-instance", "boot-9")
    receive(ownership, status(other), old=True)
    with pytest.raises(DuplicateHostError, match=r"edge-1.*another name"):
        ownership.check_free()
    ownership.begin_watching(0.0)
    receive(ownership, status(other), old=True)
    assert ownership.is_occupied(SILENT_AFTER_S - 1)
    ownership.note_message("boot-9", SILENT_AFTER_S - 1)
    assert ownership.is_occupied(SILENT_AFTER_S + 1)
    receive(ownership, status(other, online=False), now=SILENT_AFTER_S + 2)
    assert not ownership.is_occupied(SILENT_AFTER_S + 2)


def test_a_retained_status_without_a_host_expires() -> None:
    ownership = HostOwnership(OURS, "edge-1")
    other = DaemonRun("a-instance", "boot-9")
    ownership.begin_watching(0.0)
    receive(ownership, status(other), old=True)
    assert not ownership.is_occupied(SILENT_AFTER_S)
    ownership.begin_publishing()
    receive(ownership, status(other), old=True)
    ownership.check_free()


def test_a_copy_whose_connection_was_taken_over_returns_before_it_counts_as_gone() -> None:
    policy = RetryPolicy(lambda _low, high: high)
    taken_over = BrokerError("another program uses our client id", TAKEN_OVER_CODE)
    pauses = [policy.delay_after_error(taken_over, 0.1, was_online=False) for _ in range(YOUNG_ATTEMPTS)]
    assert max(pauses) <= COPY_RETURNS_WITHIN_S - STEP_TIMEOUT_S


def test_a_copied_machine_is_watched_like_any_other_owner() -> None:
    ownership = HostOwnership(OURS, "edge-1")
    its = DaemonRun(OURS.instance, "boot-2", NOW)
    receive(ownership, status(its), old=True)
    ownership.check_free()  # it may be an earlier run of ours
    ownership.confirm_published()
    ownership.begin_publishing()
    with pytest.raises(DuplicateHostError, match="copied"):
        receive(ownership, status(its, online=False), old=True)  # our connection ended its connection
    ownership.begin_watching(0.0)
    receive(ownership, status(its, online=False), old=True)
    assert ownership.is_occupied(COPY_RETURNS_WITHIN_S - 1), "it will be back"
    receive(ownership, status(its), now=COPY_RETURNS_WITHIN_S - 1)
    ownership.note_message("boot-2", COPY_RETURNS_WITHIN_S + 60)
    assert ownership.is_occupied(COPY_RETURNS_WITHIN_S + 80)
    receive(ownership, status(its, online=False), now=COPY_RETURNS_WITHIN_S + 81)
    assert not ownership.is_occupied(COPY_RETURNS_WITHIN_S + 81)
    ownership.begin_publishing()
    receive(ownership, status(its, online=False), old=True)
    ownership.check_free()


def test_the_retained_status_of_an_earlier_run_is_no_copy() -> None:
    ownership = HostOwnership(replace(OURS, started_at=NOW), "edge-1")
    ownership.confirm_published()
    ownership.begin_publishing()
    receive(ownership, status(DaemonRun(OURS.instance, "boot-0", NOW - 1)), old=True)
    ownership.check_free()


def test_of_two_hosts_that_come_at_once_exactly_one_withdraws() -> None:
    first, second = DaemonRun("a-instance", "boot-a"), DaemonRun("b-instance", "boot-b")
    assert receive(HostOwnership(first, "edge-1"), status(second)) is StatusVerdict.DUPLICATE_CAME
    with pytest.raises(DuplicateHostError):
        receive(HostOwnership(second, "edge-1"), status(first))


def test_an_installation_keeps_its_id(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "a.yaml", tmp_path / "state")
    assert load_identity(tmp_path / "a.yaml", tmp_path / "state") == first
    assert first.problem is None
    assert len(first.client_id("edge-1")) == 23
    assert first.client_id("edge-1") != first.client_id("edge-2"), "machines are copied with their state directory"
    assert load_identity(tmp_path / "b.yaml", tmp_path / "state").instance != first.instance
    (tmp_path / "file").write_text("")
    lost = load_identity(tmp_path / "a.yaml", tmp_path / "file" / "below")
    assert lost.problem is not None
    assert "cannot store" in lost.problem


def test_a_damaged_id_is_replaced_and_one_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "a.yaml", tmp_path / "state")
    (stored,) = (tmp_path / "state").iterdir()
    stored.write_text("rubbish")
    second = load_identity(tmp_path / "a.yaml", tmp_path / "state")
    assert (second.instance == first.instance, second.problem) == (False, None)
    stored.unlink()
    os.mkfifo(stored)
    assert load_identity(tmp_path / "a.yaml", tmp_path / "state").problem is None, "nobody writes to it"
    stored.unlink()
    stored.symlink_to(stored)
    assert "symbolic links" in (load_identity(tmp_path / "a.yaml", tmp_path / "state").problem or "")


def test_the_id_stays_when_a_link_to_the_file_is_pointed_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "tunnels.yaml"
    ids = set()
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / release / "tunnels.yaml")
        ids.add(load_identity(link, tmp_path / "state").instance)
    assert len(ids) == 1
