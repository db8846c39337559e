"""A PostgreSQL server of the tests' own, where its programs are installed; else tests skip."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

_OPTIONS = "-c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=60"


class PostgresServer:
    """A server on a Unix socket. `make_database` makes databases; `stop` and `start` are for outages."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        # PostgreSQL refuses to run as root.
        self._user = _unprivileged_user()
        if self._user:
            os.chown(folder, *self._user)
        self._run("initdb", "-D", self._data, "-U", "tunesmith", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def url(self, name: str) -> str:
        """SQLAlchemy's URL of a database."""
        return f"postgresql+psycopg://tunesmith@/{name}?host={self._folder}"

    def make_database(self, name: str, *, template: str = "template0") -> str:
        """Make a database, as a copy of another. Returns its URL."""
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database with the connections to it."""
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        log = self._folder / "log"
        self._run("pg_ctl", "-w", "-D", self._data, "-l", log, "-o", f"{_OPTIONS} -k {self._folder}", "start")

    def ensure_started(self) -> None:
        """Start the server where it does not run."""
        if not (self._data / "postmaster.pid").exists():
            self.start()

    def stop(self) -> None:
        """End the server and every connection to it."""
        self._run("pg_ctl", "-w", "-D", self._data, "-m", "immediate", "stop")

    def _execute(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def _run(self, program: str, *arguments: str | Path) -> None:
        owner: dict[str, Any] = {"user": self._user[0], "group": self._user[1]} if self._user else {}
        # The server must not keep a pipe of this process open.
        with (self._folder / "output").open("ab") as output:
            command = [self._programs / program, *arguments]
            subprocess.run(command, cwd=self._folder, stdout=output, stderr=output, check=True, **owner)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server for as long as the context lasts; skips the test where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    try:
        server = PostgresServer(programs, folder)
        try:
            yield server
        finally:
            with suppress(subprocess.CalledProcessError):
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; Debian leaves it out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def _unprivileged_user() -> tuple[int, int] | None:
    if os.getuid() != 0:
        return None
    with suppress(KeyError):
        user = pwd.getpwnam("postgres")
        return user.pw_uid, user.pw_gid
    user = pwd.getpwnam("nobody")
    return user.pw_uid, user.pw_gid
