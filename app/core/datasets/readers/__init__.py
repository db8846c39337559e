"""Readers for each kind of uploaded file: JSON, JSON lines, CSV, Parquet, compressed or not."""
