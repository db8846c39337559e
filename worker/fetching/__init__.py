"""Fetches the rows of a Hub dataset in a child process."""
