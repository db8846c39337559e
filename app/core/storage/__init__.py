"""The database and the artifact store: tables, ids, pages, API keys, idempotency, backups."""
