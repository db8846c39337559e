"""`tunesmith models`."""
