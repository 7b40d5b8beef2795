"""Why connections to a server are refused."""

from __future__ import annotations

import enum


class Refusals(enum.StrEnum):
    """The topics of warnings about refused connections, none of which has text that a peer chooses."""

    SILENT = "silent"
    PREFACE = "preface"
    HANDSHAKE = "handshake"
    PROOF = "proof"
    SERVICE = "service"
    OBJECTION = "objection"
