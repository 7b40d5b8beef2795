"""The file and its changes under load: who is meant changes, nobody else notices, and a wrong file changes nothing.

The quick halves of those marked slow are in ``tests/integration/test_reload.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Figure
from tests.integration.harness import Stage, until
from tests.integration.peers import exchange
from tests.integration.test_reload import House, Pair, document, visitors
from tests.scale import FULL

SEEN = 5.0
"""Seconds in which a change of the file has to be noticed: two at the most, and a machine that others use too."""
PAIRS = 50
ROUNDS = 3 if FULL else 1


def two_pairs(stage: Stage) -> tuple[Pair, Pair]:
    """One of each direction."""
    target = stage.target()
    return Pair("one", "reverse", target), Pair("two", "forward", target)


@pytest.mark.case("file truncated, invalid, renamed away", deadline=90)
def test_spoiled(stage: Stage, figure: Figure) -> None:
    """Every visitor is served, the generation stays, ``ps`` shows the place; the good file again is no change at all.

    With the last good configuration given up (``Reloader._in_turn`` applying a manifest without entries instead of
    refusing) the tunnels drain at the first of them, and visitors are refused.
    """
    pairs = two_pairs(stage)
    house = House(stage, {**pairs[0].entries(), **pairs[1].entries()})
    good, number, links = house.file.read_text(), house.generation, house.links()
    away = house.file.with_suffix(".bak")
    worst = 0.0
    spoils: list[Callable[[], object]] = [
        lambda: os.truncate(house.file, len(good) // 2),
        lambda: os.truncate(house.file, 0),
        lambda: house.file.write_text(good.replace("server://", "sever://", 1)),
        lambda: house.file.rename(away),
    ]
    with visitors(*pairs) as there:
        for _ in range(ROUNDS):
            for spoil in spoils if FULL else spoils[::3]:
                spoil()
                began = time.monotonic()
                until(lambda: not house.config["ok"], within=SEEN, what="the error is shown")
                worst = max(worst, time.monotonic() - began)
                assert house.config["error"].startswith(f"{house.file}:")
                assert (house.generation, house.links()) == (number, links)
                house.file.write_text(good)
                until(lambda: house.config["ok"], within=SEEN, what="the error is gone")
                assert (house.generation, house.links()) == (number, links)
        served = there.served
    figure(f"shown within {worst:.1f} s, {served} visits served, none failed")


@pytest.mark.slow
@pytest.mark.case("file replaced by rename and by a swapped link", deadline=90)
def test_swapped(stage: Stage, figure: Figure) -> None:
    """As editors and as Kubernetes do it (``..data`` points to another directory); each is applied, nobody is refused.

    With hints of the file's own name alone (a ``watch_filter`` for it), and no look besides (``watcher._TICKS``
    enormous), the swapped link is never seen.
    """
    one, two = two_pairs(stage)
    house = House(stage, {**one.entries(), **two.entries()})
    room = house.file.parent
    worst = 0.0

    def renamed(text: str) -> None:
        beside = house.file.with_suffix(".new")
        beside.write_text(text)
        beside.rename(house.file)

    def linked(text: str) -> None:
        volume = room / f"..{time.monotonic_ns()}"
        volume.mkdir()
        (volume / house.file.name).write_text(text)
        link, fresh = room / "..data", room / "..data_tmp"
        fresh.symlink_to(volume.name)
        fresh.rename(link)
        if not house.file.is_symlink():
            house.file.with_suffix(".link").symlink_to(Path("..data", house.file.name))
            house.file.with_suffix(".link").rename(house.file)

    with visitors(two) as there:
        for swap in [renamed, linked, linked] * ROUNDS:
            number = house.generation
            one.target = stage.target()
            time.sleep(1.5)  # whoever watches has done with what was before
            swap(document({**one.entries(), **two.entries()}))
            worst = max(worst, house.applied(number + 1, within=SEEN))
            fresh = one.target
            until(lambda: exchange(one.visitors, b"x") == b"x" and fresh.accepted > 0, within=5, what="new target")  # noqa: B023  called at once
        served = there.served
    figure(f"applied within {worst:.1f} s, {served} visits served elsewhere, none failed")


@pytest.mark.slow
@pytest.mark.case("one of many reloaded under traffic", deadline=150)
def test_one_of_many(stage: Stage, figure: Figure) -> None:
    """One entry's target changes, again and again, under visitors of all the others: none of them sees a reset.

    With every entry taken for a changed one (``plan.diff`` comparing by identity, ``before[name] is not entry``, and
    ``needs_engine`` always True) the links of all are others after the first save.
    """
    target = stage.target()
    crowd = [Pair(f"pair-{n}", ("reverse", "forward")[n % 2], target, min_pool_capacity=2) for n in range(PAIRS)]
    edited, *others = crowd
    tunnels = {name: entry for pair in crowd for name, entry in pair.entries().items()}
    house = House(stage, tunnels)
    house.is_up(within=30)
    links = house.links()
    worst = 0.0
    with visitors(*others) as there:
        for _ in range(3):
            edited.target = stage.target()
            tunnels |= edited.entries()
            number = house.generation
            house.file.write_text(document(tunnels))
            worst = max(worst, house.applied(number + 1, within=SEEN))
            fresh = edited.target
            until(lambda: exchange(edited.visitors, b"x") == b"x" and fresh.accepted > 0, within=10, what="new target")  # noqa: B023  called at once
        served = there.served
    after = house.links()
    assert {name: after[name] for name in tunnels if name not in edited.entries()} == {
        name: links[name] for name in tunnels if name not in edited.entries()
    }
    figure(f"{2 * PAIRS - 1} untouched, applied within {worst:.1f} s, {served} visits served, none failed")


@pytest.mark.slow
@pytest.mark.case("port taken at reload", deadline=60)
@pytest.mark.parametrize("workers", [0, 2], ids=["one process", "workers"])
def test_port_taken(stage: Stage, figure: Figure, workers: int) -> None:
    """The entry whose new port is in use reports it and serves on where it was; the others of the same save change.

    With the old engine drained before the new one binds (``Handover.run`` going straight to ``_exchange``) its visitors
    are refused from then on.
    """
    one, two = two_pairs(stage)
    house = House(stage, {**one.entries(), **two.entries()}, workers)
    old, taken = one.visitor_port, stage.target()
    with visitors(one, two) as there:
        one.visitor_port = taken.port
        number = house.generation
        house.file.write_text(document({**one.entries(), **two.entries(log="warn")}))
        house.applied(number + 1, within=SEEN)
        one.visitor_port = old
        seen = house.daemon.tunnel(one.entrance)
        assert seen["state"] == "up"
        assert f"127.0.0.1:{taken.port}" in seen["last_error"]
        result = house.reload()["results"][one.entrance]
        assert result["action"] == "rejected"
        served = there.served
    taken.close()
    assert house.reload()["results"][one.entrance]["action"] == "restarted"
    until(lambda: exchange(("127.0.0.1", taken.port), b"x") == b"x", within=10, what="the port at last")
    figure(f"{result['detail'].partition(';')[0]}; {served} visits served, none failed")
