"""A socket filter of classic BPF that lets the kernel drop most datagrams of unknown sources. Needs no privilege.

The kernel runs the program for each datagram before it is queued (SO_ATTACH_FILTER, socket(7)); the instructions and
the places of a packet's fields are in linux/filter.h. The program turns the source address and port into a number,
and searches it among those of the present flows. Two sources may have one number: a stranger is let through then, and
the owner of the socket decides about it as about any other.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import sys
from array import array
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tunnel.model.networks import NO_NETWORKS, unmap_address

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tunnel.model.networks import Network, NetworkSet

MAX_INSTRUCTIONS: Final = 4_096  # BPF_MAXINSNS
_OPTION_MEMORY: Final = Path("/proc/sys/net/core/optmem_max")
_DEFAULT_OPTION_MEMORY: Final = 20_480  # bytes, before Linux 6.7, where containers do not see the file either
_INSTRUCTION_BYTES: Final = 8
_PROGRAM_OVERHEAD: Final = 1_024  # bytes; what the kernel adds, and the loads that become several of its instructions
MAX_NETWORKS: Final = 64
"""Networks of both lists together that a program knows; one takes 13 instructions at most."""
MAX_FLOWS: Final = 8_192
"""Flows that a program knows: with more, it would let most strangers through."""

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; Python has no names for these
_SO_DETACH_FILTER: Final = 27
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")  # linux/sock_diag.h; the last one, SK_MEMINFO_DROPS, counts dropped datagrams
_SOCK_FPROG: Final = struct.Struct("@HP")

_WORD: Final = 0xFFFF_FFFF
_NETWORK_HEADER: Final = -0x10_0000 & _WORD  # SKF_NET_OFF: that of IP; other offsets begin at the header of UDP
_RANDOM: Final = -0x1000 + 56 & _WORD  # SKF_AD_OFF + SKF_AD_RANDOM
_SOURCE4: Final = 12  # where the source address is in a header of IP
_SOURCE6: Final = 8

_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_GREATER_OR_EQUAL: Final = 0x35
_ADD_X: Final = 0x0C
_MULTIPLY: Final = 0x24
_AND: Final = 0x54
_SHIFT_RIGHT: Final = 0x74
_A_TO_X: Final = 0x07
_X_TO_A: Final = 0x87
_RETURN: Final = 0x06

_MAX_CONDITIONAL: Final = 255  # instructions that a conditional jump passes over at most
_LEAF_SIZE: Final = 16  # numbers, or ranges of them, that are compared one after the other
_TO_STRANGER: Final = -1  # a jump whose distance is known when the program is complete
_TO_LOTTERY: Final = -2

_IS_LITTLE: Final = sys.byteorder == "little"
_K_SHIFT: Final = 32 if _IS_LITTLE else 0


def _encode(code: int, k: int = 0, if_true: int = 0, if_false: int = 0) -> int:
    """Return an instruction as a number whose bytes are a ``struct sock_filter``."""
    if _IS_LITTLE:
        return k << 32 | if_false << 24 | if_true << 16 | code
    return code << 48 | if_true << 40 | if_false << 32 | k


_ACCEPT: Final = _encode(_RETURN, _WORD)
_DROP: Final = _encode(_RETURN, 0)


class SourceHash:
    """Turns source addresses into numbers of 31 bits: the upper ones of a sum of products with secret multipliers.

    So no sender can choose two addresses with one number: in the lower bits, addresses that differ in their first bit
    alone would have one. A comparison with 32 bits could be two instructions of the kernel's own.
    """

    def __init__(self, multipliers: Sequence[int] = ()) -> None:
        """``multipliers`` are five odd numbers: for the port, and for each word of the address; else random ones."""
        self.multipliers: Final = tuple(multipliers) or tuple(secrets.randbits(32) | 1 for _ in range(5))

    def number_of(self, peer: Any) -> int:  # noqa: ANN401  a socket address
        """Return the number of a socket address of IPv4 or IPv6."""
        host = str(peer[0]).partition("%")[0]
        packed = unmap_address(socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host))
        words = (int(peer[1]), *struct.unpack(f"!{len(packed) // 4}I", packed))
        number: int = sum(word * by for word, by in zip(words, self.multipliers, strict=False))
        return (number & _WORD) >> 1

    def instructions(self) -> list[int]:
        """Return the beginning of a program, after which A is the number of the datagram's source."""
        ipv4, ipv6 = self._sum_words(_SOURCE4, 1), self._sum_words(_SOURCE6, 4)
        return [
            *(_encode(_LOAD_HALF, 0), _encode(_MULTIPLY, self.multipliers[0]), _encode(_A_TO_X)),
            *_load_version(),
            _encode(_JUMP_EQUAL, 4, 0, len(ipv4) + 1),
            *ipv4,
            _encode(_JUMP, len(ipv6)),
            *ipv6,
            _encode(_SHIFT_RIGHT, 1),
        ]

    def _sum_words(self, offset: int, count: int) -> list[int]:
        """Add words of the network header, each multiplied, to X and A."""
        return [
            instruction
            for at, by in zip(range(offset, offset + 4 * count, 4), self.multipliers[1:], strict=False)
            for instruction in (_load_address(at), _encode(_MULTIPLY, by), _encode(_ADD_X), _encode(_A_TO_X))
        ]


