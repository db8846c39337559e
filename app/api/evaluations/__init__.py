"""Routes of evaluations."""
