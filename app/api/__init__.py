"""The HTTP API: parses requests, calls `app.core`, builds responses."""
