"""Database connections, short transactions, and migrations, for SQLite and PostgreSQL.

Functions elsewhere take a Session and never commit: their callers at the edge do, through `transaction()`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.orm import Session

from app.core.errors.storage import DatabaseTooNew

_APP = Path(__file__).parents[2]
_BUSY_TIMEOUT_SECONDS = 30


class Database:
    """A pool of connections: `transaction()` opens a session that writes, `snapshot()` one that reads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _create_engine(url)
        self._listeners: dict[str, list[Callable[[], None]]] = {}

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a session that commits at the end, or rolls back on an error.

        On SQLite it takes the write lock at the start (BEGIN IMMEDIATE): a transaction that began with a read
        fails at its first write, without waiting, where another connection wrote in between.
        """
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session
        for topic in session.info.get("topics", ()):
            for listener in self._listeners.get(topic, ()):
                listener()

    def listen(self, topic: str, listener: Callable[[], None]) -> None:
        """Call `listener` after each commit in this process whose `session.info["topics"]` has the topic."""
        self._listeners.setdefault(topic, []).append(listener)

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Open a session that reads one consistent state and takes no write lock."""
        reading = self.engine.execution_options(read_only=True)
        with Session(reading, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def migrate(url: str) -> None:
    """Bring the schema to the newest version. Creates the SQLite file and its folder where there is none.

    Raises DatabaseTooNew.
    """
    path = make_url(url).database
    if url.startswith("sqlite") and path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    database = Database(url)
    try:
        refuse_newer(database)
        with database.engine.begin() as connection:
            command.upgrade(alembic_config(connection), "head")
    finally:
        database.close()


def is_migrated(database: Database) -> bool:
    """Whether the schema is the one this code was written for."""
    return _revision(database) == ScriptDirectory.from_config(alembic_config()).get_current_head()


def refuse_newer(database: Database) -> None:
    """Raise DatabaseTooNew where the schema is none that this version knows."""
    revision = _revision(database)
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseTooNew(revision)


def _revision(database: Database) -> str | None:
    with database.engine.execution_options(read_only=True).connect() as connection:
        # Not by Alembic's MigrationContext, which logs two lines each time.
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


def alembic_config(connection: Connection | None = None) -> Config:
    """Returns Alembic's configuration, bound to a connection where one is given."""
    config = Config()
    config.set_main_option("script_location", str(_migrations_folder()))
    config.attributes["connection"] = connection
    return config


def _migrations_folder() -> Path:
    """`app/migrations` where a wheel was installed (setup.py says so), else the folder next to `app`."""
    installed = _APP / "migrations"
    return installed if installed.is_dir() else _APP.parent / "migrations"


def _create_engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS}, pool_size=20, max_overflow=60
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: _begin_sqlite does
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
