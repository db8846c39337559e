"""Runs migrations on the connection that `app.core.storage.database` passes in, or on the settings' one."""

from alembic import context
from sqlalchemy import Connection

from app.core.settings import Settings
from app.core.storage.database import Database
from app.core.storage.tables import Table, UtcDateTime


def _render_item(kind: str, item: object, _context: object) -> str | bool:
    # Migrations must not import the tables of today: they outlive them.
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def run(connection: Connection) -> None:
    # SQLite can't alter a column in place: batch mode copies the table.
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        render_as_batch=True,
        render_item=_render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with Database(settings.database_url).engine.begin() as connection:
        run(connection)
