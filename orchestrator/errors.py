"""The base of every exception that the orchestrator raises on purpose."""

from __future__ import annotations


class OrchestratorError(Exception):
    """Something the orchestrator refuses or cannot do; the message is a sentence for the user."""
