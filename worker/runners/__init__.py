"""Runs claimed work in child processes and records how it ended. Imports no torch."""