def _load_address(offset: int) -> int:
    return _encode(_LOAD_WORD, _NETWORK_HEADER + offset)


def _load_version() -> tuple[int, int]:
    return _encode(_LOAD_BYTE, _NETWORK_HEADER), _encode(_SHIFT_RIGHT, 4)


def build_program(
    source_hash: SourceHash,
    numbers: Collection[int],
    share: float,
    allow: NetworkSet = NO_NETWORKS,
    deny: NetworkSet = NO_NETWORKS,
    max_instructions: int = MAX_INSTRUCTIONS,
) -> bytes:
    """Return a program that accepts the sources with these numbers, and others by lot.

    ``share`` is the part of the strangers that is accepted, from 0 to 1. Those that ``deny`` has are dropped, and those
    that ``allow`` does not have, unless it is empty. If there are too many numbers for a program, ranges of them are
    accepted.
    """
    start, lottery = source_hash.instructions(), _draw_lots(share)
    stranger = _check_networks(allow, deny)
    search = _search(sorted(set(numbers)), max_instructions - len(start) - len(stranger) - len(lottery))
    program = [*start, *search, *stranger, *lottery]
    at = {_TO_LOTTERY: len(program) - len(lottery), _TO_STRANGER: len(start) + len(search)}
    final = [one if one >= 0 else _encode(_JUMP, at[one] - place - 1) for place, one in enumerate(program)]
    return array("Q", final).tobytes()


def _draw_lots(share: float) -> list[int]:
    bound = round(share * (1 << 32))
    if bound > _WORD:
        return [_ACCEPT]
    return [_encode(_LOAD_WORD, _RANDOM), _encode(_JUMP_GREATER_OR_EQUAL, bound, 1, 0), _ACCEPT, _DROP]


# --- present flows ---------------------------------------------------------------------------------------------------


