"""Runs claimed work in child processes: one runner, and a handler for each kind of work. Imports no torch."""
