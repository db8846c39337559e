"""unused fields of datasets."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("unused_fields", sa.JSON(), server_default="[]", nullable=False))
    with op.batch_alter_table("dataset_fetches", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("on_unused", sa.String(length=16), server_default="refuse", nullable=False)
        )


def downgrade() -> None:
    with op.batch_alter_table("dataset_fetches", schema=None) as batch_op:
        batch_op.drop_column("on_unused")
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.drop_column("unused_fields")
