"""The HTTP API of Tunesmith, and the core that it shares with the worker."""
