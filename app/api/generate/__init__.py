"""Generation: the route, and the client of the engine."""
