"""POST /generate, and the client of the engine."""
