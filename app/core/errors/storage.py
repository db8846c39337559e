"""Errors of backups, of restores, and of Idempotency-Keys."""

from app.core.errors import Conflict, InvalidRequest, TunesmithError


class IdempotencyKeyReused(InvalidRequest):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_key_reused"


class NotEmpty(Conflict):
    """There are rows here already, and a restore would mix with them."""

    code = "not_empty"


class BackupUnusable(TunesmithError):
    """This is not a whole backup."""

    code = "backup_unusable"
