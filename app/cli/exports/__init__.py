"""`tunesmith exports`."""
