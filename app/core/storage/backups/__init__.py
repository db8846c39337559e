"""Backups: one moment of the database and of the files, in a tar; and their restoration."""
