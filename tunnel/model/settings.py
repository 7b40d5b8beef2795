"""The nine settings of a tunnel that the original program read from environment variables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits, intervals and time-outs; durations in seconds. ``options.OPTIONS`` documents each one and its range."""

    semaphore_limit: int = 1024
    signal_queue_limit: int = 1024
    signal_buffer: int = 1024
    min_pool_capacity: int = 8
    max_pool_capacity: int = 1024
    report_interval: float = 5.0
    server_cooldown: float = 5.0
    client_cooldown: float = 5.0
    shutdown_timeout: float = 5.0
    explicit: frozenset[str] = frozenset()
    """names of the settings that the user wrote, as opposed to built-in defaults"""
