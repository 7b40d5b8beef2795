from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import wait_until_async
from tunnel.engine import admission
from tunnel.engine.admission import Strangers


@dataclass(eq=False)
class Someone:
    address: str = "10.0.0.1"
    why: list[str] = field(default_factory=list)

    def dismiss(self, why: str) -> None:
        self.why.append(why)


@given(moves=st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 30)), max_size=60))
async def test_there_are_never_too_many_and_the_newcomer_stays(moves: list[tuple[bool, str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "PER_ADDRESS", 4)
        patch.setattr(admission, "IN_ALL", 9)
        crowd, everyone = Strangers(), list[Someone]()
        for comes, address, index in moves:
            if comes:
                newcomer = Someone(address)
                everyone.append(newcomer)
                crowd.admit(newcomer)
                assert not newcomer.why
            elif everyone:
                crowd.release(everyone[index % len(everyone)])
            waiting = Counter(s.address for s in crowd._waiting)
            assert len(crowd) == waiting.total() <= 9
            assert all(count <= 4 for count in waiting.values())
            assert waiting == crowd._by_address
        crowd.dismiss_all("the test is over")
        assert not len(crowd)
        assert not crowd._by_address
        assert all(len(someone.why) <= 1 for someone in everyone)


async def test_the_oldest_of_a_crowded_address_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PER_ADDRESS", 2)
    crowd = Strangers()
    other, first, second, third = Someone("b"), Someone("a"), Someone("a"), Someone("a")
    for someone in (other, first, second, third):
        crowd.admit(someone)
    assert first.why == ["too many unproven connections from its address"]
    assert not any(someone.why for someone in (other, second, third))
    crowd.dismiss_all("the test is over")


async def test_who_stays_silent_goes_in_time_and_who_has_proven_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PATIENCE", 0.05)
    crowd, known, silent = Strangers(), Someone(), [Someone(str(n)) for n in range(5)]
    crowd.admit(known)
    for someone in silent:
        crowd.admit(someone)
    crowd.release(known)
    crowd.release(known)
    await wait_until_async(lambda: all(someone.why for someone in silent), "the silent ones were dismissed")
    assert not known.why
    late = Someone()
    crowd.admit(late)
    await wait_until_async(lambda: late.why == ["it said nothing in time"], "a later one too")
