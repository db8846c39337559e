"""Adapters: records, uploaded archives and their files, imports."""
