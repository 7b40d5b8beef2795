"""The first pair of files: one tunnel, its server's file and its client's, with a key of their own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.authoring.draft import Draft, WrittenFile, write_file
from orchestrator.errors import OrchestratorError
from tunnel.model.address import Address
from tunnel.model.spec import Proto

_DOCUMENTATION_NET: Final = "192.0.2.1", "2001:db8::1"  # RFC 5737, RFC 3849: a route leads there, nothing is sent


class FileExistsHereError(OrchestratorError):
    """A file that was to be written exists; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Starter:
    """What ``init`` knows about the first tunnel."""

    name: str
    server: Address
    """where the client finds the server"""
    visitors: Address
    target: Address
    is_forward: bool
    """whether the client accepts the visitors and the server dials the target"""
    proto: Proto
    key: str

    def write(self) -> tuple[WrittenFile, WrittenFile]:
        """Return the server's file and the client's."""
        at_server, at_client = (self.target, self.visitors) if self.is_forward else (self.visitors, self.target)
        mode = {"mode": "forward" if self.is_forward else "reverse"}
        if self.proto is not Proto.TCP:
            mode["proto"] = str(self.proto)
        wildcard = Address("::" if ":" in self.server.host else "0.0.0.0", self.server.port)
        server = Draft(self.name, f"server://{wildcard}/{at_server}", "")
        client = Draft(self.name, f"client://{self.server}/{at_client}", "")
        server.options = {"key": self.key, "service": self.name, **mode, "data_port": "tunnel"}
        client.options = {"key": self.key, "service": self.name, **mode}
        accepts, dials = f"accepts visitors at {self.visitors}", f"connects visitors to {self.target}"
        return (
            write_file([server], [
                f"The server: {dials if self.is_forward else accepts}. Its client connects to port {self.server.port},",
                "which has to be open in the firewall. The file contains the key: keep it private.",
            ]),
            write_file([client], [
                f"The client: {accepts if self.is_forward else dials}, through the server at {self.server}.",
                "The file contains the key: keep it private.",
            ]),
        )  # fmt: skip


def own_address() -> str:
    """Return the address from which this host reaches others; empty if it has no route. Nothing is sent."""
    for family, address in zip((socket.AF_INET, socket.AF_INET6), _DOCUMENTATION_NET, strict=True):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    return ""


def create_files(texts: Mapping[Path, str]) -> None:
    """Create files that only their owner can read. If one exists, none is created, and FileExistsHereError raised.

    Raises OSError for a file that cannot be written.
    """
    created: list[Path] = []
    try:
        for path, text in texts.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            created.append(path)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except BaseException as error:
        for path in created:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            name = str(error.filename)
            raise FileExistsHereError(
                f"{name} exists already and is not overwritten; remove it or name another directory with --directory"
            ) from None
        if isinstance(error, OSError) and error.filename is None:  # a full disk is found with the descriptor alone
            error.filename = str(created[-1])
        raise
