"""`tunesmith evaluations`."""
