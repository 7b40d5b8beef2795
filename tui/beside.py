"""What goes on beside the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from textual.dom import DOMNode
    from textual.worker import Worker


def begin(owner: DOMNode, work: Callable[[], Coroutine[Any, Any, None]], group: str, *, is_alone: bool = True) -> None:
    """Let something go on for as long as its owner lives; what its group was doing is ended first, if it is alone.

    It is given as a function: a coroutine that is ended before it began would be one that nobody awaits.
    """
    _: Worker[None] = owner.run_worker(work, group=group, exclusive=is_alone)
