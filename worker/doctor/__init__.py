"""Checks whether this machine can run a worker; `python -m worker --check` prints the findings."""
