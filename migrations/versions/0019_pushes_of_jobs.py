"""The job that an export was made for, by push_to_hub; addresses with branches."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exports", sa.Column("job_id", sa.String(length=32), nullable=True))
    op.create_index("ix_exports_job_id", "exports", ["job_id"])
    with op.batch_alter_table("exports", schema=None) as batch_op:
        batch_op.alter_column("url", existing_type=sa.String(length=255), type_=sa.String(length=600))


def downgrade() -> None:
    op.drop_index("ix_exports_job_id", "exports")
    with op.batch_alter_table("exports", schema=None) as batch_op:
        batch_op.alter_column("url", existing_type=sa.String(length=600), type_=sa.String(length=255))
        batch_op.drop_column("job_id")