def _search(numbers: list[int], room: int) -> list[int]:
    """Return instructions that accept if A is one of these sorted numbers; else it is a stranger's."""
    if not numbers:
        return [_TO_STRANGER]
    leaves = [_leaf_of_numbers(numbers[at : at + _LEAF_SIZE]) for at in range(0, len(numbers), _LEAF_SIZE)]
    firsts = numbers[::_LEAF_SIZE]
    if sum(map(len, leaves)) + 2 * len(leaves) > room:
        leaf_cost = 2 * _LEAF_SIZE + 4
        ranges = _merge_near(numbers, room // leaf_cost * _LEAF_SIZE)
        leaves = [_leaf_of_ranges(ranges[at : at + _LEAF_SIZE]) for at in range(0, len(ranges), _LEAF_SIZE)]
        firsts = [first for first, _ in ranges[::_LEAF_SIZE]]
    return _join_leaves(leaves, firsts)


def _leaf_of_numbers(numbers: list[int]) -> list[int]:
    left = len(numbers)
    tests = [_EQUAL_THEN_SKIP[left - at] | number << _K_SHIFT for at, number in enumerate(numbers)]
    return [*tests, _TO_STRANGER, _ACCEPT]


_EQUAL_THEN_SKIP: Final = [_encode(_JUMP_EQUAL, 0, skipped) for skipped in range(_LEAF_SIZE + 1)]


def _leaf_of_ranges(ranges: list[tuple[int, int]]) -> list[int]:
    tests = []
    for left, (first, last) in zip(range(2 * len(ranges) - 1, 0, -2), ranges, strict=True):
        tests += [_encode(_JUMP_GREATER_OR_EQUAL, first, 0, 1), _encode(_JUMP_GREATER, last, 0, left)]
    return [*tests, _TO_STRANGER, _ACCEPT]


def _merge_near(numbers: list[int], count: int) -> list[tuple[int, int]]:
    """Return at most ``count`` ranges that have all the numbers, so that the widest gaps are between ranges."""
    gaps = [(after - before) << 32 | at for at, (before, after) in enumerate(pairwise(numbers))]
    gaps.sort(reverse=True)
    ends = sorted(gap & _WORD for gap in gaps[: count - 1])
    firsts = [numbers[0], *(numbers[at + 1] for at in ends)]
    lasts = [*(numbers[at] for at in ends), numbers[-1]]
    return list(zip(firsts, lasts, strict=True))


def _join_leaves(leaves: list[list[int]], firsts: list[int]) -> list[int]:
    """Return a binary search for the leaf of A; ``firsts`` are the lowest numbers of the leaves."""
    if len(leaves) == 1:
        return leaves[0]
    middle = len(leaves) // 2
    below = _join_leaves(leaves[:middle], firsts[:middle])
    above = _join_leaves(leaves[middle:], firsts[middle:])
    if len(below) <= _MAX_CONDITIONAL:
        return [_encode(_JUMP_GREATER_OR_EQUAL, firsts[middle], len(below), 0), *below, *above]
    far = _encode(_JUMP, len(below))
    return [_encode(_JUMP_GREATER_OR_EQUAL, firsts[middle], 0, 1), far, *below, *above]


# --- lists of networks -----------------------------------------------------------------------------------------------


def _check_networks(allow: NetworkSet, deny: NetworkSet) -> list[int]:
    """Return instructions that drop what the lists refuse; lists that are too long are left to the socket's owner."""
    if not (allow or deny) or len(allow) + len(deny) > MAX_NETWORKS:
        return []
    checks = {}
    for size in (4, 16):
        denied = [_match(one, _DROP) for one in deny.networks if len(one[0]) == size]
        allowed = [_match(one, _TO_LOTTERY) for one in allow.networks if len(one[0]) == size]
        checks[size] = [*chain(*denied, *allowed), _DROP if allow else _TO_LOTTERY]
    return [
        *_load_version(),
        _encode(_JUMP_EQUAL, 4, 1, 0),
        _encode(_JUMP, len(checks[4])),
        *checks[4],
        *checks[16],
    ]


def _match(network: Network, then: int) -> list[int]:
    """Return instructions that end with ``then`` if the source belongs to a network, and else go on after it."""
    packed, prefix = network
    offset = _SOURCE4 if len(packed) == 4 else _SOURCE6
    tests: list[list[int]] = []
    for at in range(0, (prefix + 31) // 32 * 4, 4):
        bits = min(32, prefix - 8 * at)
        mask = _WORD << (32 - bits) & _WORD
        narrow = [_encode(_AND, mask)] if bits < 32 else []
        tests.append([_load_address(offset + at), *narrow, int.from_bytes(packed[at : at + 4])])
    code, left = [then], 1
    for *load, wanted in reversed(tests):
        code = [*load, _encode(_JUMP_EQUAL, wanted, 0, left), *code]
        left = len(code)
    return code


def find_max_instructions() -> int:
    """Return how long a program may be: it counts as memory for options of its socket."""
    try:
        memory_bytes = int(_OPTION_MEMORY.read_text())
    except (OSError, ValueError):
        memory_bytes = _DEFAULT_OPTION_MEMORY
    return min(MAX_INSTRUCTIONS, max(0, memory_bytes - _PROGRAM_OVERHEAD) // _INSTRUCTION_BYTES)


# --- the socket -------------------------------------------------------------------------------------------------------


def attach_filter(sock: socket.SocketType, program: bytes) -> None:
    """Let a program decide which datagrams reach a socket, in place of another one. Raises OSError."""
    import ctypes  # noqa: PLC0415  half a megabyte, only in a flood

    code = ctypes.create_string_buffer(program, len(program))  # the kernel copies it
    option = _SOCK_FPROG.pack(len(program) // 8, ctypes.addressof(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        detach_filter(sock)  # there is room for one program, not for two
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def detach_filter(sock: socket.SocketType) -> None:
    """Let all datagrams reach a socket again. Raises OSError if there is no filter."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def count_drops(sock: socket.SocketType) -> int:
    """Return how many datagrams the kernel has dropped at a socket, modulo 2^32. Raises OSError before Linux 4.12."""
    drops: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
    return drops
