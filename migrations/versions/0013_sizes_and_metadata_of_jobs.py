"""sizes of result files, metadata of jobs in rows of their own, indexes of lists, models of workers."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_UNSTORABLE = {0: "\ufffd", **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}


def upgrade() -> None:
    op.create_table(
        "job_metadata",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=512), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("job_id", "key"),
    )
    op.create_index("ix_job_metadata_key_value", "job_metadata", ["key", "value", "job_id"])
    op.add_column("jobs", sa.Column("result_bytes", sa.BigInteger(), nullable=True))
    op.create_index("ix_jobs_state_finished_at", "jobs", ["state", "finished_at", "id"])
    op.create_index("ix_adapters_base_model", "adapters", ["base_model"])
    op.add_column("workers", sa.Column("model_folders", sa.JSON(), server_default="[]", nullable=False))
    _copy_metadata()


def downgrade() -> None:
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.drop_column("model_folders")
    op.drop_index("ix_adapters_base_model", "adapters")
    op.drop_index("ix_jobs_state_finished_at", "jobs")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("result_bytes")
    op.drop_table("job_metadata")


def _copy_metadata() -> None:
    """Copy the metadata of every job; texts that PostgreSQL can't read are replaced in the spec, too."""
    jobs = sa.table("jobs", sa.column("id", sa.String), sa.column("spec", sa.Text))
    rows = sa.table("job_metadata", *(sa.column(name, sa.String) for name in ("job_id", "key", "value")))
    connection = op.get_bind()
    specs = sa.select(jobs.c.id, sa.cast(jobs.c.spec, sa.Text))
    for job_id, text in connection.execute(specs).all():
        spec = _make_storable(json.loads(text))
        if r"\u0000" in text or r"\ud" in text.lower():
            dumped = json.dumps(spec)
            value = sa.cast(dumped, sa.JSON) if connection.dialect.name == "postgresql" else dumped
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(spec=value))
        metadata = spec.get("metadata") or {}
        if metadata:
            found = [{"job_id": job_id, "key": key, "value": value} for key, value in metadata.items()]
            connection.execute(sa.insert(rows), found)


def _make_storable(value: object) -> object:
    if isinstance(value, str):
        return value.translate(_UNSTORABLE)
    if isinstance(value, dict):
        return {_make_storable(key): _make_storable(item) for key, item in value.items()}
    return [_make_storable(item) for item in value] if isinstance(value, list) else value
