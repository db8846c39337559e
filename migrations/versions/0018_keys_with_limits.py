"""scopes, limits and ends of keys; requests of a minute; usage; priorities, and turns of keys."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        # Keys that exist go on doing everything.
        batch_op.add_column(sa.Column("scopes", sa.JSON(), server_default='["admin"]', nullable=False))
        batch_op.add_column(sa.Column("requests_per_minute", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("queued_jobs", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("tokens_per_day", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "request_windows",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "usage",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("model", sa.String(length=400), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("training_tokens", sa.BigInteger(), nullable=False),
        sa.Column("training_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", "model"),
    )
    op.create_index("ix_usage_day", "usage", ["day"])
    op.add_column("jobs", sa.Column("key_id", sa.String(length=32), server_default="", nullable=False))
    op.add_column("jobs", sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
    op.create_index("ix_jobs_key_id_state", "jobs", ["key_id", "state"])
    op.create_index("ix_jobs_key_id_taken_at", "jobs", ["key_id", "taken_at"])
    op.add_column("attempts", sa.Column("trained_tokens", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_column("trained_tokens")
    op.drop_index("ix_jobs_key_id_taken_at", "jobs")
    op.drop_index("ix_jobs_key_id_state", "jobs")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        for name in ("priority", "taken_at", "key_id"):
            batch_op.drop_column(name)
    op.drop_table("usage")
    op.drop_table("request_windows")
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        for name in ("expires_at", "tokens_per_day", "queued_jobs", "requests_per_minute", "scopes"):
            batch_op.drop_column(name)
