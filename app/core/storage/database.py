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
from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, make_url, select, text
from sqlalchemy.orm import Session

from app.core.errors.storage import DatabaseTooNew
from app.core.storage.outages import OutageLog
from app.core.storage.stored_text import dump_json, storable_parameters

_APP = Path(__file__).parents[2]
_BUSY_TIMEOUT_SECONDS = 30
# A server that is cut off does not refuse connections: without these, each would wait for minutes.
_LIBPQ_LIMITS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_LIBPQ_DRIVERS = ("psycopg", "psycopg2")
# Number of the lock under which one process at a time migrates a PostgreSQL database.
_MIGRATION_LOCK = 0x74756E65


class Database:
    """A pool of connections: `transaction()` opens a session that writes, `snapshot()` one that reads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _create_engine(url)
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        self._outages = OutageLog()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a session that commits at the end, or rolls back on an error.

        On SQLite it takes the write lock at the start (BEGIN IMMEDIATE): a transaction that began with a read
        fails at its first write, without waiting, where another connection wrote in between.
        """
        opened = Session(self.engine, expire_on_commit=False)
        with self._outages.watch(), opened as session, session.begin():
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
        with self._outages.watch(), Session(reading, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Close every connection; one that a thread still uses is closed when the thread is done with it."""
        event.listen(self.engine.pool, "checkin", lambda _connection, record: record.invalidate())
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
            if connection.dialect.name == "postgresql":
                # Another API that starts at the same time waits here, and then finds nothing to do.
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
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
    engine = _create_sqlite_engine(url) if url.startswith("sqlite") else _create_server_engine(url)
    event.listen(engine, "before_cursor_execute", _make_storable, retval=True)
    return engine


def _create_server_engine(url: str) -> Engine:
    given = make_url(url)
    limits = {name: value for name, value in _LIBPQ_LIMITS.items() if name not in given.query}
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=10,
        connect_args=limits if given.get_driver_name() in _LIBPQ_DRIVERS else {},
        json_serializer=dump_json,
    )


def _make_storable(
    _connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
) -> tuple[str, Any]:
    return statement, storable_parameters(parameters)


def _create_sqlite_engine(url: str) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
        pool_size=20,
        max_overflow=60,
        json_serializer=dump_json,
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
