"""Adapters: their rows, uploaded archives and their files, imports."""
