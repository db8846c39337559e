"""A job's metrics in experiment trackers: a thread of the worker and a process for each. Imports no torch."""
