"""Why a visitor is refused."""

from __future__ import annotations

import enum


class VisitorRefusal(enum.Enum):
    """A class of reasons; the value is its key in ``refused`` of ``ps --json``, and the label of the metric."""

    ALLOW = "allow"
    """the address is in ``deny``, or not in ``allow``"""
    PER_ADDRESS = "per_address"
    """the address has ``max_per_address`` visitors already"""
    RATE = "rate"
    """the address had more than ``rate_new`` new visitors per second"""
    QUOTA = "quota"
    """the ``quota`` of the tunnel is used up"""
    LIMIT = "limit"
    """a visitor of UDP found no place: ``semaphore_limit`` visitors were present"""
    PROXY = "proxy"
    """a connection of a balancer in ``proxy_from`` had no valid PROXY header"""
