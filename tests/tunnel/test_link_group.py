"""The choice among several links: which of them start slowly, and which do not."""

from __future__ import annotations

from typing import cast

from tunnel.engine.link import Link
from tunnel.engine.link_group import LinkGroup
from tunnel.model.balancer import Balance


class LinkStub:
    """What a group reads of a link; it is its own channel and session."""

    key_name = None
    peer = "192.0.2.1:1000"
    target_error = None
    weight = 100
    is_backup = False
    is_drained = False

    def __init__(self) -> None:
        self.channel = self.session = self


def weights(group: LinkGroup) -> list[int]:
    return [round(member.balance_weight) for member in group._members.values()]


async def test_a_new_link_starts_slowly_and_the_loss_of_another_one_of_its_host_changes_no_weight() -> None:
    group = LinkGroup(lambda _: 0)
    group.configure(Balance.ROUNDROBIN, 3600.0)
    first, second, third = (cast("Link", LinkStub()) for _ in range(3))
    group.set_links([first, second])
    assert weights(group) == [100, 100]
    group.set_links([first, second, third])
    assert weights(group) == [100, 100, 5]
    group.set_links([second, third])
    assert weights(group) == [100, 5]
    assert len({member.balance_key for member in group._members.values()}) == 2
