"""The database, the artifact store, and what is kept in them: tables, ids, pages, keys, backups."""
