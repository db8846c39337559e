"""Base models: list, search on the Hub, memory, download, delete."""
