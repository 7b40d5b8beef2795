"""The SQLite file of the history. Every call blocks, so that all of them are made on one thread of their own.

The file is in WAL mode: a killed process loses what it had not committed, and nothing else. A file that is damaged, or
that a later version of this program has written, is renamed, and a new one takes its place.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from orchestrator.errors import OrchestratorError
from orchestrator.history.periods import Period
from orchestrator.history.traffic import RowKey, Traffic

Value = TypeVar("Value")

MIGRATIONS: Final = (
    """
    CREATE TABLE tunnel (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_hour INTEGER NOT NULL);
    CREATE TABLE traffic (
        hour INTEGER NOT NULL,
        tunnel INTEGER NOT NULL REFERENCES tunnel (id),
        from_visitors INTEGER NOT NULL,
        to_visitors INTEGER NOT NULL,
        visitors INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        refused INTEGER NOT NULL,
        PRIMARY KEY (hour, tunnel)
    ) WITHOUT ROWID;
    CREATE TABLE setting (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    """,
)
"""The statements that lead from each version of the schema (PRAGMA user_version) to the next."""

MAX_BAD_FILES: Final = 3
"""Damaged files that are kept; the oldest is removed to make room for another."""

GRADUAL_HOURS: Final = 48
"""Hours of old rows that one call of ``prune`` removes: a clock that is wrong for a moment must not empty the file."""

_HEADER: Final = b"SQLite format 3\0"
_MAX_FREED_PAGES: Final = 4096  # returned to the file system at once, 16 MiB
_BUSY_TIMEOUT_S: Final = 2.0  # another process reads the file with a tool
_QUERY_TIMEOUT_S: Final = 5.0
_STEPS_PER_CHECK: Final = 100_000  # of SQLite's virtual machine, some milliseconds
_DAMAGES: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_ERROR,  # our statements are constant: a table or a column is missing
    }
)
_SUM: Final = ", ".join(f"SUM({name})" for name in Traffic._fields)
_ADD: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in Traffic._fields)


class HistoryError(OrchestratorError):
    """The file cannot be used at present; the message is the cause, as a part of a sentence."""


class _UnusableFileError(Exception):
    """The file has to be set aside; the message says why, as a part of a sentence."""


class HistoryFile:
    """The open file; used on one thread at a time. ``notes`` collects what the user has to know."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.notes: list[str] = []
        """sentences about what happened to the file, the oldest first; the reader removes them"""
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._companions: dict[Path, tuple[int, int] | None] = {}  # the log and index that SQLite has open with it

    def run(self, job: Callable[[sqlite3.Connection], Value]) -> Value:
        """Run a job in one transaction. Raises HistoryError.

        If the file is damaged, the job is run once more on a new one.
        """
        for is_last in (False, True):
            try:
                return self._run_once(job)
            except _UnusableFileError as error:
                self.close()
                if is_last:
                    raise HistoryError(f"{self.path} {error}") from None
                self._set_aside(str(error))
        raise AssertionError

    def close(self) -> None:
        """Close the file; the next job opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _run_once(self, job: Callable[[sqlite3.Connection], Value]) -> Value:
        try:
            with _transaction(self._open()) as connection:
                return job(connection)
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", None)  # an error of the Python module alone has none
            if code is not None and code & 0xFF in _DAMAGES:  # the rest is an extended code
                raise _UnusableFileError(f"is damaged ({error})") from None
            self.close()
            raise HistoryError(f"{self.path}: {error}") from None
        except OSError as error:
            self.close()
            raise HistoryError(f"{self.path}: {error.strerror or error}") from None

    def _open(self) -> sqlite3.Connection:
        """Return the connection; a file that was removed or replaced while it was open is opened again."""
        if self._connection is not None and self._inode != _inode(self.path):
            self._close_replaced()
            self.notes.append(f"{self.path} was removed or replaced; traffic is written to the file there now")
        elif self._connection is not None and not _has_header(self.path):  # SQLite would read it from its cache
            raise _UnusableFileError("is damaged (its header was overwritten)")
        if self._connection is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would use the umask
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            self._inode = _inode(self.path)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _migrate(connection)
            _check_tables(connection)
            self._companions = {path: _inode(path) for path in _companions(self.path)}
        return self._connection

    def _close_replaced(self) -> None:
        """Close a file that is not at its path any more, and remove its log, which SQLite leaves there.

        SQLite would apply that log to the file that has taken its place (https://sqlite.org/howtocorrupt.html §1.4).
        """
        self.close()
        for path, inode in self._companions.items():
            if inode is not None and _inode(path) == inode:
                path.unlink(missing_ok=True)

    def _set_aside(self, reason: str) -> None:
        """Rename the file and what belongs to it. Raises HistoryError."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        aside = self.path.with_name(f"{self.path.name}.bad-{stamp}")
        try:
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
            for old in sorted(self.path.parent.glob(f"{self.path.name}.bad-*Z"))[:-MAX_BAD_FILES]:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{old}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise HistoryError(f"{self.path} {reason}, and cannot be renamed: {error.strerror or error}") from None
        self.notes.append(f"{self.path} {reason}; it is kept as {aside.name}, and a new file was started")


def _companions(path: Path) -> list[Path]:
    """Return the names of the write-ahead log of a file, and of the log's index."""
    return [Path(f"{path}{suffix}") for suffix in ("-wal", "-shm")]


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _has_header(path: Path) -> bool:
    """Whether a file begins as a database (https://sqlite.org/fileformat.html), or is still empty."""
    with path.open("rb") as file:
        return file.read(len(_HEADER)) in {_HEADER, b""}


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date. Raises _UnusableFileError for a later one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise _UnusableFileError(f"was written by a later version of this program (schema {version})")
    if version < 0:
        raise _UnusableFileError(f"was written by another program (schema {version})")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        with _transaction(connection):
            for statement in filter(str.strip, statements.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


def _check_tables(connection: sqlite3.Connection) -> None:
    """Raise _UnusableFileError unless the tables are those that the migrations make: they may be another program's."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        _migrate(model)
        missing = _tables(model) - _tables(connection)
    if missing:
        names = ", ".join(sorted(name for name, _ in missing))
        raise _UnusableFileError(f"was written by another program (other tables: {names})")


def _tables(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return {(name, sql) for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")}


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


# --- jobs -------------------------------------------------------------------------------------------------------------


def stored_name(name: str) -> str:
    """Return the name under which a tunnel is stored: SQLite has no lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_rows(connection: sqlite3.Connection, rows: Mapping[RowKey, Traffic]) -> None:
    """Add rows to those of the same tunnel and hour."""
    last_hours: dict[str, int] = {}
    for name, hour in rows:
        last_hours[stored_name(name)] = max(hour, last_hours.get(stored_name(name), hour))
    connection.executemany(
        "INSERT INTO tunnel (name, last_hour) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET last_hour = MAX(last_hour, excluded.last_hour)",
        list(last_hours.items()),
    )
    columns = ", ".join(Traffic._fields)
    places = ", ".join("?" * len(Traffic._fields))
    connection.executemany(
        f"INSERT INTO traffic (hour, tunnel, {columns}) "  # noqa: S608  names of our own columns
        f"VALUES (?, (SELECT id FROM tunnel WHERE name = ?), {places}) "
        f"ON CONFLICT (hour, tunnel) DO UPDATE SET {_ADD}",
        [(hour, stored_name(name), *counted) for (name, hour), counted in rows.items()],
    )


def prune(connection: sqlite3.Connection, now_hour: int, kept_hours: int) -> None:
    """Remove rows that are older than ``kept_hours``, GRADUAL_HOURS of them; all of them if the limit was lowered."""
    oldest_kept = now_hour - kept_hours + 1
    found = connection.execute("SELECT value FROM setting WHERE name = 'kept_hours'").fetchone()
    is_lowered = found is not None and kept_hours < found[0]
    if found is None or found[0] != kept_hours:
        connection.execute("INSERT OR REPLACE INTO setting VALUES ('kept_hours', ?)", (kept_hours,))
    (oldest,) = connection.execute("SELECT MIN(hour) FROM traffic").fetchone()
    if oldest is None or oldest >= oldest_kept:
        return
    end = oldest_kept if is_lowered else min(oldest_kept, oldest + GRADUAL_HOURS)
    connection.execute("DELETE FROM traffic WHERE hour < ?", (end,))
    connection.execute("DELETE FROM tunnel WHERE last_hour < ?", (end,))
    connection.execute(f"PRAGMA incremental_vacuum({_MAX_FREED_PAGES})").fetchall()


def read_names(connection: sqlite3.Connection) -> list[str]:
    """Return the names of all tunnels that have rows, sorted."""
    return [name for (name,) in connection.execute("SELECT name FROM tunnel ORDER BY name")]


def read_periods(
    connection: sqlite3.Connection, wanted: Sequence[Period], names: Collection[str]
) -> list[dict[str, Traffic]]:
    """Return the traffic of these tunnels in each period; a tunnel without a row is left out. Raises HistoryError."""
    stored = {stored_name(name): name for name in names}
    ids = {id_: stored[name] for id_, name in connection.execute("SELECT id, name FROM tunnel") if name in stored}
    if not ids:
        return [{} for _ in wanted]
    one = next(iter(ids)) if len(ids) == 1 else None
    only = "AND tunnel = ? " if one is not None else ""
    query = f"SELECT tunnel, {_SUM} FROM traffic WHERE hour >= ? AND hour < ? {only}GROUP BY tunnel"  # noqa: S608  constant
    found = []
    with _time_limit(connection):
        for period in wanted:
            values = (period.first_hour, period.end_hour, *([] if one is None else [one]))
            rows = connection.execute(query, values)
            found.append({ids[id_]: Traffic._make(counts) for id_, *counts in rows if id_ in ids})
    return found


def read_hours(connection: sqlite3.Connection, name: str, first_hour: int) -> dict[int, int]:
    """Return the bytes of a tunnel in each hour from ``first_hour`` on."""
    query = (
        "SELECT hour, from_visitors + to_visitors FROM traffic "
        "WHERE hour >= ? AND tunnel = (SELECT id FROM tunnel WHERE name = ?)"
    )
    return dict(connection.execute(query, (first_hour, stored_name(name))))


@contextlib.contextmanager
def _time_limit(connection: sqlite3.Connection) -> Iterator[None]:
    """Interrupt a query that takes too long: rows are written by the same thread."""
    deadline = time.monotonic() + _QUERY_TIMEOUT_S
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_PER_CHECK)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise HistoryError("the query takes too long; ask for fewer days, or for one tunnel") from None
        raise
    finally:
        connection.set_progress_handler(None, 0)
