"""Can this worker do its work? `python -m worker --check` says what it found on one screen."""
