"""the newest checkpoint of a job: where it was written, and its copy in the artifact store."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_COLUMNS: dict[str, sa.types.TypeEngine[object]] = {
    "checkpoint_step": sa.Integer(),
    "checkpoint_host": sa.String(length=48),
    "stored_checkpoint": sa.String(length=255),
    "stored_checkpoint_step": sa.Integer(),
    "stored_checkpoint_bytes": sa.BigInteger(),
}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("jobs", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        for name in reversed(_COLUMNS):
            batch_op.drop_column(name)
