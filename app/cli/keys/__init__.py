"""`tunesmith keys` and `tunesmith usage`."""
