"""Datasets: formats, inspection, records, limits, fetches from the Hub, and OpenAI's files."""
