"""Functions that a model may call, its calls, limits of their JSON, and stored responses."""
