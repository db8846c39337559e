"""Errors of database, artifact store and disk, of backups and restores, and of Idempotency-Keys."""

from app.core.errors import Conflict, InvalidRequest, TunesmithError, Unavailable


class IdempotencyKeyReused(InvalidRequest):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_key_reused"


class NotEmpty(Conflict):
    """There are rows here already, and a restore would mix with them."""

    code = "not_empty"


class StorageFull(TunesmithError):
    """The disk is full: nothing more can be stored."""

    type = "unavailable_error"
    code = "disk_full"

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message,
            hint="Free space, then send the request again: GET /ready names the folder. Exports take most "
            "(DELETE /exports/{id}), then models, datasets and adapters that nobody needs.",
        )


class DatabaseUnavailable(Unavailable):
    """The database does not answer."""

    code = "database_unavailable"

    def __init__(self) -> None:
        super().__init__(hint="Send the request again in a few seconds. The server's log has the reason.")


class StoreUnreachable(Unavailable):
    """The artifact store does not answer."""

    code = "store_unreachable"

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message, hint="Try again once the object store answers: GET /ready says whether it does."
        )


class DatabaseTooNew(TunesmithError):
    """The database is of a newer version of Tunesmith."""

    code = "database_too_new"

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"The database is of a newer version of Tunesmith (its schema is {revision}): this version can't "
            "use it.",
            hint="Run that version again, or restore a backup that this version made.",
        )


class BackupUnusable(TunesmithError):
    """This is not a whole backup."""

    code = "backup_unusable"
