"""priorities, and turns of keys, of evaluations and exports; seconds of exports in the usage."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_TABLES = ("evaluations", "exports")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("key_id", sa.String(length=32), server_default="", nullable=False))
        op.add_column(table, sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True))
        op.add_column(table, sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
        op.create_index(f"ix_{table}_key_id_state", table, ["key_id", "state"])
        op.create_index(f"ix_{table}_key_id_taken_at", table, ["key_id", "taken_at"])
    op.add_column("usage", sa.Column("export_seconds", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.drop_column("export_seconds")
    for table in _TABLES:
        op.drop_index(f"ix_{table}_key_id_taken_at", table)
        op.drop_index(f"ix_{table}_key_id_state", table)
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name in ("priority", "taken_at", "key_id"):
                batch_op.drop_column(name)
