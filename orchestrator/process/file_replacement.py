"""The one writer for every small file that others may read at the same time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tunnel.model.files import noted_access


def replace_file(path: Path, content: bytes) -> None:
    """Write a file at once: a reader sees the old content or the new one, also after a power failure. Raises OSError.

    Mode and owner stay; of a symbolic link, the file that it leads to is replaced. A new file is for its user alone.
    """
    with noted_access(path):
        _replace_file(path, content)


def _replace_file(path: Path, content: bytes) -> None:
    target = Path(os.path.realpath(path))
    status = target.stat() if target.exists() else None
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if status is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
            os.fsync(file.fileno())
        Path(name).replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
