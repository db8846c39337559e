"""files and checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("original", sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column("original_bytes", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_index("ix_datasets_expires_at", ["expires_at"], unique=False)
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.add_column(sa.Column("step", sa.Integer(), nullable=True))
        batch_op.alter_column(
            "name", existing_type=sa.String(length=80), type_=sa.String(length=400), existing_nullable=False
        )


def downgrade() -> None:
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.alter_column(
            "name", existing_type=sa.String(length=400), type_=sa.String(length=80), existing_nullable=False
        )
        batch_op.drop_column("step")
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.drop_index("ix_datasets_expires_at")
        batch_op.drop_column("expires_at")
        batch_op.drop_column("original_bytes")
        batch_op.drop_column("original")
