"""Commands from the broker: which are taken and which are refused, and why. Pure but for a memory of their ids."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.mqtt.payloads import VERSION, moment, parsed
from tunnel.model.errors import did_you_mean

OPS: Final = ("start", "stop", "restart", "drain", "reload", "retry")
"""What can be asked for. Each names what shall be, none toggles."""

ALL: Final = "*"
"""The target that means every tunnel of the host."""

UNNAMED: Final = "malformed"
"""Where commands are answered that do not say, in a way that can be read, by whom they were given."""

REMEMBERED: Final = 4096
"""Ids of commands that are known when they come again."""

_WORD: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")  # it becomes a level of a topic: neither + nor # nor /
_LONGEST_DRAIN: Final = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Order:
    """A command that is to be carried out."""

    id: str
    reply: str
    op: str
    target: str | None
    """a tunnel's name, or ALL; None for reload"""
    timeout: float | None = None
    """limit of the drain that it implies, in seconds"""


class OrderRefusedError(Exception):
    """A command is not carried out; the message is a sentence. Without ``reply`` nobody knows whom to tell."""

    def __init__(self, why: str, id_: str | None = None, reply: str | None = None) -> None:
        super().__init__(why)
        self.id = id_
        self.reply = reply


class Gate:
    """Looks at what comes in for one life of a daemon."""

    def __init__(self, boot: str, remembered: int = REMEMBERED) -> None:
        self._boot = boot
        self._remembered = remembered
        self._seen: OrderedDict[str, None] = OrderedDict()

    def admit(self, data: object, *, is_retained: bool, now: float, closed: str | None = None) -> Order:
        """The command in a payload, at ``now`` (seconds since the epoch). Raises OrderRefusedError.

        ``closed`` is why no commands are taken at all.
        """
        payload = parsed(data)
        if payload is None:
            raise OrderRefusedError("the command is not a JSON object")
        id_, reply = _addressed(payload)
        why = closed or self._objection(payload, id_, is_retained=is_retained, now=now) or _flaw(payload)
        if why is not None:
            raise OrderRefusedError(why, id_, reply)
        self._remember(id_)
        return Order(id_, reply, payload["op"], payload.get("target"), payload.get("timeout"))

    def _objection(self, payload: dict[str, Any], id_: str, *, is_retained: bool, now: float) -> str | None:
        """What is wrong with the circumstances."""
        if is_retained:
            return "the command was retained by the broker: nobody knows how old it is; publish it without retain"
        if id_ in self._seen:
            return "the command was given before: each needs an id of its own"
        boot = payload.get("boot")
        if boot is not None and boot != self._boot:
            return "the command was meant for another life of the daemon: its boot is not the one in status"
        exp = payload.get("exp")
        if exp is not None:
            until = moment(exp)
            if until is None:
                return "exp is neither a moment as in RFC 3339 nor seconds since 1970"
            if until <= now:
                ago = f"the command expired {now - until:.1f} s ago by this host's clock"
                return f"{ago}; if it was just given, one of the two clocks is wrong"
        return None

    def _remember(self, id_: str) -> None:
        self._seen[id_] = None
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)


def _addressed(payload: dict[str, Any]) -> tuple[str, str]:
    """The command's id, and the last level of the topic that its answer goes to. Raises OrderRefusedError."""
    id_ = payload.get("id")
    reply = payload.get("reply", id_)
    shape = "1 to 64 letters, digits and . _ ~ -"
    if not (isinstance(reply, str) and _WORD.fullmatch(reply)):
        raise OrderRefusedError(f"the command's {'reply' if 'reply' in payload else 'id'} is not {shape}")
    if not (isinstance(id_, str) and _WORD.fullmatch(id_)):
        raise OrderRefusedError(f"the command's id is not {shape}", None, reply)
    return id_, reply


def _flaw(payload: dict[str, Any]) -> str | None:
    """What is wrong with the command itself."""
    if payload.get("v") != VERSION:
        return f"the command is not of version {VERSION}: it needs v: {VERSION}"
    op, target, timeout = payload.get("op"), payload.get("target"), payload.get("timeout")
    if op not in OPS:
        hint = did_you_mean(op, OPS) if isinstance(op, str) else ""
        return f"unknown op {str(op)[:60]!r}{hint or '; known: ' + ', '.join(OPS)}"
    if op == "reload":
        return None if target is None else "reload is for the whole host and takes no target"
    if not (isinstance(target, str) and target):
        return f"{op} needs a target: the name of a tunnel, or {ALL} for all of them"
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and 0 <= timeout <= _LONGEST_DRAIN):
        return f"timeout is not a number of seconds from 0 to {_LONGEST_DRAIN:g}"
    return None
